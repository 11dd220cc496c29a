package cli

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
	paint painter
	now   time.Time
}

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
	api.Serving: colorGood, api.Backoff: colorBad, "killing": colorBad,
	"draining": colorWait, api.Starting: colorWait, api.Upgrading: colorWait, api.Stopping: colorWait,
}

// colorWait is for what is on its way.
const colorWait = "\x1b[33m"

func (v view) head(s api.Status) string {
	return fit([]span{
		{s.Name, colorBold}, {"  ", ""}, {s.State, stateColors[s.State]},
		{fmt.Sprintf("  generation %d  pid %d  up %s  ", s.Generation, s.PID, v.since(s.StartedAt)), ""},
		{"moult " + s.Version, colorDim},
	}, v.width, v.paint)
}

func (v view) since(t time.Time) string { return shortDuration(max(v.now.Sub(t), 0)) }

func (v view) sockets(sockets []api.Socket) []string {
	t := table{right: "llrl", elastic: 1}
	t.heads("SOCKET", "ADDRESS", "QUEUED", "HANDOVER")
	for _, s := range sockets {
		queue := span{fmt.Sprintf("%d/%d", s.Queued, s.Backlog), ""}
		if s.Backlog > 0 && s.Queued > s.Backlog/2 {
			queue.color = colorBad
		}
		how := s.Handover
		if s.Intercepted {
			how += ", intercepted"
		}
		t.add(span{s.Name, ""}, span{s.Network + " " + s.Address, ""}, queue, span{how, ""})
	}
	return t.lines(v.width, v.paint)
}

// commandRoom is what has to be left beside the other columns to show the
// workers' commands.
const commandRoom = 24

func (v view) workers(workers []api.Worker) []string {
	t := table{right: "rrllrrrr", elastic: 3}
	heads := []string{"WORKER", "GEN", "STATE", "READY BY", "AGE", "CONNS", "MEMORY", "RESTARTS"}
	const others = 76
	wide := v.width >= others+commandRoom
	if wide {
		t.right, t.elastic, heads = t.right+"l", len(heads), append(heads, "COMMAND")
	}
	t.heads(heads...)
	for _, w := range workers {
		cells := v.worker(w)
		if wide {
			cells = append(cells, span{strings.Join(w.Command, " "), colorDim})
		}
		t.add(cells...)
	}
	return v.withSayings(t.lines(v.width, v.paint), workers)
}

func (v view) worker(w api.Worker) []span {
	connections := "?"
	if w.Connections != nil {
		connections = strconv.Itoa(*w.Connections)
	}
	restarts := span{strconv.Itoa(w.Restarts), ""}
	if w.Restarts > 0 {
		restarts.color = colorWait
	}
	state := w.State
	if left := v.timeLeft(w); left != "" {
		state += " " + left
	}
	return []span{
		{strconv.Itoa(w.PID), ""}, {strconv.Itoa(w.Generation), ""}, {state, stateColors[w.State]}, {w.ReadyBy, ""},
		{v.since(w.StartedAt), ""}, {connections, ""}, {bytesText(w.RSSBytes), ""}, restarts,
	}
}

// timeLeft is how long a worker is left in its state.
func (v view) timeLeft(w api.Worker) string {
	if w.Deadline == nil || !w.Deadline.After(v.now) {
		return ""
	}
	return shortDuration(w.Deadline.Sub(v.now).Round(time.Second))
}

// withSayings puts what workers say of themselves below their lines, of which
// the first is the heading.
func (v view) withSayings(lines []string, workers []api.Worker) []string {
	out := lines[:1:1]
	for i, w := range workers {
		out = append(out, lines[i+1])
		if w.Says != "" {
			out = append(out, fit([]span{{"        says: " + printable(w.Says), colorDim}}, v.width, v.paint))
		}
	}
	return out
}

// printable keeps what a worker has said from steering the terminal.
func printable(text string) string {
	return strings.Map(func(r rune) rune {
		if !strconv.IsPrint(r) {
			return ' '
		}
		return r
	}, text)
}

func (v view) upgrades(u api.Upgrades) []string {
	lines := []string{fmt.Sprintf("upgrades  %d succeeded, %d failed, %d rolled back", u.Succeeded, u.Failed, u.RolledBack)}
	if u.Last == nil {
		return lines
	}
	color := colorGood
	if u.Last.Result == api.Failed {
		color = colorBad
	}
	lines = append(lines, fit([]span{
		{"last      ", ""}, {strings.ReplaceAll(u.Last.Result, "_", " "), color}, {v.lastText(*u.Last), ""},
	}, v.width, v.paint))
	if u.Last.Reason == "" {
		return lines
	}
	const indent = "          "
	for _, line := range wrap(printable(u.Last.Reason), v.width-len(indent)) {
		lines = append(lines, shorten(indent+line, v.width))
	}
	return lines
}

func (v view) lastText(u api.Upgrade) string {
	text := fmt.Sprintf("  generation %d → %d, %s ago", u.From, u.To, v.since(u.At))
	took := shortDuration(fromMilliseconds(u.ReadyMS))
	switch {
	case u.Result == api.Failed:
		return text + ", after " + took
	case u.DrainMS == nil:
		return text + ", ready in " + took + ", still draining"
	}
	return text + ", ready in " + took + ", drained in " + shortDuration(fromMilliseconds(*u.DrainMS))
}

func fromMilliseconds(ms float64) time.Duration {
	return time.Duration(ms * float64(time.Millisecond))
}

// bytesText is a size with three digits, in the units of top and ps.
func bytesText(n uint64) string {
	const step = 1024
	value, units := float64(n), []string{"B", "K", "M", "G", "T"}
	for value >= 1000 && len(units) > 1 {
		value, units = value/step, units[1:]
	}
	if value < 10 && units[0] != "B" {
		return fmt.Sprintf("%.1f%s", value, units[0])
	}
	return fmt.Sprintf("%.0f%s", value, units[0])
}
