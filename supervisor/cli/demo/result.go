package demo

import (
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/moult/moult/supervisor/cli/demo/load"
	"github.com/moult/moult/supervisor/cli/terminal"
)

// result is what came of a demonstration.
type result struct {
	options
	done   int  // upgrades
	shared bool // all generations had one socket
	rows   []row
	total  load.Report
	fast   load.Report // without the slow answers
	failed error       // an upgrade that came to nothing
}

// row is what one kind of clients has met.
type row struct {
	name   string
	report load.Report
}

// err is nil if every upgrade that was begun succeeded and nothing was lost.
func (r *result) err() error {
	lost := r.total.Failures()
	if lost == 0 {
		return r.failed
	}
	total := r.total.Total()
	var kinds []string
	for _, class := range load.Classes() {
		if n := total.Failed[class]; n > 0 {
			kinds = append(kinds, fmt.Sprintf("%s %s", terminal.Thousands(n), class))
		}
	}
	text := fmt.Sprintf("%s of %s requests failed: %s", terminal.Thousands(lost), terminal.Thousands(r.total.Requests()), strings.Join(kinds, ", "))
	if len(r.total.Samples) > 0 {
		first := r.total.Samples[0]
		text += fmt.Sprintf("; the first, %s: %s", first.Phase, first.Message)
	}
	if r.failed != nil {
		return fmt.Errorf("%w; %s", r.failed, text)
	}
	return errors.New(text)
}

// text is all that the demo says at its end, no line of it wider than 80
// columns.
func (r *result) text(paint terminal.Painter) string {
	const width, margin = 80, "  "
	lines := []string{""}
	for _, table := range []*terminal.Table{r.requests(), r.latencies()} {
		for _, line := range table.Lines(width-len(margin), paint) {
			lines = append(lines, margin+line)
		}
		lines = append(lines, "")
	}
	return strings.Join(append(lines, margin+paint(terminal.Dim, r.answers()), margin+r.closing(paint)), "\n")
}

func (r *result) requests() *terminal.Table {
	t := &terminal.Table{Align: "lrrrrrrr"}
	heads := []string{"", "requests"}
	for _, class := range load.Classes() {
		heads = append(heads, strings.TrimSuffix(class.String(), " answer"))
	}
	t.Heads(heads...)
	for _, row := range append(slices.Clone(r.rows), row{"all", r.total}) {
		total, color := row.report.Total(), ""
		if row.name == "all" {
			color = terminal.Bold
		}
		cells := []terminal.Span{{Text: row.name, Color: color}, {Text: terminal.Thousands(row.report.Requests()), Color: color}}
		for _, class := range load.Classes() {
			n, color := total.Failed[class], terminal.Good
			if n > 0 {
				color = terminal.Bad
			}
			cells = append(cells, terminal.Span{Text: terminal.Thousands(n), Color: color})
		}
		t.Add(cells...)
	}
	return t
}

// latencies are those that the hand-over may have changed: the slow answers
// took what they were asked to.
func (r *result) latencies() *terminal.Table {
	t := &terminal.Table{Align: "lrrrr"}
	of := "of new and kept"
	if r.abrupt {
		of = "of new"
	}
	t.Heads("latency "+of, "answers", "p50", "p99", "max")
	for i := range r.fast.Phases {
		p := &r.fast.Phases[i]
		t.Add(terminal.Span{Text: p.Name}, terminal.Span{Text: terminal.Thousands(p.Answered)}, terminal.Span{Text: latency(p.Latency(0.5))},
			terminal.Span{Text: latency(p.Latency(0.99))}, terminal.Span{Text: latency(p.Latency(1))})
	}
	return t
}

// answers shows that the new generations did the work.
func (r *result) answers() string {
	var counts []int
	for _, n := range r.total.Generations {
		counts = append(counts, n)
	}
	if len(counts) == 0 {
		return "no generation has answered"
	}
	return fmt.Sprintf("answered by %s, %s to %s requests each", terminal.Plural(len(counts), "generation"),
		terminal.Thousands(slices.Min(counts)), terminal.Thousands(slices.Max(counts)))
}

// closing is the moral of the story.
func (r *result) closing(paint terminal.Painter) string {
	requests, lost := terminal.Thousands(r.total.Requests()), r.total.Failures()
	hurt := terminal.Plural(lost, "request")
	switch {
	case lost > 0 && r.abrupt && r.shared:
		return paint(terminal.Bad, fmt.Sprintf("It dropped dead %s, one socket for all: %s paid for it.", often(r.done), hurt)) +
			"\n  Steered (without --handover share) not one would have."
	case lost > 0:
		return paint(terminal.Bad, fmt.Sprintf("It shed its shell %s, and %s got hurt. That is a defect.", often(r.done), hurt))
	case r.failed != nil:
		return paint(terminal.Bad, fmt.Sprintf("The new shell did not fit; the old one lost none of %s requests.", requests))
	case r.done < r.upgrades:
		return fmt.Sprintf("Stopped after %s of %s: nothing was lost until then.", terminal.Thousands(r.done), terminal.Plural(r.upgrades, "upgrade"))
	case r.abrupt:
		return paint(terminal.Good, fmt.Sprintf("It dropped dead %s, and %s requests never heard of it.", often(r.done), requests))
	}
	return paint(terminal.Good, fmt.Sprintf("It shed its shell %s, and not one of %s requests noticed.", often(r.done), requests))
}

func often(n int) string {
	switch n {
	case 1:
		return "once"
	case 2:
		return "twice"
	}
	return terminal.Thousands(n) + " times"
}

// latency is in milliseconds, with as many decimals as mean something.
func latency(d time.Duration) string {
	ms := float64(d) / float64(time.Millisecond)
	switch {
	case ms < 9.995:
		return strconv.FormatFloat(ms, 'f', 2, 64) + " ms"
	case ms < 99.95:
		return strconv.FormatFloat(ms, 'f', 1, 64) + " ms"
	}
	return terminal.Thousands(int(ms+0.5)) + " ms"
}
