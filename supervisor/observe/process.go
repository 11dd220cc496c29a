package observe

import (
	"fmt"
	"slices"
	"syscall"
)

// Proc is what /proc/PID/stat says of one process, as far as the master needs it.
type Proc struct {
	PID, PPID, PGID, SID int
	// State is the letter that ps shows: R, S, D, T, Z and so on.
	State byte
	// Threads counts the threads that have not been reaped.
	Threads int
	// StartTime is in clock ticks since boot; with the PID it names a process
	// for good, however often the PID is used again.
	StartTime uint64
	// Comm is the name of the main thread: at most 15 bytes of anything, spaces
	// and parentheses included.
	Comm string
}

// Alive is false for zombies. A process whose main thread has left while others
// still run is shown as Z by the kernel, but is as alive as any other.
func (p Proc) Alive() bool {
	return p.State != 'X' && (p.State != 'Z' || p.Threads > 1)
}

// ReadProc reads one process. The error is [os.ErrNotExist] where there is none
// with that pid (or hidepid conceals it).
func ReadProc(pid int) (Proc, error) {
	p, err := readProc(pid)
	if err != nil {
		return Proc{}, fmt.Errorf("cannot read process %d: %w", pid, err)
	}
	return p, nil
}

// Processes lists all processes that can be seen, zombies included, in order of
// pid. It is a pass, not a snapshot: what starts or ends meanwhile may be missed.
func Processes() ([]Proc, error) {
	all, err := processes()
	if err != nil {
		return nil, fmt.Errorf("cannot list the processes: %w", err)
	}
	return all, nil
}

// Tree returns root and all its living descendants by parentage, root first and
// parents before children; zombies are left out. It is nil where root is not
// alive. Where processes cannot be listed it is root alone.
func Tree(root int) []int {
	if tree, ok := walk(root); ok {
		return tree
	}
	all, err := processes()
	if err != nil {
		return []int{root}
	}
	return treeOf(root, all)
}

// walk asks each process for its children, so that it costs the same however
// many others there are. It is not ok where the kernel was built without such
// lists.
func walk(root int) (tree []int, ok bool) {
	if p, err := readProc(root); err != nil || !p.Alive() {
		return nil, true
	}
	tree = []int{root}
	for i := 0; i < len(tree); i++ {
		children, ok := childrenOf(tree[i])
		if !ok {
			return nil, false
		}
		for _, child := range children {
			// Lists that were read while pids were used again could hold a circle.
			if p, err := readProc(child); err == nil && p.Alive() && !slices.Contains(tree, child) {
				tree = append(tree, child)
			}
		}
	}
	return tree, true
}

func treeOf(root int, all []Proc) []int {
	children := make(map[int][]int)
	var tree []int
	for _, p := range all {
		switch {
		case !p.Alive():
		case p.PID == root:
			tree = []int{root}
		default:
			children[p.PPID] = append(children[p.PPID], p.PID)
		}
	}
	for i := 0; i < len(tree); i++ {
		tree = append(tree, children[tree[i]]...)
		// A list that was read while pids were used again could hold a circle.
		delete(children, tree[i])
	}
	return tree
}

// Children lists the living children of pid, zombies left out, in order of pid:
// for the master's own pid that includes what was orphaned onto it. A child that
// starts or ends during the look may be missed.
func Children(pid int) []int {
	list, ok := childrenOf(pid)
	if !ok {
		list = childrenByPass(pid)
	}
	slices.Sort(list)
	return list
}

func childrenByPass(pid int) []int {
	all, err := processes()
	if err != nil {
		return nil
	}
	var list []int
	for _, p := range all {
		if p.PPID == pid && p.Alive() {
			list = append(list, p.PID)
		}
	}
	return list
}

// DescendsFrom tells whether pid is root or descends from it. Zombies have
// parents too, so the sender of a last message can still be placed. Unknown
// means that pid is gone or cannot be seen.
func DescendsFrom(pid, root int) Verdict {
	// A parent that ends while its ancestors are being read hands its children
	// on; then the walk begins again. Each repetition needs one more such death.
	for range 8 {
		if v := climb(pid, root); v != Unknown {
			return v
		}
		if _, err := readProc(pid); err != nil {
			return Unknown
		}
	}
	return Unknown
}

func climb(pid, root int) Verdict {
	for pid > 0 {
		p, err := readProc(pid)
		if err != nil {
			return Unknown
		}
		if pid == root {
			return Yes
		}
		pid = p.PPID
	}
	return No
}

// Handles tells whether the process does something of its own with sig: Yes
// where it has a handler for it or ignores it, No where the default action
// would strike. Unknown where the process is gone or hidden, and for a number
// that is no signal. A handler of the language's runtime counts like any other.
func Handles(pid int, sig syscall.Signal) Verdict {
	if sig < 1 || sig > 64 {
		return Unknown
	}
	return handles(pid, sig)
}

// Memory returns what one process holds resident and its proportional share of
// it (each shared page divided by the number of its users), in bytes. It needs
// the right to trace the process.
func Memory(pid int) (rss, pss uint64, err error) {
	rss, pss, err = memory(pid)
	if err != nil {
		return 0, 0, fmt.Errorf("cannot read the memory use of process %d: %w", pid, err)
	}
	return rss, pss, nil
}
