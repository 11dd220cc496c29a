package cli

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/moult/moult/supervisor/load"
)

// demoResult is what came of a demonstration.
type demoResult struct {
	demoOptions
	done    int  // upgrades
	steered bool // each generation had a socket of its own
	rows    []demoRow
	total   load.Report
	fast    load.Report           // without the slow answers
	ready   map[int]time.Duration // each generation's start
	failed  error                 // an upgrade that came to nothing
}

// demoRow is what one kind of clients has met.
type demoRow struct {
	name   string
	report load.Report
}

// painter sets text in a colour, or leaves it as it is.
type painter func(color, text string) string

// err is nil if every upgrade that was begun succeeded and nothing was lost.
func (r *demoResult) err() error {
	lost := r.total.Failures()
	if lost == 0 {
		return r.failed
	}
	total := r.total.Total()
	text := fmt.Sprintf("%s of %s requests failed", thousands(lost), thousands(r.total.Requests()))
	separator := ": "
	for _, class := range load.Classes() {
		if n := total.Failed[class]; n > 0 {
			text += fmt.Sprintf("%s%s %s", separator, thousands(n), class)
			separator = ", "
		}
	}
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
func (r *demoResult) text(paint painter) string {
	return strings.Join([]string{
		"", r.requestTable(paint), r.latencyTable(paint), r.generationTable(paint), r.closing(paint),
	}, "\n")
}

const demoRowHead = "  %-17s%10s"

// demoColumns are the titles of the failures, each as wide as its column.
var demoColumns = map[load.Class]string{
	load.Refused: "  refused", load.Reset: "  reset", load.Short: "  short",
	load.Wrong: "  wrong", load.TimedOut: "  time-out", load.Other: "  other",
}

func (r *demoResult) requestTable(paint painter) string {
	var t strings.Builder
	head := fmt.Sprintf(demoRowHead, "", "requests")
	for _, class := range load.Classes() {
		head += demoColumns[class]
	}
	t.WriteString(paint(colorDim, head) + "\n")
	for _, row := range append(slices.Clone(r.rows), demoRow{"all", r.total}) {
		line := fmt.Sprintf(demoRowHead, row.name, thousands(row.report.Requests()))
		if row.name == "all" {
			line = paint(colorBold, line)
		}
		t.WriteString(line)
		total := row.report.Total()
		for _, class := range load.Classes() {
			n := total.Failed[class]
			t.WriteString(paint(judge(n), fmt.Sprintf("%*s", len(demoColumns[class]), thousands(n))))
		}
		t.WriteString("\n")
	}
	return t.String()
}

// judge is the colour of a number of failures.
func judge(n int) string {
	if n > 0 {
		return colorBad
	}
	return colorGood
}

func (r *demoResult) latencyTable(paint painter) string {
	var t strings.Builder
	t.WriteString(paint(colorDim, fmt.Sprintf(demoRowHead+"%12s%12s%12s", "latency", "answers", "p50", "p99", "max")) + "\n")
	for i := range r.fast.Phases {
		p := &r.fast.Phases[i]
		fmt.Fprintf(&t, demoRowHead+"%12s%12s%12s\n", p.Name, thousands(p.Answered),
			milliseconds(p.Latency(0.5)), milliseconds(p.Latency(0.99)), milliseconds(p.Latency(1)))
	}
	note := "of new and kept connections"
	if r.abrupt {
		note = "of new connections"
	}
	t.WriteString(paint(colorDim, "  "+note+"; the slow answers took what they were asked to") + "\n")
	return t.String()
}

// generationTable shows all generations where there are few, else the first
// and the last.
func (r *demoResult) generationTable(paint painter) string {
	const most, ends = 12, 4
	var t strings.Builder
	t.WriteString(paint(colorDim, fmt.Sprintf(demoRowHead+"%12s", "generation", "answers", "ready in")) + "\n")
	all := r.generations()
	busiest := 0
	for _, g := range all {
		busiest = max(busiest, r.answers(g))
	}
	for i, g := range all {
		switch {
		case len(all) <= most || i < ends || i >= len(all)-ends:
			t.WriteString(r.generationRow(g, busiest, paint))
		case i == ends:
			t.WriteString(r.omittedRow(all[ends : len(all)-ends]))
		}
	}
	return t.String()
}

func (r *demoResult) generationRow(g, busiest int, paint painter) string {
	const longest = 36
	bar := strings.Repeat("━", r.answers(g)*longest/max(busiest, 1))
	return fmt.Sprintf(demoRowHead+"%12s  %s\n", strconv.Itoa(g), thousands(r.answers(g)), milliseconds(r.ready[g]), paint(colorGood, bar))
}

func (r *demoResult) omittedRow(generations []int) string {
	answers := 0
	for _, g := range generations {
		answers += r.answers(g)
	}
	return fmt.Sprintf(demoRowHead+"\n", fmt.Sprintf("%d to %d", generations[0], generations[len(generations)-1]), thousands(answers))
}

// generations lists those that have answered, or were ready to.
func (r *demoResult) generations() []int {
	seen := map[int]bool{}
	for g := range r.ready {
		seen[g] = true
	}
	for name := range r.total.Generations {
		if g, err := strconv.Atoi(name); err == nil {
			seen[g] = true
		}
	}
	return slices.Sorted(maps.Keys(seen))
}

func (r *demoResult) answers(generation int) int {
	return r.total.Generations[strconv.Itoa(generation)]
}

// closing is the moral of the story.
func (r *demoResult) closing(paint painter) string {
	requests, lost := thousands(r.total.Requests()), r.total.Failures()
	switch {
	case lost > 0 && r.abrupt && !r.steered:
		return paint(colorBad, fmt.Sprintf("  It dropped dead %s, one socket for all: %s paid for it.", often(r.done), plural(lost, "request"))) +
			"\n  Steered (without --handover share) not one would have."
	case lost > 0:
		return paint(colorBad, fmt.Sprintf("  It shed its shell %s, and %s got hurt. That is a defect.", often(r.done), plural(lost, "request")))
	case r.failed != nil:
		return paint(colorBad, fmt.Sprintf("  The new shell did not fit; the old one lost none of %s requests.", requests))
	case r.done < r.upgrades:
		return fmt.Sprintf("  Stopped after %s of %s: nothing was lost until then.", thousands(r.done), plural(r.upgrades, "upgrade"))
	case r.abrupt:
		return paint(colorGood, fmt.Sprintf("  It dropped dead %s, and %s requests never heard of it.", often(r.done), requests))
	}
	return paint(colorGood, fmt.Sprintf("  It shed its shell %s, and not one of %s requests noticed.", often(r.done), requests))
}

func often(n int) string {
	switch n {
	case 1:
		return "once"
	case 2:
		return "twice"
	}
	return thousands(n) + " times"
}

// milliseconds has as many decimals as mean something.
func milliseconds(d time.Duration) string {
	ms := float64(d) / float64(time.Millisecond)
	switch {
	case ms < 9.995:
		return fmt.Sprintf("%.2f ms", ms)
	case ms < 99.95:
		return fmt.Sprintf("%.1f ms", ms)
	}
	return thousands(int(ms+0.5)) + " ms"
}

// thousands sets a comma after every three digits.
func thousands(n int) string {
	s := strconv.Itoa(n)
	for i := len(s) - 3; i > 0; i -= 3 {
		s = s[:i] + "," + s[i:]
	}
	return s
}

func plural(n int, word string) string {
	if n == 1 {
		return "1 " + word
	}
	return thousands(n) + " " + word + "s"
}
