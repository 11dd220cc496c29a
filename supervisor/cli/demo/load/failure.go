package load

import (
	"errors"
	"io"
	"net"
	"strings"
	"syscall"
)

// Class is a way in which a request can fail.
type Class int

const (
	Refused  Class = iota // nobody listens, or the unix socket's name is gone
	Reset                 // the connection was reset
	Short                 // the connection ended before the answer was complete
	Wrong                 // not HTTP, or not the answer that was expected
	TimedOut              // no complete answer in time
	Other                 // anything else, for example no local port left
	classes
)

var classNames = [classes]string{"refused", "reset", "short", "wrong answer", "time-out", "other"}

func (c Class) String() string { return classNames[c] }

// Classes are all there are, in the order of a table's columns.
func Classes() []Class { return []Class{Refused, Reset, Short, Wrong, TimedOut, Other} }

// wrongAnswer marks what arrived whole and is not what was asked for.
type wrongAnswer struct{ cause error }

func (w *wrongAnswer) Error() string { return "wrong answer: " + w.cause.Error() }
func (w *wrongAnswer) Unwrap() error { return w.cause }

func classify(err error) Class {
	var wrong *wrongAnswer
	var network net.Error
	switch {
	case errors.As(err, &wrong):
		return Wrong
	case errors.Is(err, syscall.ECONNREFUSED), errors.Is(err, syscall.ENOENT):
		return Refused
	case errors.Is(err, syscall.ECONNRESET), errors.Is(err, syscall.EPIPE):
		return Reset
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF):
		return Short
	case errors.As(err, &network) && network.Timeout():
		return TimedOut
	default:
		return Other
	}
}

// oneLine keeps an error message fit for a table.
func oneLine(err error) string { return strings.ReplaceAll(err.Error(), "\n", " ") }
