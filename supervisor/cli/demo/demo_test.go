package demo

import (
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/moult/moult/supervisor/cli/demo/load"
	"github.com/moult/moult/supervisor/control/api"
)

func TestHandler(t *testing.T) {
	handler := handler("7", 4711)
	for _, test := range []struct {
		target string
		status int
		body   func(string, any) string
		least  time.Duration
	}{
		{"/", 200, helloBody, 0},
		{"/slow?d=20ms", 200, slowBody, 20 * time.Millisecond},
		{"/slow?d=0s", 200, slowBody, 0},
		{"/healthz", 200, nil, 0},
		{"/slow", 400, nil, 0},
		{"/slow?d=-1s", 400, nil, 0},
		{"/slow?d=2h", 400, nil, 0},
		{"/else", 404, nil, 0},
	} {
		r := httptest.NewRecorder()
		began := time.Now()
		handler.ServeHTTP(r, httptest.NewRequest("GET", test.target, nil))
		took := time.Since(began)
		response := r.Result()
		body, _ := io.ReadAll(response.Body)
		if response.StatusCode != test.status || took < test.least {
			t.Errorf("%s: status %d after %v, want %d", test.target, response.StatusCode, took, test.status)
		}
		if test.body == nil {
			continue
		}
		if generation, err := judge(test.body)(response, body); generation != "7" || err != nil || !strings.Contains(string(body), "generation 7, pid 4711") {
			t.Errorf("%s: generation %q, %v\n%s", test.target, generation, err, body)
		}
	}
}

func TestAnswersAreJudgedByEveryByte(t *testing.T) {
	right := slowBody("7", 1)
	for _, test := range []struct{ name, generation, pid, body string }{
		{"", "7", "1", right},
		{"a piece is missing", "7", "1", strings.TrimPrefix(right, piece(0, "7", 1))},
		{"a piece of another", "7", "1", strings.Replace(right, "pid 1", "pid 2", 1)},
		{"something behind it", "7", "1", right + "!"},
		{"the header is another's", "8", "1", right},
		{"the header is another's pid", "7", "2", right},
		{"no header", "", "", right},
	} {
		response := &http.Response{StatusCode: http.StatusOK, Header: http.Header{}}
		response.Header.Set(load.GenerationHeader, test.generation)
		response.Header.Set(pidHeader, test.pid)
		if _, err := judge(slowBody)(response, []byte(test.body)); (err == nil) != (test.name == "") {
			t.Errorf("%q: %v", test.name, err)
		}
	}
}

func plain(_, text string) string { return text }

// crowded is a result with numbers as wide as they get.
func crowded(failed error, lost int) *result {
	report := load.Report{Phases: []load.Phase{{Name: load.AtRest, Answered: 1234567}, {Name: load.Upgrading, Answered: 7654321}}}
	if lost > 0 {
		report.Phases[1].Failed[load.Refused] = lost
		report.Samples = []load.Failure{{Phase: load.Upgrading, Class: load.Refused, Message: "connection refused"}}
	}
	report.Generations = map[string]int{"1": 8880000, "2": 888}
	return &result{options: options{upgrades: maxUpgrades}, done: maxUpgrades, failed: failed,
		rows: []row{{"kept connections", report}}, total: report, fast: report}
}

func TestTablesFit(t *testing.T) {
	for _, r := range []*result{crowded(nil, 0), crowded(nil, 99999), crowded(errors.New("no"), 0)} {
		for _, abrupt := range []bool{false, true} {
			r.abrupt, r.shared = abrupt, abrupt
			text := r.text(plain)
			for _, line := range strings.Split(text, "\n") {
				if n := utf8.RuneCountInString(line); n > 80 {
					t.Errorf("%d columns: %q", n, line)
				}
			}
			if !strings.Contains(text, "2 generations, 888 to 8,880,000 requests each") {
				t.Errorf("the generations are missing:\n%s", text)
			}
		}
	}
}

func TestErrorSaysWhatWasLost(t *testing.T) {
	for _, test := range []struct {
		failed error
		lost   int
		want   string
	}{
		{nil, 0, ""},
		{errors.New("upgrade 3 failed"), 0, "upgrade 3 failed"},
		{nil, 1234, "1,234 of 8,890,122 requests failed: 1,234 refused; the first, during upgrades: connection refused"},
		{errors.New("upgrade 3 failed"), 1, "upgrade 3 failed; 1 of 8,888,889 requests failed: 1 refused; the first, during upgrades: connection refused"},
	} {
		got := ""
		if err := crowded(test.failed, test.lost).err(); err != nil {
			got = err.Error()
		}
		if got != test.want {
			t.Errorf("got %q, want %q", got, test.want)
		}
	}
}

func TestLatencies(t *testing.T) {
	for d, want := range map[time.Duration]string{
		0: "0.00 ms", 123 * time.Microsecond: "0.12 ms", 12345 * time.Microsecond: "12.3 ms", 1234567 * time.Microsecond: "1,235 ms",
		9996 * time.Microsecond: "10.0 ms", 99960 * time.Microsecond: "100 ms",
	} {
		if got := latency(d); got != want {
			t.Errorf("%v: %s, want %s", d, got, want)
		}
	}
}

func TestTriesNameTheServer(t *testing.T) {
	for _, test := range []struct{ network, address, want string }{
		{"tcp", "127.0.0.1:80", "curl -sS http://127.0.0.1:80/;"},
		{"tcp", "0.0.0.0:80", "curl -sS http://127.0.0.1:80/;"},
		{"tcp", "[::]:80", "curl -sS http://[::1]:80/;"},
		{"unix", "/it's", `curl -sS --unix-socket '/it'\''s' http://localhost/;`},
		{"unix", "@name", "curl -sS --abstract-unix-socket 'name' http://localhost/;"},
	} {
		text := triesFor(api.Socket{Network: test.network, Address: test.address}, 42, false)
		if !strings.Contains(text, test.want) || !strings.Contains(text, "kill -HUP 42") {
			t.Errorf("%s: no %q in%s", test.address, test.want, text)
		}
	}
}
