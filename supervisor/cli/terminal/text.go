package terminal

import (
	"fmt"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"
)

// A Span is text in one colour, or none.
type Span struct{ Text, Color string }

// fit joins spans and cuts what is wider than the screen.
func fit(spans []Span, width int, paint Painter) string {
	var b strings.Builder
	for _, s := range spans {
		text := Shorten(s.Text, width)
		b.WriteString(paint(s.Color, text))
		if text != s.Text {
			break
		}
		width -= utf8.RuneCountInString(text)
	}
	return b.String()
}

// Shorten cuts text to a width, with a sign that there was more.
func Shorten(text string, width int) string {
	if utf8.RuneCountInString(text) <= width {
		return text
	}
	if width < 1 {
		return ""
	}
	return string([]rune(text)[:width-1]) + "…"
}

// Wrap breaks text into lines of at most width columns, between words.
func Wrap(text string, width int) []string {
	var lines []string
	line := ""
	for _, word := range strings.Fields(text) {
		if line != "" && utf8.RuneCountInString(line)+1+utf8.RuneCountInString(word) > width {
			lines, line = append(lines, line), ""
		}
		if line != "" {
			line += " "
		}
		line += word
	}
	return append(lines, line)
}

// Printable keeps what a worker has said from steering the terminal.
func Printable(text string) string {
	return strings.Map(func(r rune) rune {
		if !strconv.IsPrint(r) {
			return ' '
		}
		return r
	}, text)
}

// Duration has at most two units, and no more digits than matter.
func Duration(d time.Duration) string {
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

// Milliseconds are what the API writes for a duration.
func Milliseconds(ms float64) time.Duration { return time.Duration(ms * float64(time.Millisecond)) }

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

// Thousands sets a comma after every three digits.
func Thousands(n int) string {
	s := strconv.Itoa(n)
	for i := len(s) - 3; i > 0; i -= 3 {
		s = s[:i] + "," + s[i:]
	}
	return s
}

// Plural is a number of things.
func Plural(n int, word string) string {
	if n == 1 {
		return "1 " + word
	}
	return Thousands(n) + " " + word + "s"
}
