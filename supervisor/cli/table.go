package cli

import (
	"strings"
	"unicode/utf8"
)

// A table lays cells out in columns. One column may be elastic: it gives up
// width, down to a few characters, so that lines fit the screen.
type table struct {
	right   string // one letter a column: r is set to the right
	elastic int    // index of the column that shrinks
	rows    [][]span
}

func (t *table) add(cells ...span) { t.rows = append(t.rows, cells) }

func (t *table) heads(names ...string) {
	var cells []span
	for _, name := range names {
		cells = append(cells, span{name, colorDim})
	}
	t.add(cells...)
}

const columnGap = 2

func (t *table) widths(width int) []int {
	const least = 8
	widths := make([]int, len(t.right))
	for _, row := range t.rows {
		for i, cell := range row {
			widths[i] = max(widths[i], utf8.RuneCountInString(cell.text))
		}
	}
	total := columnGap * (len(widths) - 1)
	for _, w := range widths {
		total += w
	}
	if total > width {
		widths[t.elastic] = max(widths[t.elastic]-(total-width), min(least, widths[t.elastic]))
	}
	return widths
}

// lines renders the table into at most width columns where that can be done.
func (t *table) lines(width int, paint painter) []string {
	widths := t.widths(width)
	var lines []string
	for _, row := range t.rows {
		var b strings.Builder
		for i, cell := range row {
			text := shorten(cell.text, widths[i])
			pad := strings.Repeat(" ", widths[i]-utf8.RuneCountInString(text))
			switch {
			case t.right[i] == 'r':
				b.WriteString(pad + paint(cell.color, text))
			case i == len(row)-1:
				b.WriteString(paint(cell.color, text))
			default:
				b.WriteString(paint(cell.color, text) + pad)
			}
			if i < len(row)-1 {
				b.WriteString(strings.Repeat(" ", columnGap))
			}
		}
		lines = append(lines, strings.TrimRight(b.String(), " "))
	}
	return lines
}
