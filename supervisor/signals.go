package supervisor

import (
	"os"
	"os/signal"
	"syscall"

	"golang.org/x/sys/unix"
	"golang.org/x/term"

	"github.com/moult/moult/supervisor/machine"
)

// Signals is what the process was sent. Each kind has a channel of its own, so
// that a storm of one kind never displaces another: SIGHUP and SIGCHLD say the
// same however many come, SIGTERM counts.
type Signals struct {
	hangup chan os.Signal
	child  chan os.Signal
	stop   chan os.Signal
	other  chan os.Signal
	pipe   chan os.Signal // caught, never read
}

// Notify begins to catch signals. Call it before anything else: what comes
// before would have the default effect. SIGHUP stays ignored if it was ignored
// when the process was started (nohup).
func Notify() *Signals {
	const several = 8
	s := &Signals{
		hangup: make(chan os.Signal, 1),
		child:  make(chan os.Signal, 1),
		stop:   make(chan os.Signal, several),
		other:  make(chan os.Signal, several),
		pipe:   make(chan os.Signal, 1),
	}
	if !signal.Ignored(syscall.SIGHUP) {
		signal.Notify(s.hangup, syscall.SIGHUP)
	}
	signal.Notify(s.child, syscall.SIGCHLD)
	signal.Notify(s.stop, syscall.SIGTERM, syscall.SIGINT, syscall.SIGQUIT)
	// A log collector that goes away must not take the master with it: a
	// write to its pipe fails, and that is all.
	signal.Notify(s.pipe, syscall.SIGPIPE)
	signal.Notify(s.other, syscall.SIGUSR1, syscall.SIGUSR2, syscall.SIGWINCH, syscall.SIGTTIN, syscall.SIGTTOU)
	return s
}

// Close gives the signals their default effect back.
func (s *Signals) Close() {
	for _, c := range []chan os.Signal{s.hangup, s.child, s.stop, s.other, s.pipe} {
		signal.Stop(c)
	}
}

func (s *Supervisor) stopBySignal(sig os.Signal) {
	s.take(machine.StopAsked{Reason: unix.SignalName(sig.(syscall.Signal)), Now: sig == syscall.SIGQUIT})
}

func (s *Supervisor) otherSignal(sig os.Signal) {
	switch sig {
	case syscall.SIGTTIN:
		s.take(machine.ScaleAsked{By: +1})
	case syscall.SIGTTOU:
		s.take(machine.ScaleAsked{By: -1})
	case syscall.SIGUSR2:
		s.log.Warn().Msg("SIGUSR2 would replace moult's own program, which this version cannot do: restart it to get a new moult; SIGHUP upgrades the workers")
	case syscall.SIGUSR1:
		s.passOn(syscall.SIGUSR1)
	case syscall.SIGWINCH:
		// A terminal sends it at each change of its size.
		if !onTerminal() {
			s.passOn(syscall.SIGWINCH)
		}
	}
}

// passOn forwards a signal that means something to the worker alone, except
// where it would drain it.
func (s *Supervisor) passOn(sig syscall.Signal) {
	if sig == s.cfg.DrainSignal {
		s.log.Warn().Stringer("signal", sig).Msg("not passed on: it is the workers' drain signal; SIGHUP upgrades, SIGTERM stops")
		return
	}
	s.take(machine.PassOn{Signal: machine.Signal(sig)})
}

func onTerminal() bool {
	for _, f := range []*os.File{os.Stdin, os.Stdout, os.Stderr} {
		if term.IsTerminal(int(f.Fd())) {
			return true
		}
	}
	return false
}
