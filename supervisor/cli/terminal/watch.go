package terminal

import (
	"context"
	"fmt"
	"io"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"time"

	"golang.org/x/term"

	"github.com/moult/moult/supervisor/control/api"
)

// How often the live view looks: while connections move, and else.
const (
	busyPace = 250 * time.Millisecond
	calmPace = time.Second
)

// Words to the terminal, of ECMA-48 and xterm: the other screen, so that what
// was on this one comes back; no cursor; all of a frame at once where the
// terminal can do that.
const (
	enterScreen = "\x1b[?1049h\x1b[?25l"
	leaveScreen = "\x1b[?25h\x1b[?1049l"
	beginFrame  = "\x1b[?2026h\x1b[H"
	endFrame    = "\x1b[J\x1b[?2026l"
	eraseRest   = "\x1b[K"
)

// Watch shows a master's status until the user has seen enough. It outlives the
// master: whoever watches wants to see that it comes back.
func (s *Screen) Watch(look func(context.Context) (api.Status, error)) {
	ctx, cancel := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM, syscall.SIGHUP)
	defer cancel()
	resized := make(chan os.Signal, 1)
	signal.Notify(resized, syscall.SIGWINCH)
	defer signal.Stop(resized)
	defer rawTerminal()()
	io.WriteString(s.out, enterScreen)
	defer io.WriteString(s.out, leaveScreen)
	w := watcher{screen: s}
	w.run(ctx, keys(os.Stdin), resized, func() (api.Status, error) { return look(ctx) })
}

// rawTerminal lets keys through as they are pressed, and does not show them.
func rawTerminal() (restore func()) {
	fd := int(os.Stdin.Fd())
	before, err := term.MakeRaw(fd)
	if err != nil {
		return func() {} // not a terminal: a signal ends the view
	}
	return func() { _ = term.Restore(fd, before) }
}

// keys reads what is pressed. Its goroutine ends with the process: nothing
// else ends a read from a terminal.
func keys(in io.Reader) <-chan byte {
	pressed := make(chan byte)
	go func() {
		var b [1]byte
		for {
			if n, err := in.Read(b[:]); err != nil || n == 0 {
				return
			}
			pressed <- b[0]
		}
	}()
	return pressed
}

func leaves(key byte) bool {
	const ctrlC, ctrlD, escape = 3, 4, 27
	return key == 'q' || key == 'Q' || key == ctrlC || key == ctrlD || key == escape
}

// watcher is the live view.
type watcher struct {
	screen *Screen
	last   api.Status
	err    error // why last is old
	bars   bars
}

func (w *watcher) run(ctx context.Context, pressed <-chan byte, resized <-chan os.Signal, look func() (api.Status, error)) {
	looks := time.NewTimer(0)
	defer looks.Stop()
	for {
		select {
		case <-looks.C:
			w.take(look())
			looks.Reset(w.pace())
		case key := <-pressed:
			if leaves(key) {
				return
			}
		case <-resized:
		case <-ctx.Done():
			return
		}
		w.draw(time.Now())
	}
}

func (w *watcher) take(s api.Status, err error) {
	if w.err = err; err == nil {
		w.last = s
		w.bars.take(s.Workers)
	}
}

func (w *watcher) pace() time.Duration {
	for _, worker := range w.last.Workers {
		if worker.State != api.Serving && w.err == nil {
			return busyPace
		}
	}
	return calmPace
}

func (w *watcher) draw(now time.Time) {
	_, height := w.screen.size()
	var b strings.Builder
	b.WriteString(beginFrame)
	for i, line := range w.frame(now, height) {
		if i > 0 {
			b.WriteString("\r\n")
		}
		b.WriteString(line + eraseRest)
	}
	b.WriteString(endFrame)
	io.WriteString(w.screen.out, b.String())
}

// frame is what is on the screen: the bars first, and as much of the rest as
// fits above the last line.
func (w *watcher) frame(now time.Time, height int) []string {
	v := w.screen.view(now)
	var lines []string
	if w.last.PID != 0 { // it has answered once
		lines = append(lines, v.head(w.last), "")
		lines = append(lines, w.bars.lines(v)...)
		lines = append(lines, v.status(w.last)[1:]...)
	}
	const foot = 2
	if room := max(height-foot, 1); len(lines) > room {
		lines = append(lines[:room-1], v.paint(Dim, fmt.Sprintf("… %d more lines", len(lines)-room+1)))
	}
	for len(lines) < height-1 {
		lines = append(lines, "")
	}
	return append(lines, w.footer(v))
}

func (w *watcher) footer(v view) string {
	if w.err != nil {
		return fit([]Span{{"no answer: " + w.err.Error() + "; still trying", Bad}}, v.width, v.paint)
	}
	return fit([]Span{{"q leaves", Dim}, {"  " + v.now.Format(time.TimeOnly), Dim}}, v.width, v.paint)
}
