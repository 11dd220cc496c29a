package worker

import (
	"fmt"
	"strings"
	"time"
)

// Result says how a worker ended.
type Result struct {
	Reason   string        // what began the end: "signal terminated", "upgrade", the word given to Drain
	Upgraded bool          // another process of the same program goes on with the sockets
	Killed   bool          // a second signal, or Kill, cut the end short
	Took     time.Duration // from the trigger to the end
	Cut      []Cut         // what was closed by force; empty if all ended gracefully
	Errors   []error       // hooks that failed (*HookError), servers that could not serve
}

// A Cut is a connection that was closed by force, or a hold that was not
// released in time.
type Cut struct {
	State   string // "in a request", "hijacked", "open", "held" and so on
	Request string // method and target where one was in progress; the name of a hold
	Local   string // addresses; empty for a hold
	Remote  string
}

func (c Cut) String() string {
	s := c.State
	if c.Request != "" {
		s += " " + c.Request
	}
	if c.Remote != "" {
		s += " from " + c.Remote
	}
	return s
}

// Err is nil if nothing was cut and nothing failed, and otherwise names all
// that was.
func (r Result) Err() error {
	if len(r.Cut)+len(r.Errors) == 0 {
		return nil
	}
	var parts []string
	for _, c := range r.Cut {
		parts = append(parts, "cut: "+c.String())
	}
	for _, err := range r.Errors {
		parts = append(parts, err.Error())
	}
	return &resultError{Result: r, text: "cannot end gracefully: " + strings.Join(parts, "; ")}
}

// A resultError unwraps to the errors in it.
type resultError struct {
	Result
	text string
}

func (e *resultError) Error() string   { return e.text }
func (e *resultError) Unwrap() []error { return e.Errors }

// String is a line for the log.
func (r Result) String() string {
	if len(r.Cut) == 0 {
		return fmt.Sprintf("all connections ended gracefully in %v", r.Took.Round(time.Millisecond))
	}
	return fmt.Sprintf("time is over after %v: %d cut", r.Took.Round(time.Millisecond), len(r.Cut))
}
