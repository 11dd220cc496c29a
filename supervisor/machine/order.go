package machine

import (
	"time"

	"github.com/moult/moult/supervisor/control/api"
)

// Order is what the shell is to do. Those whose outcome matters come back as
// the event that is named; all others cannot fail in a way that would change
// anything.
type Order interface{ order() }

// Signal is a signal's number.
type Signal int

// Furnish makes a socket on each address that was opened, for each of some
// slots of a generation, in order: Furnished.
type Furnish struct {
	Generation int    // its key
	First      SlotID // the others follow
	Slots      int
}

// Start starts a program: Forked or StartFailed.
type Start struct {
	Worker     WorkerID
	Generation int // its number
	Program    ProgramID
	Handed     []Held // in the order of the configuration
	Traps      Traps
}

// Traps are the system calls at which a worker stops beyond the usual ones.
type Traps struct{ Intercept, Unlink bool }

// Send sends a signal to the main process of a worker; with Tree to its process
// group and all that is known to be of its tree as well; with Again to those of
// them alone that have not had this signal: some servers take a second one for
// an order to leave at once.
type Send struct {
	Worker WorkerID
	Signal Signal
	Tree   bool
	Again  bool
}

// LookFor is what a look is after.
type LookFor uint8

// What a look is after.
const (
	LookReady   LookFor = iota // whether it accepts
	LookSettled                // handshakes and queue; the first also waits for the switch to reach every CPU
	LookQuiet                  // its connections
	LookHeld                   // whether it still has its listeners
	LookTree                   // what its main process has left behind
)

// Look looks at a worker from outside: Looked.
type Look struct {
	Worker WorkerID
	Seq    int
	For    LookFor

	Inodes []Inode       // LookReady: not seen accepting yet; else its members
	Held   []Inode       // LookReady, LookHeld: which of these has it no more?
	Ask    []Inode       // LookReady: those that a connection may ask, since /proc does not tell
	Paths  []AddressID   // LookReady: whether clients reach them
	First  bool          // LookSettled, LookTree: nothing has been seen in this state yet
	Idle   time.Duration // LookQuiet: what is silent for so long is idle
	End    bool          // LookQuiet: end what is idle
	Bypass bool          // LookReady: look for listeners that were not intercepted
}

// CountQueue counts what waits in a slot's members: QueueSeen.
type CountQueue struct {
	Slot    SlotID
	Members []Held
}

// Steer sends new connections of an address to these members: Steered.
type Steer struct {
	Address AddressID
	Members []Inode
	Confirm bool // a generation begins to serve: nobody else may listen there
}

// Leave gives a socket back. Lost, if not empty, is said of connections that
// still wait in it.
type Leave struct {
	Held       Held
	Generation int
	Lost       string
}

// Drop closes an address on which nobody has a socket any more.
type Drop struct{ Address AddressID }

// Relisten restores what a worker may have changed of a socket that it was given.
type Relisten struct{ Held Held }

// Refuse turns new clients away on all addresses, while what waits is served.
type Refuse struct{}

// Release closes all sockets.
type Release struct{}

// WatchPaths looks after the directories of unix paths while somebody might
// remove one; Mend looks once.
type WatchPaths struct{ On bool }

// Mend puts back the unix paths that a leaving worker has removed.
type Mend struct{}

// Verdict is what becomes of a system call.
type Verdict uint8

// Verdicts.
const (
	Proceed   Verdict = iota // it goes on as if nobody had looked
	Permit                   // the same, with what lets it share the address
	Deny                     // with EADDRINUSE
	Full                     // with ENOBUFS
	CheckHeld                // look which of Members the worker still has, and ask again
	Claim                    // Member takes the place of the worker's socket: Listening
	Adopt                    // the worker's socket becomes a member: Listening
	Share                    // the one socket of all generations takes its place: Listening
	Resume                   // a member listens once more: Listening
)

// Reply to a call of a worker.
type Reply struct {
	Call       CallID
	Verdict    Verdict
	Address    AddressID
	Member     Inode
	Members    []Inode
	Generation int       // key
	After      AddressID // what is to be done there is done first; 0: nothing is
	Fresh      bool      // Adopt: the address is not in the book yet; Permit: nobody listens there yet
}

// CheckProgram looks whether a program can be started again: ProgramChecked.
type CheckProgram struct {
	Op      OpID
	Program ProgramID
}

// Close closes a program that is not wanted any more.
type Close struct{ Program ProgramID }

// Tell tells those who asked to hear of a change of state, and writes its one
// line into the log.
type Tell struct {
	Transition Transition
	Message    string
}

// Transition is one change of state: of a worker (PID is set), or of the master
// itself (PID is 0).
type Transition struct {
	Generation int
	PID        int
	From, To   string
	Reason     string
	Took       time.Duration // spent in From
	Trouble    bool          // not what anybody asked for
	Detail     bool          // only of interest when something hangs
}

// Level is how much a line of the log matters.
type Level uint8

// Levels.
const (
	Debug Level = iota
	Info
	Warn
	Error
)

// Say writes a line into the log that is no transition.
type Say struct {
	Level   Level
	Message string
	Fields  []Field
}

// Field of a line: Value is an int, a string, a bool or a time.Duration.
type Field struct {
	Key   string
	Value any
}

// Inform tells a client what became of its operation; Last ends it.
type Inform struct {
	Op    OpID
	Event api.Event
	Last  bool
}

// Accept and Turn down an operation, which has no events before.
type Accept struct{ Op OpID }

// TurnDown says why an operation makes no sense now.
type TurnDown struct {
	Op     OpID
	Reason string
}

// PIDFile writes the pid file.
type PIDFile struct{}

// Trim gives memory back: nothing has gone on for a while.
type Trim struct{}

// Forget lets go of all that is known of a worker.
type Forget struct{ Worker WorkerID }

// Exit ends the master.
type Exit struct {
	Code   int
	Reason string // empty: it was asked for
}

func (Furnish) order()      {}
func (Start) order()        {}
func (Send) order()         {}
func (Look) order()         {}
func (CountQueue) order()   {}
func (Steer) order()        {}
func (Leave) order()        {}
func (Drop) order()         {}
func (Relisten) order()     {}
func (Refuse) order()       {}
func (Release) order()      {}
func (WatchPaths) order()   {}
func (Mend) order()         {}
func (Reply) order()        {}
func (CheckProgram) order() {}
func (Close) order()        {}
func (Tell) order()         {}
func (Say) order()          {}
func (Inform) order()       {}
func (Accept) order()       {}
func (TurnDown) order()     {}
func (PIDFile) order()      {}
func (Trim) order()         {}
func (Forget) order()       {}
func (Exit) order()         {}
