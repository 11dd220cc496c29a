package cli

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"slices"
	"strings"
	"sync"
	"time"
	"unicode/utf8"

	"github.com/urfave/cli/v2"

	"github.com/moult/moult/supervisor/control"
	"github.com/moult/moult/supervisor/control/api"
)

// A teller says how an operation goes on.
type teller interface {
	event(api.Event)
	end() // may be called twice
}

// newTeller chooses: objects for programs, a line that is drawn again and
// again on a terminal, else one line for each event.
func newTeller(c *cli.Context, op api.Operation, client *control.Client) teller {
	if c.Bool("json") {
		return jsonTeller{json.NewEncoder(c.App.Writer)}
	}
	if s := newScreen(c.App.Writer, false); s.live {
		return newLiveTeller(s, op, client)
	}
	return lineTeller{c.App.Writer, op}
}

type jsonTeller struct{ out *json.Encoder }

func (t jsonTeller) event(e api.Event) { _ = t.out.Encode(e) }
func (jsonTeller) end()                {}

type lineTeller struct {
	out io.Writer
	op  api.Operation
}

func (lineTeller) end() {}

func (t lineTeller) event(e api.Event) {
	if line := eventLine(t.op, e); line != "" {
		fmt.Fprintln(t.out, line)
	}
}

// eventLine says an event in words; a failure is the command's own error.
func eventLine(op api.Operation, e api.Event) string {
	took := ""
	if e.TookMS > 0 {
		took = " after " + shortDuration(eventTime(e))
	}
	switch {
	case e.Event == api.EventFailed:
		return ""
	case op.Kind == api.OpStop && e.Event == api.EventDone:
		return "stopped" + took
	case op.Kind == api.OpStop:
		return "stopping"
	case op.Kind == api.OpScale && e.Event == api.EventDone:
		return fmt.Sprintf("%s per generation", plural(op.Workers, "worker"))
	}
	switch e.Event {
	case api.EventStarting:
		return fmt.Sprintf("generation %d starting%s", e.To, pidList(e.PIDs))
	case api.EventReady:
		return fmt.Sprintf("generation %d serves%s", e.To, took)
	case api.EventDraining:
		return fmt.Sprintf("generation %d draining", e.From)
	}
	return fmt.Sprintf("generation %d gone%s", e.From, took)
}

func pidList(pids []int) string {
	const most = 4
	if len(pids) == 0 {
		return ""
	}
	words := make([]string, 0, most+1)
	for i, pid := range pids {
		if i == most {
			words = append(words, "…")
			break
		}
		words = append(words, fmt.Sprint(pid))
	}
	return " (pid " + strings.Join(words, ", ") + ")"
}

func eventTime(e api.Event) time.Duration {
	return time.Duration(e.TookMS * float64(time.Millisecond))
}

// liveTeller draws one line until the operation ends. While it does, it looks
// at the master's status for what no event tells: how many connections are
// left, and how long they have.
type liveTeller struct {
	screen *screen
	op     api.Operation
	began  time.Time
	quit   context.CancelFunc
	drawn  sync.WaitGroup

	mu     sync.Mutex
	seen   []api.Event
	status *api.Status
}

const (
	drawPace = 100 * time.Millisecond
	lookPace = 500 * time.Millisecond
)

func newLiveTeller(s *screen, op api.Operation, client *control.Client) *liveTeller {
	ctx, cancel := context.WithCancel(context.Background())
	t := &liveTeller{screen: s, op: op, began: time.Now(), quit: cancel}
	t.drawn.Go(func() { every(ctx, lookPace, func() { t.look(ctx, client) }) })
	t.drawn.Go(func() { every(ctx, drawPace, t.draw) })
	return t
}

// every calls f at once and then at each tick until ctx ends.
func every(ctx context.Context, pace time.Duration, f func()) {
	ticker := time.NewTicker(pace)
	defer ticker.Stop()
	for ctx.Err() == nil {
		f()
		select {
		case <-ticker.C:
		case <-ctx.Done():
		}
	}
}

func (t *liveTeller) look(ctx context.Context, client *control.Client) {
	status, err := client.Status(ctx)
	if err != nil {
		return // the stream of events tells if the master is gone
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	t.status = &status
}

func (t *liveTeller) event(e api.Event) {
	t.mu.Lock()
	t.seen = append(t.seen, e)
	t.mu.Unlock()
	t.draw()
}

func (t *liveTeller) draw() { t.screen.progress(t.line(time.Now())) }

// end leaves the line as it is, for good, if it tells anything.
func (t *liveTeller) end() {
	t.quit()
	t.drawn.Wait()
	last := t.screen.shown
	t.screen.progress("")
	if len(t.seen) > 0 && last != "" {
		t.screen.println(last)
	}
}

func (t *liveTeller) line(now time.Time) string {
	t.mu.Lock()
	defer t.mu.Unlock()
	return fit(operationLine(t.op, t.seen, t.status, now.Sub(t.began), now), t.screen.width()-1, t.screen.paint)
}

// A span is text in one colour.
type span struct{ text, color string }

// fit joins spans and cuts what is wider than the screen.
func fit(spans []span, width int, paint painter) string {
	var b strings.Builder
	for _, s := range spans {
		if n := utf8.RuneCountInString(s.text); n > width {
			b.WriteString(paint(s.color, shorten(s.text, width)))
			break
		} else {
			width -= n
		}
		b.WriteString(paint(s.color, s.text))
	}
	return b.String()
}

// shorten cuts text to a width, with a sign that there was more.
func shorten(text string, width int) string {
	if utf8.RuneCountInString(text) <= width {
		return text
	}
	if width < 1 {
		return ""
	}
	return string([]rune(text)[:width-1]) + "…"
}

// operationLine says where an operation is: what has passed with its time,
// what goes on with what is left of it.
func operationLine(op api.Operation, seen []api.Event, status *api.Status, took time.Duration, now time.Time) []span {
	spans := []span{{headOf(op, seen), colorBold}}
	if len(seen) == 0 {
		return append(spans, span{"  " + waitWord(op, status), colorDim})
	}
	for _, e := range seen {
		if word := passedWord(op, e); word != "" {
			spans = append(spans, span{"  " + word + " ✓", colorGood})
		}
	}
	switch last := seen[len(seen)-1]; last.Event {
	case api.EventFailed:
		return append(spans, span{"  failed", colorBad}, span{" after " + shortDuration(took), ""})
	case api.EventStarting, api.EventDraining:
		return append(spans, span{"  " + last.Event, ""}, span{" " + shortDuration(took) + left(last, status, now), colorDim})
	}
	return spans
}

func headOf(op api.Operation, seen []api.Event) string {
	for _, e := range seen {
		if isUpgrade(op) && e.To > 0 {
			return fmt.Sprintf("%s %d → %d", op.Kind, e.From, e.To)
		}
	}
	return op.Kind
}

func waitWord(op api.Operation, status *api.Status) string {
	if isUpgrade(op) && status != nil && status.State == api.Upgrading {
		return "waiting for the upgrade that is under way"
	}
	return "asked"
}

// passedWord is what stays of an event once it has passed.
func passedWord(op api.Operation, e api.Event) string {
	switch {
	case e.Event == api.EventReady:
		return "ready " + shortDuration(eventTime(e))
	case e.Event != api.EventDone:
		return ""
	case op.Kind == api.OpStop:
		return "stopped"
	case op.Kind == api.OpScale:
		return plural(op.Workers, "worker") + " per generation"
	}
	return "done " + shortDuration(eventTime(e))
}

// left is what status adds to an event that is the latest: what the new worker
// says, or how much the old ones still have to do.
func left(e api.Event, status *api.Status, now time.Time) string {
	if status == nil {
		return ""
	}
	if e.Event == api.EventStarting {
		for _, w := range status.Workers {
			if slices.Contains(e.PIDs, w.PID) && w.Says != "" {
				return " · says: " + printable(w.Says)
			}
		}
		return ""
	}
	connections, deadline := drainingOf(status.Workers, e.From)
	var parts []string
	if connections >= 0 {
		parts = append(parts, plural(connections, "connection"))
	}
	if deadline.After(now) {
		parts = append(parts, shortDuration(deadline.Sub(now).Round(time.Second)))
	}
	if len(parts) == 0 {
		return ""
	}
	return " · " + strings.Join(parts, ", ") + " left"
}

// drainingOf sums up the workers of a generation that finish: their
// connections, -1 where the kernel does not say, and the latest deadline.
func drainingOf(workers []api.Worker, generation int) (connections int, deadline time.Time) {
	for _, w := range workers {
		if w.Generation != generation || w.State == "serving" {
			continue
		}
		if w.Connections == nil {
			connections = -1
		} else if connections >= 0 {
			connections += *w.Connections
		}
		if w.Deadline != nil && w.Deadline.After(deadline) {
			deadline = *w.Deadline
		}
	}
	return connections, deadline
}

// shortDuration has at most two units, and no more digits than matter.
func shortDuration(d time.Duration) string {
	const day = 24 * time.Hour
	switch {
	case d < time.Second:
		return fmt.Sprintf("%dms", d.Milliseconds())
	case d < 10*time.Second && d%time.Second != 0:
		return fmt.Sprintf("%.1fs", d.Seconds())
	case d < time.Minute:
		return fmt.Sprintf("%ds", int(d.Seconds()))
	case d < time.Hour:
		return fmt.Sprintf("%dm%02ds", int(d.Minutes()), int(d.Seconds())%60)
	case d < day:
		return fmt.Sprintf("%dh%02dm", int(d.Hours()), int(d.Minutes())%60)
	}
	return fmt.Sprintf("%dd%02dh", int(d/day), int(d%day/time.Hour))
}
