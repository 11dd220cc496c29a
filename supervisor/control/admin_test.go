package control

import (
	"errors"
	"net"
	"strings"
	"testing"

	"github.com/moult/moult/supervisor/control/api"
)

func TestAdminAddresses(t *testing.T) {
	taken, err := ListenAdmin("127.0.0.1:0", false)
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	for _, test := range []struct {
		address           string
		public, bad, fail bool
	}{
		{":0", false, true, true}, {"0.0.0.0:0", false, true, true}, {"[::]:0", false, true, true},
		{"192.0.2.1:9000", false, true, true}, {"nonsense", false, true, true}, {"nonsense", true, true, true},
		{"127.0.0.1:0", false, false, false}, {"localhost:0", false, false, false}, {"0.0.0.0:0", true, false, false},
		{taken.Addr().String(), false, false, true},
	} {
		ln, err := ListenAdmin(test.address, test.public)
		var bad *BadAddress
		if (err != nil) != test.fail || errors.As(err, &bad) != test.bad {
			t.Errorf("%s, public %v: %v", test.address, test.public, err)
		}
		if err == nil {
			ln.Close()
		}
	}
}

func serveAdminFake(t *testing.T, m Master) (url string) {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s := ServeAdmin(ln, m, NewMetrics())
	t.Cleanup(s.Close)
	return "http://" + ln.Addr().String()
}

func TestReadyzFollowsTheState(t *testing.T) {
	m := newFakeMaster()
	url := serveAdminFake(t, m)
	for state, want := range map[string]int{
		api.Starting: 503, api.Serving: 200, api.Upgrading: 200, api.Backoff: 503, api.Stopping: 503,
	} {
		m.mu.Lock()
		m.status.State = state
		m.mu.Unlock()
		if code, body := get(t, url+"/readyz"); code != want || !strings.Contains(body, state) {
			t.Errorf("%s: %d %q, want %d", state, code, body, want)
		}
		if code, _ := get(t, url+"/livez"); code != 200 {
			t.Errorf("%s: livez answers %d", state, code)
		}
	}
	m.mu.Lock()
	m.err = errors.New("the master has ended")
	m.mu.Unlock()
	if code, _ := get(t, url+"/readyz"); code != 503 {
		t.Errorf("a master that has ended: %d", code)
	}
}

func TestAdminShowsAndChangesNothing(t *testing.T) {
	m := newFakeMaster()
	url := serveAdminFake(t, m)
	if code, body := get(t, url+"/metrics"); code != 200 || !strings.Contains(body, "moult_generation 3") {
		t.Errorf("metrics: %d %q", code, body)
	}
	if code, body := get(t, url+"/status"); code != 200 || !strings.Contains(body, `"generation":3`) {
		t.Errorf("status: %d %q", code, body)
	}
	for _, path := range []string{"/v1/upgrade", "/v1/stop", "/", "/debug/pprof/"} {
		if code, _ := get(t, url+path); code != 404 {
			t.Errorf("%s: %d", path, code)
		}
	}
}
