package machine

import (
	"time"

	"github.com/moult/moult/supervisor/ready"
)

// Config is what the machine is told once.
type Config struct {
	Name, Version string
	PID           int // the master's
	Seed          uint64

	Workers         int
	Intercept       bool
	InterceptUnlink bool
	MustSteer       bool

	Ready        ready.How
	ReadyAlive   time.Duration
	ReadyTimeout time.Duration

	Quiesce      time.Duration
	EndIdle      time.Duration // 0: where the server shows that it needs it; negative: never
	DrainSignal  Signal
	DrainTimeout time.Duration
	KillGrace    time.Duration
	MaxDraining  int

	Restart Restart
	PIDFile bool
}

// Restart says what follows when a worker leaves unasked.
type Restart struct {
	Policy   string // "always", "on-failure", "never"
	Min, Max time.Duration
	Limit    int // failures within Within; 0: no limit
	Within   time.Duration
}

// Signals by their numbers, which are the same wherever moult runs.
const (
	SIGKILL Signal = 9
	SIGTERM Signal = 15
)
