package supervisor

import (
	"fmt"
	"time"

	"github.com/moult/moult/fdpass"
)

func (s *Supervisor) afterFailure() string {
	if s.phase == phaseLastHope {
		return "upgrade failed; nobody serves, and one more upgrade follows"
	}
	return fmt.Sprintf("upgrade failed; generation %d keeps serving", s.number())
}

// tell writes the one line of a change of the master's own state.
func (s *Supervisor) tell(from phase, reason, message string) { s.tellOf(from, reason, message, false) }

func (s *Supervisor) complain(from phase, reason, message string) {
	s.tellOf(from, reason, message, true)
}

func (s *Supervisor) tellOf(from phase, reason, message string, trouble bool) {
	s.shown = s.number()
	now := time.Now()
	s.report(Transition{Generation: s.number(), From: from.String(), To: s.phase.String(), Reason: reason, Took: now.Sub(s.since), Trouble: trouble}, message)
	s.since = now
}

// number is the generation that serves; before the first does, the first.
func (s *Supervisor) number() int {
	switch {
	case s.serving != nil:
		return s.serving.number
	case s.next != nil:
		return s.next.number
	}
	return s.shown
}

// report writes the one line of a transition, and tells who asked to hear.
func (s *Supervisor) report(t Transition, message string) {
	line := s.log.WithLevel(t.level()).Int("generation", t.Generation)
	if t.PID != 0 {
		line = line.Int("pid", t.PID)
	}
	if t.From != "" {
		line = line.Str("from", t.From)
	}
	line = line.Str("to", t.To)
	if t.Reason != "" {
		line = line.Str("reason", t.Reason)
	}
	if t.Took > 0 {
		line = line.Str("took", rounded(t.Took))
	}
	line.Msg(message)
	if s.cfg.OnTransition != nil {
		s.cfg.OnTransition(t)
	}
}

// rounded is a duration with three digits, as a person reads it.
func rounded(d time.Duration) string {
	unit := time.Duration(1)
	for unit*1000 <= d {
		unit *= 10
	}
	return d.Round(unit).String()
}

func (s *Supervisor) logSockets() {
	for _, sock := range s.sockets {
		s.logSocket(sock)
	}
}

func (s *Supervisor) logSocket(sock *fdpass.Socket) {
	how, why := sock.How()
	line := s.log.Info().Str("socket", sock.Name()).Str("network", sock.Network()).Str("address", sock.Bound()).Str("handover", string(how))
	if sock.Learned() {
		line = line.Bool("intercepted", true)
	}
	if why != "" {
		line = line.Str("reason", why)
	}
	line.Msg("listening")
}
