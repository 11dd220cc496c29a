package machine

import (
	"time"

	"github.com/moult/moult/supervisor/control/api"
)

// Event is something that has happened. Each is a plain value that can be
// printed and kept.
type Event interface{ event() }

// WorkerID names a worker from its Start order to the end; it is never used
// twice, and is there before the process has a pid.
type WorkerID int

// AddressID names an address in the book.
type AddressID int

// CallID names a system call of a worker that waits for an Answer.
type CallID int

// OpID names an operation of a client.
type OpID int

// ProgramID names an executable that the shell holds open; 0 is whatever the
// command names.
type ProgramID int

// Inode names a socket of the master's, as the kernel does.
type Inode uint64

// Begin is the first event: what has been opened, and that the first generation
// shall start.
type Begin struct{ Opened []Opened }

// Opened is an address that the shell holds.
type Opened struct {
	Address AddressID
	Socket  Socket
}

// Socket is what does not change of an address.
type Socket struct {
	Name, Network, Bound string
	Key                  string // equal for equal forms of an address (fdpass.Binding), or the path
	Port                 int
	Backlog              int
	Handover             string // api.Steer, api.Rename, api.Share
	Why                  string // it is shared where one would expect better
	Stream               bool
	Learned              bool // a worker has bound it itself
	Inherited            bool // came from outside: its owner will want it again
	Private              bool // of one process, as far as can be seen: not asked of the next generation
}

// Hangup is SIGHUP, or anything else that asks for an upgrade.
type Hangup struct{ Reason string }

// StopAsked is SIGTERM, SIGINT and, with Now, SIGQUIT.
type StopAsked struct {
	Reason string
	Now    bool
}

// ScaleAsked is SIGTTIN (+1) and SIGTTOU (-1).
type ScaleAsked struct{ By int }

// PassOn is a signal for the serving workers.
type PassOn struct{ Signal Signal }

// Tick says that time has passed: at least until Due.
type Tick struct{}

// Furnished answers Furnish: one list of members for each slot, in order.
type Furnished struct {
	First   SlotID
	Members [][]Held
	Err     string
}

// Held is a socket on an address.
type Held struct {
	Address AddressID
	Inode   Inode
}

// Forked answers Start: the program runs.
type Forked struct {
	Worker  WorkerID
	PID     int
	Command []string
	Program ProgramID // what it runs, held open; 0 where that cannot be
}

// StartFailed answers Start as well: there is no process.
type StartFailed struct {
	Worker WorkerID
	Reason string
	Code   int // what `run` exits with, if that is its end
}

// Exited says that the main process of a worker has ended. It is a zombie until
// the first look at its tree.
type Exited struct {
	Worker WorkerID
	Status Status
}

// Status is how a process ended.
type Status struct {
	Code   int // exit status
	Signal Signal
	Name   string // of the signal
	Core   bool
}

// Looked answers Look.
type Looked struct {
	Worker WorkerID
	Seq    int
	Seen   Seen
	Cost   time.Duration // what the look took: expensive ones are taken less often
}

// Seen is what a look saw. Which fields count depends on what was looked for.
type Seen struct {
	Accepting []Accepting // LookReady
	Missing   []Inode     // LookReady, LookHeld: members that no process of the worker has
	Shut      []Inode     // LookReady, LookHeld: members that the worker has shut down
	Vanished  []AddressID // LookReady: paths that clients cannot reach
	Bypass    string      // LookReady: it listens where nothing was intercepted

	Handshakes int // LookSettled: of those at the switch, how many go on
	Queued     int // LookSettled: connections that wait to be accepted

	Busy    int    // LookQuiet: connections in use
	Idle    int    // LookQuiet: connections that wait for their clients
	Unknown bool   // LookQuiet: the kernel does not tell
	Handles Answer // LookQuiet: whether the drain signal has a handler
	Ended   int    // LookQuiet: idle ones that were ended

	Holds  bool // LookHeld: it has, or may have, a socket of the master's
	Left   int  // LookTree: processes of its tree
	Serves bool // LookTree: one of them has one of its sockets
}

// Accepting says of one socket whether the worker accepts on it.
type Accepting struct {
	Inode Inode
	Is    Answer
}

// Answer is what can be seen: yes, no, or that it cannot be seen.
type Answer uint8

// Answers.
const (
	No Answer = iota
	Yes
	Unknown
)

// QueueSeen answers CountQueue.
type QueueSeen struct {
	Slot  SlotID
	Count int
}

// SlotID names a slot for as long as there is one.
type SlotID int

// Notified is a word of a worker by sd_notify(3), whose sender has been found
// to be of its tree. Fields that were not said are empty.
type Notified struct {
	Worker WorkerID
	Ready  bool
	Status string
	Extend time.Duration // EXTEND_TIMEOUT_USEC
}

// Steered answers Steer.
type Steered struct {
	Address AddressID
	Err     string
	Gone    []Inode // members that have left by themselves: their workers have shut them down
}

// Mended says that a unix path was put back.
type Mended struct{ Address AddressID }

// BindAsked is a worker's bind(2) that waits for its Answer.
type BindAsked struct {
	Worker    WorkerID
	Call      CallID
	Socket    Socket // the address as it was asked for, Handover empty
	Inode     Inode  // of the worker's socket
	ReusePort bool   // the worker has set SO_REUSEPORT itself
	StandIn   bool   // the worker's socket cannot be had: one of ours takes its place
	Refusal   string // why it is going to be told that the address is in use
	Held      bool   // CheckHeld was made before: Missing counts
	Missing   []Inode
}

// ListenAsked is a worker's listen(2) that waits for its Answer.
type ListenAsked struct {
	Worker    WorkerID
	Call      CallID
	Socket    Socket
	Inode     Inode
	Was       Inode // the one that was bound, which this one has taken the place of
	Backlog   int
	ReusePort bool
	StandIn   bool
	Alone     string // why the socket cannot be held, though it should; empty where it can
}

// Listening answers the verdicts Adopt, Claim, Share and Resume of a Reply, once
// each: the worker has the member now, or Err says why not.
type Listening struct {
	Call   CallID
	Worker WorkerID
	Held   Held
	Socket Socket // of an address that was not in the book before
	Err    string
	InUse  bool // Err is that the address is in use
}

// Alone says that a worker listens on something that cannot be held.
type Alone struct {
	Worker WorkerID
	Reason string
}

// ListenerLost says that a process has ended that listened on members.
type ListenerLost struct{ Worker WorkerID }

// Asked is an operation of a client.
type Asked struct {
	Op        OpID
	Operation api.Operation
}

// ProgramChecked answers CheckProgram.
type ProgramChecked struct {
	Op      OpID
	Program ProgramID
	Err     string
}

// Viewed says that somebody has looked at the status, which takes memory.
type Viewed struct{}

func (Begin) event()          {}
func (Hangup) event()         {}
func (StopAsked) event()      {}
func (ScaleAsked) event()     {}
func (PassOn) event()         {}
func (Tick) event()           {}
func (Furnished) event()      {}
func (Forked) event()         {}
func (StartFailed) event()    {}
func (Exited) event()         {}
func (Looked) event()         {}
func (QueueSeen) event()      {}
func (Notified) event()       {}
func (Steered) event()        {}
func (Mended) event()         {}
func (BindAsked) event()      {}
func (ListenAsked) event()    {}
func (Listening) event()      {}
func (Alone) event()          {}
func (ListenerLost) event()   {}
func (Asked) event()          {}
func (ProgramChecked) event() {}
func (Viewed) event()         {}
