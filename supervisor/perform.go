package supervisor

import (
	"crypto/rand"
	"os"
	"runtime/debug"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/rs/zerolog"

	"github.com/moult/moult/supervisor/machine"
)

// perform does what the machine orders. It decides nothing: what can fail, or
// takes time, happens beside the loop and comes back as an event.
func (s *Supervisor) perform(o machine.Order) {
	switch o := o.(type) {
	case machine.Start:
		s.start(o)
	case machine.Send:
		s.workers.signal(o)
	case machine.Look:
		s.look(o)
	case machine.Forget:
		s.workers.forget(o.Worker)
	case machine.Reply:
		s.reply(o)
	case machine.Furnish, machine.CountQueue, machine.Steer, machine.Leave, machine.Drop, machine.Relisten,
		machine.Refuse, machine.Release, machine.WatchPaths, machine.Mend:
		s.sockets.perform(o)
	case machine.Tell:
		j := journal{s.log, s.cfg.OnTransition}
		j.report(o)
		s.workers.follow(o.Transition)
	case machine.Say:
		j := journal{s.log, nil}
		j.say(o)
	default:
		s.performForOthers(o)
	}
}

// performForOthers is for clients, programs and the house.
func (s *Supervisor) performForOthers(o machine.Order) {
	switch o := o.(type) {
	case machine.Accept:
		s.clients.accept(o.Op)
	case machine.TurnDown:
		s.clients.turnDown(o)
	case machine.Inform:
		s.clients.inform(o)
	case machine.CheckProgram:
		s.goBeside(func() {
			s.send(machine.ProgramChecked{Op: o.Op, Program: o.Program, Err: errorText(s.starter.programs.get(o.Program).Usable())})
		})
	case machine.Close:
		s.starter.programs.drop(o.Program)
	case machine.PIDFile:
		s.pidFile.Go(func() { s.pidFile.write(s.log) })
	case machine.Trim:
		s.goBeside(debug.FreeOSMemory)
	case machine.Exit:
		s.exit = &o
	}
}

func errorText(err error) string {
	if err == nil {
		return ""
	}
	return err.Error()
}

var levels = [...]zerolog.Level{machine.Debug: zerolog.DebugLevel, machine.Info: zerolog.InfoLevel, machine.Warn: zerolog.WarnLevel, machine.Error: zerolog.ErrorLevel}

// journal is the log, and who else hears of transitions.
type journal struct {
	log  zerolog.Logger
	hear func(Transition)
}

// say writes a line into the log.
func (j *journal) say(o machine.Say) {
	line := j.log.WithLevel(levels[o.Level])
	for _, f := range o.Fields {
		switch v := f.Value.(type) {
		case int:
			line = line.Int(f.Key, v)
		case bool:
			line = line.Bool(f.Key, v)
		case time.Duration:
			line = line.Str(f.Key, rounded(v))
		case string:
			line = line.Str(f.Key, v)
		}
	}
	line.Msg(o.Message)
}

// report writes the one line of a transition, and tells who asked to hear.
func (j *journal) report(o machine.Tell) {
	t := o.Transition
	line := j.log.WithLevel(levelOf(t)).Int("generation", t.Generation)
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
	line.Msg(o.Message)
	if j.hear != nil {
		j.hear(t)
	}
}

// levelOf keeps the steps that only matter when something hangs out of the way.
func levelOf(t machine.Transition) zerolog.Level {
	switch {
	case t.Trouble && t.PID == 0:
		return zerolog.ErrorLevel
	case t.Trouble:
		return zerolog.WarnLevel
	case t.Detail:
		return zerolog.DebugLevel
	}
	return zerolog.InfoLevel
}

// rounded is a duration with three digits, as a person reads it.
func rounded(d time.Duration) string {
	unit := time.Duration(1)
	for unit*1000 <= d {
		unit *= 10
	}
	return d.Round(unit).String()
}

// pidFile tells scripts that the first generation is ready.
type pidFile struct {
	sync.WaitGroup // its writer
	path           string
	pid            int
}

func (p *pidFile) write(log zerolog.Logger) {
	if err := replaceFile(p.path, []byte(strconv.Itoa(p.pid)+"\n")); err != nil {
		log.Error().Err(err).Msg("cannot write the pid file")
	}
}

// remove leaves alone what another master has put there since.
func (p *pidFile) remove() {
	if p.path == "" {
		return
	}
	p.Wait()
	if content, err := os.ReadFile(p.path); err == nil && strings.TrimSpace(string(content)) == strconv.Itoa(p.pid) {
		_ = os.Remove(p.path)
	}
}

// replaceFile never shows a half-written file, nor leaves one behind. The
// temporary name is nobody's before, so that no link leads the write astray, and
// cannot be guessed: in a container the pid is always the same.
func replaceFile(path string, content []byte) error {
	tmp := path + "." + rand.Text()
	f, err := os.OpenFile(tmp, os.O_WRONLY|os.O_CREATE|os.O_EXCL|syscall.O_NOFOLLOW, 0o644)
	if err != nil {
		return err
	}
	_, err = f.Write(content)
	if closed := f.Close(); err == nil {
		err = closed
	}
	if err == nil {
		err = os.Rename(tmp, path)
	}
	if err != nil {
		_ = os.Remove(tmp)
	}
	return err
}
