package terminal

import (
	"bytes"
	"context"
	"errors"
	"os"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/moult/moult/supervisor/control/api"
)

func plainPaint(_, text string) string { return text }

// colorPaint shows where colours would be.
func colorPaint(color, text string) string {
	if color == "" {
		return text
	}
	return "<" + text + ">"
}

func busyStatus(now time.Time) api.Status {
	some, few := 161, 7
	deadline, ready := now.Add(9*time.Second), now.Add(-24*time.Second)
	return api.Status{
		Name: "web", Version: "v1.0.0", PID: 4121, State: api.Serving, Generation: 4, StartedAt: now.Add(-75 * time.Hour), Wanted: 1,
		Sockets: []api.Socket{
			{Name: "web", Network: "tcp", Address: "127.0.0.1:8080", Backlog: 4096, Queued: 3, Handover: "steer"},
			{Name: "admin", Network: "unix", Address: "/run/a/very/long/path/that/would/not/fit/into/eighty/columns/admin.sock", Backlog: 128, Queued: 100, Handover: "rename"},
		},
		Workers: []api.Worker{
			{PID: 17422, Generation: 3, State: "draining", ReadyBy: "notify", StartedAt: now.Add(-29 * time.Second), ReadyAt: &ready,
				Deadline: &deadline, Connections: &some, RSSBytes: 13 << 20, Command: []string{"./server", "--quiet"}, Says: "finishing\x1b[2J"},
			{PID: 17592, Generation: 4, State: "serving", ReadyBy: "notify", StartedAt: now.Add(-6 * time.Second), ReadyAt: &ready,
				Connections: &few, RSSBytes: 8600 << 10, Restarts: 2, Command: []string{"./server", "--quiet"}},
			{PID: 1759212, Generation: 4, State: "starting", StartedAt: now, RSSBytes: 900},
		},
		Upgrades: api.Upgrades{Succeeded: 3, Failed: 1, Last: &api.Upgrade{
			Result: api.Failed, From: 4, To: 5, At: now.Add(-2 * time.Minute), ReadyMS: 6000,
			Reason: "the worker (pid 17258) was not ready within --ready-timeout 6s: nobody accepts on web (127.0.0.1:8080); does it use the socket that it was given?",
		}},
	}
}

const busyTable = `web  serving  generation 4  pid 4121  up 3d03h  moult v1.0.0

SOCKET  ADDRESS                                                 QUEUED  HANDOVER
web     tcp 127.0.0.1:8080                                      3/4096  steer
admin   unix /run/a/very/long/path/that/would/not/fit/into/e…  100/128  rename

 WORKER  GEN  STATE        READY BY  AGE  CONNS  MEMORY  RESTARTS
  17422    3  draining 9s  notify    29s    161     13M         0
        says: finishing [2J
  17592    4  serving      notify     6s      7    8.4M         2
1759212    4  starting               0ms      ?    900B         0

upgrades  3 succeeded, 1 failed, 0 rolled back
last      failed  generation 4 → 5, 2m00s ago, after 6s
          the worker (pid 17258) was not ready within --ready-timeout 6s: nobody
          accepts on web (127.0.0.1:8080); does it use the socket that it was
          given?`

func TestStatusFitsEightyColumns(t *testing.T) {
	now := time.Now()
	got := strings.Join(view{width: 80, paint: plainPaint, now: now}.status(busyStatus(now)), "\n")
	if got != busyTable {
		t.Errorf("got\n%s\nwant\n%s", got, busyTable)
	}
	for _, width := range []int{40, 80, 120, 200} {
		for _, line := range (view{width: width, paint: plainPaint, now: now}).status(busyStatus(now)) {
			const narrowest = 80 // a table does not shrink further
			if n := utf8.RuneCountInString(line); n > max(width, narrowest) {
				t.Errorf("%d columns in a width of %d: %s", n, width, line)
			}
		}
	}
}

func TestWideStatusShowsCommands(t *testing.T) {
	now := time.Now()
	text := strings.Join(view{width: 200, paint: plainPaint, now: now}.status(busyStatus(now)), "\n")
	for _, want := range []string{"COMMAND", "./server --quiet", "eighty/columns/admin.sock"} {
		if !strings.Contains(text, want) {
			t.Errorf("%q is missing in\n%s", want, text)
		}
	}
}

func TestColoursDoNotMoveColumns(t *testing.T) {
	now := time.Now()
	plain := view{width: 80, paint: plainPaint, now: now}.status(busyStatus(now))
	painted := view{width: 80, paint: colorPaint, now: now}.status(busyStatus(now))
	strip := strings.NewReplacer("<", "", ">", "")
	colours := 0
	for i := range plain {
		colours += strings.Count(painted[i], "<")
		if strip.Replace(painted[i]) != plain[i] {
			t.Errorf("%q is not %q", painted[i], plain[i])
		}
	}
	if colours == 0 {
		t.Error("nothing is in colour")
	}
}

func TestFitCutsToTheWidth(t *testing.T) {
	spans := []Span{{"one ", ""}, {"two ", Good}, {"three", ""}}
	for width, want := range map[int]string{13: "one <two >three", 12: "one <two >thr…", 8: "one <two >", 6: "one <t…>", 0: ""} {
		if got := fit(spans, width, colorPaint); got != want {
			t.Errorf("width %d: %q, want %q", width, got, want)
		}
	}
}

func TestNumbersForPeople(t *testing.T) {
	for got, want := range map[string]string{
		Duration(0): "0ms", Duration(999 * time.Millisecond): "999ms", Duration(1500 * time.Millisecond): "1.5s",
		Duration(3 * time.Second): "3s", Duration(59 * time.Second): "59s", Duration(61 * time.Second): "1m01s",
		Duration(3 * time.Hour): "3h00m", Duration(49 * time.Hour): "2d01h",
		bytesText(0): "0B", bytesText(999): "999B", bytesText(1000): "1.0K", bytesText(20 << 10): "20K", bytesText(999 << 10): "999K",
		bytesText(1000 << 10): "1.0M", bytesText(13 << 20): "13M", bytesText(3 << 30): "3.0G",
		Thousands(0): "0", Thousands(999): "999", Thousands(1000): "1,000", Thousands(1234567): "1,234,567",
		Plural(1, "ox"): "1 ox", Plural(0, "ax"): "0 axs", Plural(1234, "ax"): "1,234 axs",
	} {
		if got != want {
			t.Errorf("got %q, want %q", got, want)
		}
	}
}

func workerWith(generation int, state string, connections int) api.Worker {
	return api.Worker{Generation: generation, State: state, Connections: &connections}
}

func TestBarsMoveFromTheOldToTheNew(t *testing.T) {
	var b bars
	v := view{width: 80, paint: plainPaint}
	length := func(line string) int { return strings.Count(line, "█") }
	b.take([]api.Worker{workerWith(3, "serving", 60), workerWith(3, "serving", 40), workerWith(4, "starting", 0)})
	before := b.lines(v)
	b.take([]api.Worker{workerWith(3, "draining", 30), workerWith(3, "draining", 20), workerWith(4, "serving", 50)})
	after := b.lines(v)
	if !strings.HasPrefix(before[1], "generation 4 ") || !strings.HasPrefix(before[2], "generation 3 ") {
		t.Fatalf("not the newest first:\n%s", strings.Join(before, "\n"))
	}
	if length(before[1]) != 0 || length(before[2]) < 40 {
		t.Errorf("before:\n%s", strings.Join(before, "\n"))
	}
	if length(after[1]) != length(after[2]) || length(after[1]) < 20 || length(after[1]) > 25 {
		t.Errorf("half way:\n%s", strings.Join(after, "\n"))
	}
	for _, line := range append(before, after...) {
		if n := utf8.RuneCountInString(line); n > 80 {
			t.Errorf("%d columns: %s", n, line)
		}
	}
	if !strings.HasSuffix(after[2], " 50") || !strings.Contains(after[2], "draining") {
		t.Errorf("the old one's line: %q", after[2])
	}
}

func TestBarsOfWhatIsNotKnown(t *testing.T) {
	var b bars
	b.take([]api.Worker{{Generation: 1, State: "serving"}})
	if lines := b.lines(view{width: 80, paint: plainPaint}); !strings.HasSuffix(lines[1], " ?") {
		t.Errorf("%q", lines[1])
	}
}

func TestBlocksShowAnEighth(t *testing.T) {
	for share, want := range map[float64]string{0: "", 0.001: "▏", 0.5: "██", 0.53125: "██▏", 1: "████", 2: "████"} {
		if got := blocks(share, 4); got != want {
			t.Errorf("%g: %q, want %q", share, got, want)
		}
	}
}

func newWatcher() (*watcher, *bytes.Buffer) {
	out := &bytes.Buffer{}
	return &watcher{screen: &Screen{out: out}}, out
}

func TestWatchFillsTheScreenExactly(t *testing.T) {
	now := time.Now()
	for _, height := range []int{5, 12, 24, 50} {
		w, _ := newWatcher()
		w.take(busyStatus(now), nil)
		frame := w.frame(now, height)
		if len(frame) != height || !strings.HasPrefix(frame[height-1], "q leaves") {
			t.Errorf("height %d: %d lines, the last %q", height, len(frame), frame[len(frame)-1])
		}
		if cut := strings.Contains(strings.Join(frame, "\n"), "more lines"); cut != (height < 24) {
			t.Errorf("height %d: says that there is more: %v", height, cut)
		}
	}
}

func TestWatchOutlivesTheMaster(t *testing.T) {
	w, out := newWatcher()
	answers := make(chan error)
	keys := make(chan byte)
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		w.run(t.Context(), keys, make(chan os.Signal), func() (api.Status, error) { return busyStatus(time.Now()), <-answers })
	}()
	answers <- nil
	answers <- errors.New("nobody there")
	keys <- 'x'
	answers <- nil
	keys <- 'q'
	<-ended
	text := out.String()
	if !strings.Contains(text, "no answer: nobody there; still trying") || strings.Count(text, beginFrame) < 4 {
		t.Errorf("drawn:\n%q", text)
	}
	if last := text[strings.LastIndex(text, beginFrame):]; strings.Contains(last, "no answer") {
		t.Errorf("the last frame still complains: %q", last)
	}
}

func TestWatchEndsWithItsContext(t *testing.T) {
	w, _ := newWatcher()
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	w.run(ctx, nil, nil, func() (api.Status, error) { return api.Status{}, ctx.Err() })
}

func TestWatchLooksOftenWhileConnectionsMove(t *testing.T) {
	w, _ := newWatcher()
	w.take(api.Status{Workers: []api.Worker{workerWith(1, "serving", 1)}}, nil)
	calm := w.pace()
	w.take(busyStatus(time.Now()), nil)
	if busy := w.pace(); busy >= calm {
		t.Errorf("busy %s, calm %s", busy, calm)
	}
}

func TestScreenKeepsLinesApart(t *testing.T) {
	var out bytes.Buffer
	s := &Screen{out: &out, live: true}
	drawn := make(chan struct{})
	end := s.Follow(time.Hour, func() string {
		defer close(drawn)
		return "half"
	})
	<-drawn
	for shown := ""; shown == ""; time.Sleep(time.Millisecond) {
		s.mu.Lock()
		shown = s.shown
		s.mu.Unlock()
	}
	s.Println("a line")
	_, _ = s.Beside(&out).Write([]byte("a log line\n"))
	end()
	end()
	want := eraseLine + "half" + eraseLine + "a line\nhalf" + eraseLine + "a log line\nhalf" + eraseLine
	if got := out.String(); got != want {
		t.Errorf("%q, want %q", got, want)
	}
}

func TestNoStatusWithoutATerminal(t *testing.T) {
	var out bytes.Buffer
	s := NewScreen(&out)
	s.Follow(time.Millisecond, func() string { t.Error("asked for the line"); return "" })()
	s.Println(s.Paint(Bad, "a line"))
	if out.String() != "a line\n" || s.Live() || s.Width() != 80 {
		t.Errorf("%q, live %v, %d columns", out.String(), s.Live(), s.Width())
	}
}
