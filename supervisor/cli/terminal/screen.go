// Package terminal is what people see: lines, tables and bars that fit the
// screen, in colour where that is welcome, the live view of a master, and log
// lines. Programs that read the output get the same words without the rest.
package terminal

import (
	"fmt"
	"io"
	"os"
	"sync"
	"time"

	"golang.org/x/term"
)

// Colours, as Paint takes them.
const (
	Good = "\x1b[32m"
	Wait = "\x1b[33m" // for what is on its way
	Bad  = "\x1b[1;31m"
	Dim  = "\x1b[2m"
	Bold = "\x1b[1m"

	colorOff  = "\x1b[0m"
	eraseLine = "\r\x1b[K"
)

// Painter sets text in a colour, or leaves it as it is.
type Painter func(color, text string) string

// Screen is where a command shows itself: lines, and below them, on a terminal
// alone, one line of status that is replaced as things go on. It may be used by
// several goroutines.
type Screen struct {
	out   io.Writer
	live  bool // there can be a line of status
	color bool

	mu    sync.Mutex
	shown string // the line of status
}

// NewScreen shows itself on out.
func NewScreen(out io.Writer) *Screen {
	live := IsTerminal(out) && os.Getenv("TERM") != "dumb"
	return &Screen{out: out, live: live, color: live && os.Getenv("NO_COLOR") == ""}
}

// IsTerminal tells whether what is written to w is seen by a person.
func IsTerminal(w io.Writer) bool {
	f, ok := w.(*os.File)
	return ok && term.IsTerminal(int(f.Fd()))
}

// Live tells whether there is a line of status.
func (s *Screen) Live() bool { return s.live }

// NoStatus leaves the line of status out, where others write to the terminal.
func (s *Screen) NoStatus() { s.live = false }

// Paint is a Painter: it sets text in a colour where that is welcome.
func (s *Screen) Paint(color, text string) string {
	if !s.color || color == "" || text == "" {
		return text
	}
	return color + text + colorOff
}

// Width is the number of columns, 80 where it is not known.
func (s *Screen) Width() int {
	width, _ := s.size()
	return width
}

func (s *Screen) size() (width, height int) {
	if f, ok := s.out.(*os.File); ok {
		if width, height, err := term.GetSize(int(f.Fd())); err == nil && width > 0 && height > 0 {
			return width, height
		}
	}
	return 80, 24
}

// Println writes lines that stay.
func (s *Screen) Println(text string) {
	s.beside(func() { fmt.Fprintln(s.out, text) })
}

// beside runs write while the line of status is out of the way.
func (s *Screen) beside(write func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.shown != "" {
		io.WriteString(s.out, eraseLine)
	}
	write()
	io.WriteString(s.out, s.shown)
}

// Follow draws the line of status now and then until end is called, which
// takes it away.
func (s *Screen) Follow(pace time.Duration, line func() string) (end func()) {
	if !s.live {
		return func() {}
	}
	quit := make(chan struct{})
	var drawing sync.WaitGroup
	drawing.Go(func() {
		ticker := time.NewTicker(pace)
		defer ticker.Stop()
		for {
			s.status(line())
			select {
			case <-ticker.C:
			case <-quit:
				s.status("")
				return
			}
		}
	})
	return sync.OnceFunc(func() { close(quit); drawing.Wait() })
}

func (s *Screen) status(line string) {
	const cursor = 1
	line = Shorten(line, s.Width()-cursor)
	s.mu.Lock()
	defer s.mu.Unlock()
	if line != s.shown {
		s.shown = line
		io.WriteString(s.out, eraseLine+line)
	}
}

// Beside returns a writer to the same terminal that leaves the line of status
// whole.
func (s *Screen) Beside(to io.Writer) io.Writer { return besideWriter{s, to} }

type besideWriter struct {
	screen *Screen
	to     io.Writer
}

func (b besideWriter) Write(p []byte) (n int, err error) {
	b.screen.beside(func() { n, err = b.to.Write(p) })
	return n, err
}
