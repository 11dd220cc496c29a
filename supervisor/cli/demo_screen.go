package cli

import (
	"fmt"
	"io"
	"os"
	"strings"
	"sync"
	"time"
	"unicode/utf8"

	"github.com/rs/zerolog"
	"golang.org/x/sys/unix"
)

// screen is where the demo shows itself: lines, and below them, on a terminal,
// one line that is drawn again and again.
type screen struct {
	mu    sync.Mutex
	out   io.Writer
	live  bool   // a line of progress can be redrawn
	color bool   // colours are welcome
	shown string // the line of progress
}

const (
	colorGood = "\x1b[32m"
	colorBad  = "\x1b[1;31m"
	colorDim  = "\x1b[2m"
	colorBold = "\x1b[1m"
	colorOff  = "\x1b[0m"

	eraseLine = "\r\x1b[K"
)

// newScreen shows no line of progress where log lines would come between.
func newScreen(out io.Writer, logged bool) *screen {
	terminal := isTerminal(out) && os.Getenv("TERM") != "dumb"
	return &screen{out: out, live: terminal && !logged, color: terminal && os.Getenv("NO_COLOR") == ""}
}

// paint sets text in a colour where that is welcome.
func (s *screen) paint(color, text string) string {
	if !s.color || color == "" {
		return text
	}
	return color + text + colorOff
}

func (s *screen) println(text string) {
	s.beside(func() { fmt.Fprintln(s.out, text) })
}

// beside runs write while the line of progress is out of the way.
func (s *screen) beside(write func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.shown != "" {
		io.WriteString(s.out, eraseLine)
	}
	write()
	io.WriteString(s.out, s.shown)
}

// progress draws the line anew; an empty one is the end of it.
func (s *screen) progress(line string) {
	if !s.live {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.shown = line
	io.WriteString(s.out, eraseLine+line)
}

// width is the number of columns, 80 where it is not known.
func (s *screen) width() int {
	f, ok := s.out.(*os.File)
	if !ok {
		return 80
	}
	size, err := unix.IoctlGetWinsize(int(f.Fd()), unix.TIOCGWINSZ)
	if err != nil || size.Col == 0 {
		return 80
	}
	return int(size.Col)
}

// logger is the master's: all of it where that was asked for, else what went
// wrong, above the line of progress.
func (s *screen) logger(stderr io.Writer, verbose bool) (zerolog.Logger, error) {
	if verbose {
		return newLogger(stderr, "info", "auto", "demo")
	}
	return newLogger(besideWriter{s, stderr}, "error", "text", "demo")
}

type besideWriter struct {
	screen *screen
	to     io.Writer
}

func (b besideWriter) Write(p []byte) (n int, err error) {
	b.screen.beside(func() { n, err = b.to.Write(p) })
	return n, err
}

// draw keeps the line of progress up to date until the function that it
// returns is called.
func (d *demoRun) draw() (end func()) {
	if !d.screen.live {
		return func() {}
	}
	const pace = 100 * time.Millisecond
	quit := make(chan struct{})
	var drawing sync.WaitGroup
	drawing.Go(func() {
		ticker := time.NewTicker(pace)
		defer ticker.Stop()
		for {
			d.screen.progress(d.progressLine())
			select {
			case <-ticker.C:
			case <-quit:
				d.screen.progress("")
				return
			}
		}
	})
	return func() {
		close(quit)
		drawing.Wait()
	}
}

// counted is what all clients have met so far.
func (d *demoRun) counted() (requests, failures int) {
	d.mu.Lock()
	streams := d.streams
	d.mu.Unlock()
	for _, s := range streams {
		r := s.traffic.Snapshot()
		requests += r.Requests()
		failures += r.Failures()
	}
	return requests, failures
}

func (d *demoRun) progressLine() string {
	const ctrlC = 3 // what the terminal writes behind the line, and the cursor
	requests, failures := d.counted()
	return progressLine(d.now(), d.upgrades, requests, failures, d.screen.width()-ctrlC, d.screen.paint)
}

// progressLine fits into any width that has room for the count of upgrades and
// that of failures; the bar takes what the words leave, but not so much that it
// would shrink as the numbers grow.
func progressLine(step demoStep, upgrades, requests, failures, width int, paint painter) string {
	const longestBar, longestDoing = 14, 10
	head := fmt.Sprintf("%d/%d %-*s ", step.done, upgrades, longestDoing, step.doing)
	tail := fmt.Sprintf(" generation %d · %s requests", step.generation, thousands(requests))
	verdict := " · " + plural(failures, "failure")
	room := width - utf8.RuneCountInString(head+tail+verdict)
	if room < 0 {
		head, tail, room = fmt.Sprintf("%d/%d", step.done, upgrades), "", 0
	}
	bar := min(room, longestBar)
	halves := 2 * step.done
	if step.half {
		halves++
	}
	full := bar * halves / (2 * upgrades)
	color := colorGood
	if failures > 0 {
		color = colorBad
	}
	return head + paint(colorGood, strings.Repeat("━", full)) + paint(colorDim, strings.Repeat("─", bar-full)) + tail + paint(color, verdict)
}

// tellUpgrade is the progress of those who have no line that can be redrawn.
func (d *demoRun) tellUpgrade(n int, ready, drained time.Duration) {
	if d.screen.live {
		return
	}
	requests, failures := d.counted()
	d.screen.println(fmt.Sprintf("upgrade %d/%d  ready %8s  drained %8s %10s requests  %s",
		n, d.upgrades, milliseconds(ready), milliseconds(drained), thousands(requests), plural(failures, "failure")))
}
