// Package process is one child of the master and its tree: how it is signalled,
// what belongs to it, what it leaves behind. It knows nothing of generations.
package process

import (
	"crypto/rand"
	"maps"
	"os"
	"slices"
	"strings"
	"sync"
	"syscall"

	"github.com/moult/moult/supervisor/observe"
)

// MarkVariable is in the environment of everything that a worker starts, so
// that what it orphans is known as its own.
const MarkVariable = "MOULT_WORKER"

// NewMark is one that nobody has. It begins with what all marks of this master
// do: a worker that has been started a moment ago is in nobody's list yet.
func NewMark() string { return house + rand.Text() }

var house = rand.Text()[:8] + "-"

// Status is how a process ended.
type Status struct {
	Code   int            // exit status
	Signal syscall.Signal // that killed it; 0: none
	Core   bool
}

// Process is a child of this process, from its start until nothing of its tree
// is left. All methods may be called from any goroutine.
//
// A pid means a process only until somebody reaps it. The main process is
// reaped by Reap alone, and signalled through its pidfd where there is one;
// whatever else belongs to the tree is known by pid and start time.
type Process struct {
	PID    int
	Mark   string // in its environment, and so in that of what it starts
	parent int    // our pid
	pidfd  int    // -1: none

	mu     sync.Mutex
	reaped bool
	closed bool
	left   map[int]uint64 // after its end: start times of what was found, by pid
	told   map[int]uint64 // those of them that have had the last signal
}

// New takes pidfd over, which may be -1.
func New(pid, pidfd, parent int, mark string) *Process {
	return &Process{PID: pid, Mark: mark, parent: parent, pidfd: pidfd}
}

// Close gives the pidfd back.
func (p *Process) Close() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.pidfd >= 0 && !p.closed {
		_ = syscall.Close(p.pidfd)
	}
	p.closed = true
}

// Signal reaches the main process: a server that has children tells them itself.
// It is ESRCH once that has been reaped.
func (p *Process) Signal(sig syscall.Signal) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.reaped || p.closed {
		return syscall.ESRCH
	}
	return signalChild(p.PID, p.pidfd, sig)
}

// SignalTree reaches the main process and its group, and after its end what it
// has left behind, as the last Left found it; with newcomers only those that have
// not had this signal yet.
func (p *Process) SignalTree(sig syscall.Signal, newcomers bool) error {
	err := p.Signal(sig)
	p.mu.Lock()
	defer p.mu.Unlock()
	if !p.reaped {
		// Until it is reaped its group's number is its own.
		_ = syscall.Kill(-p.PID, sig)
		return err
	}
	err = nil
	if !newcomers {
		p.told = nil
	}
	for pid, began := range p.left {
		if had, told := p.told[pid]; told && had == began {
			continue
		}
		if e := signalStranger(pid, began, sig); e != nil && e != syscall.ESRCH {
			err = e
		}
	}
	p.told = maps.Clone(p.left)
	return err
}

// Reap takes the zombie away; a process that still runs it leaves alone. Only
// what Left has found before counts as left behind from then on, and what that
// starts.
func (p *Process) Reap() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if !p.reaped {
		p.reaped = Reap(p.PID)
	}
}

// Reap takes the zombie of a child away. It does not wait for one that runs,
// which a process in uninterruptible sleep does for ever, and tells so by false.
func Reap(pid int) bool {
	forgetEnded(pid)
	return wait(pid, syscall.WNOHANG)
}

// End kills the process and its group, waits for it and reaps it.
func (p *Process) End() {
	_ = p.SignalTree(syscall.SIGKILL, false)
	wait(p.PID, 0)
	p.mu.Lock()
	p.reaped = true
	p.mu.Unlock()
	p.Close()
}

func wait(pid, options int) (gone bool) {
	var status syscall.WaitStatus
	for {
		if n, err := syscall.Wait4(pid, &status, options, nil); err != syscall.EINTR {
			return n == pid || err != nil
		}
	}
}

// Others are the children of this process that have owners of their own.
type Others struct {
	Mains []int    // main processes
	Marks []string // of all trees
}

// Tree lists the living processes of the tree: the main process, its
// descendants, and what they have orphaned onto this process, which is the
// parent of all orphans. inodes are sockets that nobody else holds, by which an
// orphan is known that has neither mark nor group.
func (p *Process) Tree(others Others, inodes []uint64) []int {
	return append(observe.Tree(p.PID), p.orphans(others, inodes)...)
}

func (p *Process) orphans(others Others, inodes []uint64) []int {
	var pids []int
	for _, child := range observe.Children(p.parent) {
		if child != p.PID && !slices.Contains(others.Mains, child) && p.owns(child, others.Marks, inodes) {
			pids = append(pids, observe.Tree(child)...)
		}
	}
	return pids
}

// owns tells whether an orphan came from this tree.
func (p *Process) owns(pid int, marks []string, inodes []uint64) bool {
	if isBeingStarted(pid) {
		return false
	}
	if mark := MarkOf(pid); strings.HasPrefix(mark, house) || mark != "" && slices.Contains(marks, mark) {
		return mark == p.Mark
	}
	if p.knows(pid) {
		return true
	}
	if mayBeOurs(pid) {
		return false
	}
	held, _ := observe.Inodes([]int{pid})
	return slices.ContainsFunc(inodes, func(inode uint64) bool {
		_, holds := held[inode]
		return holds
	})
}

// mayBeOurs tells a child that this process may just have forked: for a moment it
// has all descriptors, and neither its environment nor a name. It stays in our
// session and leads a group; what a tree orphans is of another group, or has made
// a session of its own.
func mayBeOurs(pid int) bool {
	proc, err := observe.ReadProc(pid)
	own, unread := observe.ReadProc(os.Getpid())
	return err != nil || unread == nil && proc.SID == own.SID && (proc.PGID == pid || proc.PGID == own.PGID)
}

// knows tells whether a process is one that was found behind the main process,
// or of its group or session while that number is certain to be its own.
func (p *Process) knows(pid int) bool {
	proc, err := observe.ReadProc(pid)
	if err != nil {
		return false
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if began, found := p.left[pid]; found {
		return began == proc.StartTime
	}
	return !p.reaped && (proc.PGID == p.PID || proc.SID == p.PID)
}

// Left lists what is alive of the tree after the end of the main process, and
// remembers it for SignalTree. Call it before Reap for the first time.
func (p *Process) Left(others Others, inodes []uint64) []int {
	pids := p.orphans(others, inodes)
	left := map[int]uint64{}
	var alive []int
	for _, pid := range pids {
		if proc, err := observe.ReadProc(pid); err == nil && proc.Alive() {
			left[pid] = proc.StartTime
			alive = append(alive, pid)
		}
	}
	if group := groupAlone(p.PID); group != 0 {
		left[group], alive = 0, append(alive, group)
	}
	p.mu.Lock()
	p.left = left
	p.mu.Unlock()
	return alive
}
