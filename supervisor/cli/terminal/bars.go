package terminal

import (
	"fmt"
	"slices"
	"strings"

	"github.com/moult/moult/supervisor/control/api"
)

// bars are the connections of each generation, all to one scale, so that what
// the old one loses is seen to grow at the new one.
type bars struct {
	rows []bar   // newest generation first
	full float64 // connections that fill the screen's width
}

type bar struct {
	generation  int
	state       string // of the worker that is furthest in its life
	connections int    // -1: the kernel does not say
	workers     int
}

// stages are the states in the order of a life.
var stages = []string{"starting", "serving", "draining", "killing"}

func (b *bars) take(workers []api.Worker) {
	b.rows = nil
	total := 0
	for _, w := range workers {
		i := slices.IndexFunc(b.rows, func(r bar) bool { return r.generation == w.Generation })
		if i < 0 {
			b.rows = append(b.rows, bar{generation: w.Generation, state: w.State})
			i = len(b.rows) - 1
		}
		b.rows[i].add(w)
		if w.Connections != nil {
			total += *w.Connections
		}
	}
	slices.SortFunc(b.rows, func(x, y bar) int { return y.generation - x.generation })
	// A scale that followed every change would hide the change.
	const memory = 0.98
	b.full = max(b.full*memory, float64(total), 1)
}

func (r *bar) add(w api.Worker) {
	r.workers++
	if slices.Index(stages, w.State) > slices.Index(stages, r.state) {
		r.state = w.State
	}
	if w.Connections == nil {
		r.connections = -1
	} else if r.connections >= 0 {
		r.connections += *w.Connections
	}
}

// lines draws the bars in two columns of words and one of blocks.
func (b *bars) lines(v view) []string {
	const words, number = 25, 9
	room := max(v.width-words-number, 1)
	lines := []string{v.paint(Dim, "CONNECTIONS")}
	for _, r := range b.rows {
		color := stateColors[r.state]
		count := "?"
		if r.connections >= 0 {
			count = Thousands(r.connections)
		}
		lines = append(lines, fit([]Span{
			{fmt.Sprintf("generation %-4d ", r.generation), ""}, {fmt.Sprintf("%-9s", r.state), color},
			{fmt.Sprintf("%-*s", room, blocks(float64(max(r.connections, 0))/b.full, room)), color}, {fmt.Sprintf("%*s", number, count), Bold},
		}, v.width, v.paint))
	}
	return lines
}

// blocks draws a share of a width, to an eighth of a character.
func blocks(share float64, width int) string {
	const parts = 8
	eighths := []string{"", "▏", "▎", "▍", "▌", "▋", "▊", "▉"}
	n := min(int(share*float64(width)*parts+0.5), width*parts)
	if n == 0 && share > 0 {
		n = 1
	}
	return strings.Repeat("█", n/parts) + eighths[n%parts]
}
