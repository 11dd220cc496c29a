package supervisor

import (
	"fmt"
	"syscall"
	"time"

	"github.com/rs/zerolog"

	"github.com/moult/moult/fdpass"
)

// ReadyHow says what makes a worker ready.
type ReadyHow string

const (
	// ReadyAuto is being seen accepting on every socket, and READY=1 as
	// well once this or an earlier generation has sent one; READY=1 alone
	// where accepting cannot be seen.
	ReadyAuto ReadyHow = "auto"
	// ReadyNotify is READY=1 by sd_notify.
	ReadyNotify ReadyHow = "notify"
	// ReadyAccept is being seen accepting on every socket.
	ReadyAccept ReadyHow = "accept"
	// ReadyAlive is having lived for Config.ReadyAlive.
	ReadyAlive ReadyHow = "alive"
)

// Restart says which workers that leave unasked are replaced.
type Restart string

const (
	RestartAlways    Restart = "always"
	RestartOnFailure Restart = "on-failure" // a status other than 0, or a signal
	RestartNever     Restart = "never"
)

// EndIdle values that are no durations.
const (
	EndIdleOff  = time.Duration(-1)
	EndIdleAuto = time.Duration(0)
)

// Config is everything that a master is told. The zero value of a field is not
// its default unless it says so: Defaults has those.
type Config struct {
	Name      string
	Version   string   // of moult itself, for status
	Command   []string // may contain {fd:NAME} and its like
	Addresses []fdpass.Address
	Share     bool // --handover share
	MustSteer bool // --handover steer: fail where a socket would be shared
	Intercept bool // hold what the workers bind themselves
	// InterceptUnlink keeps unix paths of workers from being unlinked from
	// the first generation on; later ones are kept from it without.
	InterceptUnlink bool
	Protocols       []fdpass.Protocol
	Workers         int

	Dir      string // empty: where the master was started
	Env      []string
	EnvFiles []string
	User     string
	Group    string
	Umask    *int // nil: the master's

	Ready        ReadyHow
	ReadyAlive   time.Duration
	ReadyTimeout time.Duration

	Quiesce      time.Duration
	EndIdle      time.Duration // EndIdleAuto, EndIdleOff, or how long a connection has to be idle
	DrainSignal  syscall.Signal
	DrainTimeout time.Duration
	KillGrace    time.Duration
	MaxDraining  int

	Restart       Restart
	RestartMin    time.Duration
	RestartMax    time.Duration
	RestartLimit  int // failures; 0: no limit
	RestartWithin time.Duration

	PIDFile string
	Control string // the control socket, for MOULT_CONTROL; empty: none

	Log zerolog.Logger
	// OnTransition hears of every change of state, from the goroutine that
	// owns the state: it must not wait. nil: nobody.
	OnTransition func(Transition)
}

// Defaults is the configuration of a master that was told nothing but what to
// run.
func Defaults() Config {
	return Config{
		Protocols: []fdpass.Protocol{"auto"},
		Workers:   1,
		Ready:     ReadyAuto, ReadyTimeout: 60 * time.Second,
		Quiesce: 5 * time.Second, EndIdle: EndIdleAuto,
		DrainSignal: syscall.SIGTERM, DrainTimeout: 30 * time.Second, KillGrace: 5 * time.Second,
		MaxDraining: 8,
		Restart:     RestartAlways, RestartMin: 100 * time.Millisecond, RestartMax: 30 * time.Second,
		Log: zerolog.Nop(),
	}
}

// Transition is one change of state: of a worker (PID is set), or of the
// master itself (PID is 0). From and To are the names that status and
// log use.
type Transition struct {
	Generation int
	PID        int
	From, To   string
	Reason     string
	Took       time.Duration // spent in From
	Trouble    bool          // not what anybody asked for
}

// level keeps the steps that only matter when something hangs out of the way.
func (t Transition) level() zerolog.Level {
	switch {
	case t.Trouble && t.PID == 0:
		return zerolog.ErrorLevel
	case t.Trouble:
		return zerolog.WarnLevel
	case t.PID != 0 && (t.To == settling.String() || t.To == quiescing.String() || t.To == clearing.String()):
		return zerolog.DebugLevel
	}
	return zerolog.InfoLevel
}

// Exit is how a master ended: Code is the exit code of `moult run`, Err says
// why if it is not 0.
type Exit struct {
	Code int
	Err  error
}

func (e *Exit) Error() string {
	if e.Err == nil {
		return fmt.Sprintf("exit status %d", e.Code)
	}
	return e.Err.Error()
}

// Unwrap returns the cause.
func (e *Exit) Unwrap() error { return e.Err }
