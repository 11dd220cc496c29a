package terminal

import (
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/moult/moult/supervisor/control/api"
)

// A view is what a status is shown in.
type view struct {
	width int
	paint Painter
	now   time.Time
}

// StatusLines shows a master's status as it is now.
func (s *Screen) StatusLines(status api.Status) []string { return s.view(time.Now()).status(status) }

func (s *Screen) view(now time.Time) view { return view{width: s.Width(), paint: s.Paint, now: now} }

// status renders all of it, in lines.
func (v view) status(s api.Status) []string {
	lines := []string{v.head(s), ""}
	lines = append(lines, v.sockets(s.Sockets)...)
	lines = append(lines, "")
	lines = append(lines, v.workers(s.Workers)...)
	lines = append(lines, "")
	return append(lines, v.upgrades(s.Upgrades)...)
}

var stateColors = map[string]string{
	api.Serving: Good, api.Backoff: Bad, "killing": Bad,
	"draining": Wait, api.Starting: Wait, api.Upgrading: Wait, api.Stopping: Wait,
}

func (v view) head(s api.Status) string {
	return fit([]Span{
		{s.Name, Bold}, {"  ", ""}, {s.State, stateColors[s.State]},
		{fmt.Sprintf("  generation %d  pid %d  up %s  ", s.Generation, s.PID, v.since(s.StartedAt)), ""},
		{"moult " + s.Version, Dim},
	}, v.width, v.paint)
}

func (v view) since(t time.Time) string { return Duration(max(v.now.Sub(t), 0)) }

func (v view) sockets(sockets []api.Socket) []string {
	t := Table{Align: "llrl", Elastic: 1}
	t.Heads("SOCKET", "ADDRESS", "QUEUED", "HANDOVER")
	for _, s := range sockets {
		queue := Span{fmt.Sprintf("%d/%d", s.Queued, s.Backlog), ""}
		if s.Backlog > 0 && s.Queued > s.Backlog/2 {
			queue.Color = Bad
		}
		how := s.Handover
		if s.Intercepted {
			how += ", intercepted"
		}
		t.Add(Span{s.Name, ""}, Span{s.Network + " " + s.Address, ""}, queue, Span{how, ""})
	}
	return t.Lines(v.width, v.paint)
}

// commandRoom is what has to be left beside the other columns to show the
// workers' commands.
const commandRoom = 24

func (v view) workers(workers []api.Worker) []string {
	t := Table{Align: "rrllrrrr", Elastic: 3}
	heads := []string{"WORKER", "GEN", "STATE", "READY BY", "AGE", "CONNS", "MEMORY", "RESTARTS"}
	const others = 76
	wide := v.width >= others+commandRoom
	if wide {
		t.Align, t.Elastic, heads = t.Align+"l", len(heads), append(heads, "COMMAND")
	}
	t.Heads(heads...)
	for _, w := range workers {
		cells := v.worker(w)
		if wide {
			cells = append(cells, Span{strings.Join(w.Command, " "), Dim})
		}
		t.Add(cells...)
	}
	return v.withSayings(t.Lines(v.width, v.paint), workers)
}

func (v view) worker(w api.Worker) []Span {
	connections := "?"
	if w.Connections != nil {
		connections = strconv.Itoa(*w.Connections)
	}
	restarts := Span{strconv.Itoa(w.Restarts), ""}
	if w.Restarts > 0 {
		restarts.Color = Wait
	}
	state := w.State
	if left := v.timeLeft(w); left != "" {
		state += " " + left
	}
	return []Span{
		{strconv.Itoa(w.PID), ""}, {strconv.Itoa(w.Generation), ""}, {state, stateColors[w.State]}, {w.ReadyBy, ""},
		{v.since(w.StartedAt), ""}, {connections, ""}, {bytesText(w.RSSBytes), ""}, restarts,
	}
}

// timeLeft is how long a worker is left in its state.
func (v view) timeLeft(w api.Worker) string {
	if w.Deadline == nil || !w.Deadline.After(v.now) {
		return ""
	}
	return Duration(w.Deadline.Sub(v.now).Round(time.Second))
}

// withSayings puts what workers say of themselves below their lines, of which
// the first is the heading.
func (v view) withSayings(lines []string, workers []api.Worker) []string {
	out := lines[:1:1]
	for i, w := range workers {
		out = append(out, lines[i+1])
		if w.Says != "" {
			out = append(out, fit([]Span{{"        says: " + Printable(w.Says), Dim}}, v.width, v.paint))
		}
	}
	return out
}

func (v view) upgrades(u api.Upgrades) []string {
	lines := []string{fmt.Sprintf("upgrades  %d succeeded, %d failed, %d rolled back", u.Succeeded, u.Failed, u.RolledBack)}
	if u.Last == nil {
		return lines
	}
	color := Good
	if u.Last.Result == api.Failed {
		color = Bad
	}
	lines = append(lines, fit([]Span{
		{"last      ", ""}, {strings.ReplaceAll(u.Last.Result, "_", " "), color}, {v.lastText(*u.Last), ""},
	}, v.width, v.paint))
	if u.Last.Reason == "" {
		return lines
	}
	const indent = "          "
	for _, line := range Wrap(Printable(u.Last.Reason), v.width-len(indent)) {
		lines = append(lines, Shorten(indent+line, v.width))
	}
	return lines
}

func (v view) lastText(u api.Upgrade) string {
	text := fmt.Sprintf("  generation %d → %d, %s ago", u.From, u.To, v.since(u.At))
	took := Duration(Milliseconds(u.ReadyMS))
	switch {
	case u.Result == api.Failed:
		return text + ", after " + took
	case u.DrainMS == nil:
		return text + ", ready in " + took + ", still draining"
	}
	return text + ", ready in " + took + ", drained in " + Duration(Milliseconds(*u.DrainMS))
}
