// Package ready says whether a worker is ready, from what was seen of it. It
// looks at nothing itself.
package ready

import (
	"strings"
	"time"
)

// How says what makes a worker ready.
type How string

const (
	// Auto is being seen accepting on every socket, and READY=1 as well once
	// this or an earlier generation has sent one; READY=1 alone where accepting
	// cannot be seen.
	Auto How = "auto"
	// Notify is READY=1 by sd_notify.
	Notify How = "notify"
	// Accept is being seen accepting on every socket.
	Accept How = "accept"
	// Alive is having lived for some time.
	Alive How = "alive"
)

// Socket is one that the worker is to accept on.
type Socket struct {
	Name   string // as a person knows it
	Stream bool
	Given  bool // the worker has not made it itself
	Seen   bool // accepting
	Hidden bool // cannot be seen
}

// Worker is what is known of one on its way to being ready.
type Worker struct {
	How           How
	Alive         time.Duration // How Alive: how long it has to live
	Lived         time.Duration
	Notified      bool // READY=1 has come
	ExpectsNotify bool // an earlier one of its kind has sent READY=1
	Sockets       []Socket
	Lacks         []string // addresses that it does not listen on, and that clients use
	Waits         int      // sockets that it has bound and does not listen on yet
}

// Verdict tells whether the worker is ready, and by what. It is never ready
// while an address that clients use is without it, whatever it says, except
// where its time alone counts.
func (w Worker) Verdict() (by How, ok bool) {
	accepting, hidden := w.accepting()
	switch {
	case w.How == Alive:
		return Alive, w.Lived >= w.Alive
	case len(w.Lacks) > 0 || w.Waits > 0:
		return "", false
	case w.How == Notify:
		return Notify, w.Notified
	case w.How == Accept:
		return Accept, accepting
	case accepting && w.Notified:
		return Notify, true
	case accepting:
		return Accept, !w.ExpectsNotify
	}
	return Notify, w.Notified && (hidden || len(w.counted()) == 0)
}

func (w Worker) accepting() (all, hidden bool) {
	counted := w.counted()
	all = len(counted) > 0
	for _, s := range counted {
		all = all && s.Seen
		hidden = hidden || s.Hidden && !s.Seen
	}
	return all, hidden
}

// counted leaves datagram sockets out beside stream sockets: those of a
// resolver come and go.
func (w Worker) counted() []Socket {
	var streams []Socket
	for _, s := range w.Sockets {
		if s.Stream {
			streams = append(streams, s)
		}
	}
	if len(streams) > 0 {
		return streams
	}
	return w.Sockets
}

// Missing says what a worker that did not become ready in time lacked.
func (w Worker) Missing() string {
	if len(w.Lacks) > 0 && w.How != Alive {
		return "it does not listen on " + strings.Join(w.Lacks, ", ") + ", where the old generation does"
	}
	if w.How == Notify && !w.Notified {
		return "it has not sent READY=1"
	}
	var silent, hidden []string
	advice := ""
	for _, s := range w.counted() {
		switch {
		case s.Seen:
		case s.Hidden:
			hidden = append(hidden, s.Name)
		default:
			silent = append(silent, s.Name)
			if s.Given {
				advice = "; does it use the socket that it was given?"
			}
		}
	}
	const waits = "it has bound a socket and does not listen on it"
	switch {
	case w.Waits > 0 && (w.How == Notify || len(w.Sockets) == 0):
		return waits
	case len(w.Sockets) == 0:
		return "it has bound no address; a program without one needs --ready alive=D or notify"
	case len(silent) > 0:
		return "nobody accepts on " + strings.Join(silent, ", ") + advice
	case len(hidden) > 0:
		but := "it cannot be seen whether it accepts on " + strings.Join(hidden, ", ")
		if !w.Notified {
			but += ", and it has not sent READY=1"
		}
		return but + "; choose --ready notify or alive=D"
	case w.Waits > 0:
		return waits
	case w.ExpectsNotify:
		return "it accepts, but has not sent READY=1 as an earlier generation did; --ready accept does without"
	}
	return "it did not live long enough for --ready alive"
}
