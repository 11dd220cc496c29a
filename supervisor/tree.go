package supervisor

import (
	"slices"

	"github.com/moult/moult/supervisor/observe"
)

// tree lists the worker's processes: its descendants, and what they have
// orphaned onto the master, which is the parent of all orphans.
func (w *worker) tree() []int {
	pids := observe.Tree(w.pid)
	for _, pid := range observe.Children(w.master.pid) {
		if w.owns(pid) {
			pids = append(pids, observe.Tree(pid)...)
		}
	}
	return pids
}

// owns tells whether an adopted process came from this worker.
func (w *worker) owns(pid int) bool {
	if w.master.isMain(pid) {
		return false
	}
	if mark := markOf(pid); mark != "" && w.master.isMark(mark) {
		return mark == w.mark
	}
	inodes, _ := observe.Inodes([]int{pid})
	return slices.ContainsFunc(w.ownMembers(), func(inode uint64) bool {
		_, holds := inodes[inode]
		return holds
	})
}
