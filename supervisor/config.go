package supervisor

import (
	"fmt"
	"syscall"
	"time"

	"github.com/rs/zerolog"

	"github.com/moult/moult/fdpass"
	"github.com/moult/moult/supervisor/machine"
	"github.com/moult/moult/supervisor/ready"
)

// ReadyHow says what makes a worker ready.
type ReadyHow = ready.How

// What makes a worker ready; see package ready.
const (
	ReadyAuto   = ready.Auto
	ReadyNotify = ready.Notify
	ReadyAccept = ready.Accept
	ReadyAlive  = ready.Alive
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

// MaxWorkers is how many workers a generation may have.
const MaxWorkers = machine.MaxWorkers

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
	// OnTransition hears of every change of state, from the master's loop: it
	// must not wait. nil: nobody.
	OnTransition func(Transition)
}

// Transition is one change of state: of a worker (PID is set), or of the master
// itself (PID is 0). From and To are the names that status and log use.
type Transition = machine.Transition

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

// mind is what the machine is told of it.
func (c *Config) mind(pid int) machine.Config {
	return machine.Config{
		Name: c.Name, Version: c.Version, PID: pid, Seed: uint64(time.Now().UnixNano()) ^ uint64(pid),
		Workers: c.Workers, Intercept: c.Intercept, InterceptUnlink: c.InterceptUnlink, MustSteer: c.MustSteer,
		Ready: c.Ready, ReadyAlive: c.ReadyAlive, ReadyTimeout: c.ReadyTimeout,
		Quiesce: c.Quiesce, EndIdle: c.EndIdle,
		DrainSignal: machine.Signal(c.DrainSignal), DrainTimeout: c.DrainTimeout, KillGrace: c.KillGrace, MaxDraining: c.MaxDraining,
		Restart: machine.Restart{Policy: string(c.Restart), Min: c.RestartMin, Max: c.RestartMax, Limit: c.RestartLimit, Within: c.RestartWithin},
		PIDFile: c.PIDFile != "",
	}
}

// Exit is how a master ended: Code is the exit code of `moult run`, Err says why
// if it is not 0.
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
