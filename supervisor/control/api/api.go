// Package api has the types of the control API: what status tells, and what an
// upgrade, a rollback, a stop or a change of scale says while it goes on. It
// depends on nothing, so that the master, its server and every client share it.
//
// The wire is HTTP over a unix socket: GET /v1/status answers a Status; POST
// /v1/upgrade, /v1/rollback, /v1/stop and /v1/scale answer a stream of Events,
// one JSON object a line.
package api

import "time"

// States of a master.
const (
	Starting  = "starting"
	Serving   = "serving"
	Upgrading = "upgrading"
	Backoff   = "backoff" // no worker lives; the next is started after a delay
	Stopping  = "stopping"
)

// Status is what GET /v1/status answers.
type Status struct {
	Name       string    `json:"name"`
	Version    string    `json:"version"`
	PID        int       `json:"pid"`
	State      string    `json:"state"`
	Generation int       `json:"generation"` // the one that serves; 0 before the first does
	StartedAt  time.Time `json:"started_at"`
	Sockets    []Socket  `json:"sockets"`
	Workers    []Worker  `json:"workers"` // oldest first
	Upgrades   Upgrades  `json:"upgrades"`
	// Wanted is the number of workers per generation.
	Wanted int `json:"wanted"`
}

// How connections on a Socket move from one generation to the next.
const (
	Steer  = "steer"  // a socket per worker; the kernel is told whose turn it is
	Rename = "rename" // a unix socket per generation; the path is renamed
	Share  = "share"  // one socket for all generations
)

// Socket is one address that the master holds.
type Socket struct {
	Name        string `json:"name"`
	Network     string `json:"network"` // tcp, unix, udp, unixgram
	Address     string `json:"address"`
	Backlog     int    `json:"backlog"`
	Queued      int    `json:"queued"` // connections that wait for accept, all members together
	Handover    string `json:"handover"`
	Intercepted bool   `json:"intercepted"`
	// Reason says why the socket is shared where one would expect better. It is
	// not on the wire.
	Reason string `json:"-"`
}

// Worker is one process that the master started.
type Worker struct {
	PID        int        `json:"pid"`
	Generation int        `json:"generation"`
	State      string     `json:"state"` // starting, serving, draining, killing
	ReadyBy    string     `json:"ready_by,omitempty"`
	StartedAt  time.Time  `json:"started_at"`
	ReadyAt    *time.Time `json:"ready_at,omitempty"`
	// Deadline is when the worker will be pressed further: told to leave,
	// or killed. Nil where nothing is to happen.
	Deadline *time.Time `json:"deadline,omitempty"`
	// Connections are established ones of the worker and its descendants;
	// nil where the kernel does not say.
	Connections *int     `json:"connections"`
	RSSBytes    uint64   `json:"rss_bytes"`
	Restarts    int      `json:"restarts"` // of its place in the generation
	Command     []string `json:"command"`
	Executable  string   `json:"executable"`
	Says        string   `json:"says,omitempty"` // its last STATUS=
}

// Upgrades counts what was tried since the master started.
type Upgrades struct {
	Succeeded  int      `json:"succeeded"`
	Failed     int      `json:"failed"`
	RolledBack int      `json:"rolled_back"`
	Last       *Upgrade `json:"last"`
}

// Results of an upgrade.
const (
	OK         = "ok"
	Failed     = "failed"
	RolledBack = "rolled_back"
)

// Upgrade is one that is over, or whose old generation still drains.
type Upgrade struct {
	Result  string    `json:"result"`
	Reason  string    `json:"reason,omitempty"`
	From    int       `json:"from"`
	To      int       `json:"to"`
	At      time.Time `json:"at"`
	ReadyMS float64   `json:"ready_ms"`           // from the start to serving, or to the failure
	DrainMS *float64  `json:"drain_ms,omitempty"` // until the old one was gone; nil while it drains
}

// Events of an operation, in this order; EventFailed may take the place of any.
const (
	EventStarting = "starting" // the new generation is started
	EventReady    = "ready"    // it serves
	EventDraining = "draining" // the old one finishes
	EventDone     = "done"     // the old one is gone; of a stop: everything is
	EventFailed   = "failed"   // Reason says why; the old one serves on
)

// Event is one line of an answer.
type Event struct {
	Event      string    `json:"event"`
	At         time.Time `json:"at"`
	From       int       `json:"from,omitempty"` // generations
	To         int       `json:"to,omitempty"`
	PIDs       []int     `json:"pids,omitempty"` // of the new generation's workers
	Reason     string    `json:"reason,omitempty"`
	TookMS     float64   `json:"took_ms,omitempty"` // since the operation began
	ExitStatus *int      `json:"exit_status,omitempty"`
}

// Kinds of operations.
const (
	OpUpgrade  = "upgrade"
	OpRollback = "rollback"
	OpStop     = "stop"
	OpScale    = "scale"
)

// Operation is what a client asks the master to do.
type Operation struct {
	Kind    string `json:"-"`
	Now     bool   `json:"now,omitempty"`     // stop: at once
	Workers int    `json:"workers,omitempty"` // scale: how many per generation
}

// Refused says that the master did not begin an operation, and why.
type Refused struct {
	Reason string `json:"reason"`
}

func (r *Refused) Error() string { return r.Reason }
