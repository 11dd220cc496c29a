package terminal

import (
	"fmt"
	"io"
	"os"
	"sync/atomic"
	"time"

	"github.com/rs/zerolog"
	"github.com/rs/zerolog/diode"
)

// NewLogger writes to w: one JSON object a line, or text for a person. Level
// and format are as the flags of run have them.
func NewLogger(w io.Writer, level, format, name string) (zerolog.Logger, error) {
	lv, err := zerolog.ParseLevel(level)
	if err != nil || level == "" {
		return zerolog.Nop(), fmt.Errorf("cannot use --log-level %q: choose debug, info, warn or error", level)
	}
	if w, err = inFormat(w, format); err != nil {
		return zerolog.Nop(), err
	}
	return lines(w, name).Level(lv), nil
}

func lines(w io.Writer, name string) zerolog.Logger {
	zerolog.TimeFieldFormat = "2006-01-02T15:04:05.000Z07:00"
	return zerolog.New(w).With().Timestamp().Str("name", name).Logger()
}

func inFormat(w io.Writer, format string) (io.Writer, error) {
	seen := IsTerminal(w)
	switch {
	case format == "text" || format == "auto" && seen:
		return zerolog.ConsoleWriter{Out: w, NoColor: !seen || os.Getenv("NO_COLOR") != "", TimeFormat: time.TimeOnly,
			FieldsExclude: []string{"name"}}, nil
	case format != "json" && format != "auto":
		return nil, fmt.Errorf("cannot use --log-format %q: choose auto, json or text", format)
	}
	return w, nil
}

// NewPatientLogger is NewLogger for somebody who must not wait for whoever reads
// the log: a pipe that nobody reads, a terminal that was stopped by Ctrl-S. Lines
// that do not fit into its memory are dropped, and counted in the next one. flush
// waits for what is left, for a moment only.
func NewPatientLogger(w io.Writer, level, format, name string) (log zerolog.Logger, flush func(), err error) {
	const memory, moment = 1000, 100 * time.Millisecond
	if _, err := NewLogger(w, level, format, name); err != nil {
		return zerolog.Nop(), nil, err
	}
	w, _ = inFormat(w, format)
	var dropped atomic.Int64
	queue := diode.NewWriter(&counting{w: w, dropped: &dropped, log: lines(w, name)}, memory, 0, func(n int) { dropped.Add(int64(n)) })
	lv, _ := zerolog.ParseLevel(level)
	return lines(queue, name).Level(lv), func() { Within(moment, func() { _ = queue.Close() }) }, nil
}

// counting says how many lines were dropped before the one that it writes.
type counting struct {
	w       io.Writer
	dropped *atomic.Int64
	log     zerolog.Logger
}

func (c *counting) Write(line []byte) (int, error) {
	if n := c.dropped.Swap(0); n > 0 {
		c.log.Warn().Int64("lines", n).Msg("dropped: the log was not read as fast as it was written")
	}
	return c.w.Write(line)
}

// Within waits for f for so long at most, and leaves it to itself then.
func Within(limit time.Duration, f func()) {
	done := make(chan struct{})
	go func() {
		defer close(done)
		f()
	}()
	select {
	case <-done:
	case <-time.After(limit):
	}
}
