package terminal

import (
	"strings"
	"unicode/utf8"
)

// A Table lays cells out in columns. One column may be elastic: it gives up
// width, down to a few characters, so that lines fit the screen.
type Table struct {
	Align   string // one letter a column: r is set to the right
	Elastic int    // index of the column that shrinks
	rows    [][]Span
}

// Add adds a row.
func (t *Table) Add(cells ...Span) { t.rows = append(t.rows, cells) }

// Heads adds a row of titles.
func (t *Table) Heads(names ...string) {
	var cells []Span
	for _, name := range names {
		cells = append(cells, Span{name, Dim})
	}
	t.Add(cells...)
}

const columnGap = 2

func (t *Table) widths(width int) []int {
	const least = 8
	widths := make([]int, len(t.Align))
	for _, row := range t.rows {
		for i, cell := range row {
			widths[i] = max(widths[i], utf8.RuneCountInString(cell.Text))
		}
	}
	total := columnGap * (len(widths) - 1)
	for _, w := range widths {
		total += w
	}
	if total > width {
		widths[t.Elastic] = max(widths[t.Elastic]-(total-width), min(least, widths[t.Elastic]))
	}
	return widths
}

// Lines renders the table into at most width columns where that can be done.
func (t *Table) Lines(width int, paint Painter) []string {
	widths := t.widths(width)
	var lines []string
	for _, row := range t.rows {
		var b strings.Builder
		for i, cell := range row {
			text := Shorten(cell.Text, widths[i])
			pad := strings.Repeat(" ", widths[i]-utf8.RuneCountInString(text))
			switch {
			case t.Align[i] == 'r':
				b.WriteString(pad + paint(cell.Color, text))
			case i == len(row)-1:
				b.WriteString(paint(cell.Color, text))
			default:
				b.WriteString(paint(cell.Color, text) + pad)
			}
			if i < len(row)-1 {
				b.WriteString(strings.Repeat(" ", columnGap))
			}
		}
		lines = append(lines, strings.TrimRight(b.String(), " "))
	}
	return lines
}
