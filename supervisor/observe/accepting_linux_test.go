package observe

import (
	"fmt"
	"os"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"
)

func addressOf[T any](v *T) unsafe.Pointer { return unsafe.Pointer(v) }

// acceptsOn asks for one socket and one process.
func acceptsOn(pid int, inode uint64) Verdict {
	return Accepting([]int{pid}, []uint64{inode})[inode]
}

func allAre(want Verdict, answers map[uint64]Verdict) bool {
	for _, v := range answers {
		if v != want {
			return false
		}
	}
	return true
}

func TestAccepting(t *testing.T) {
	for _, name := range []string{"epoll", "accept", "poll", "ppoll", "select", "pselect"} {
		t.Run(name, func(t *testing.T) {
			fd, _ := listenTCP(t)
			other, _ := listenTCP(t)
			w := start(t, name, fd)
			eventually(t, "the worker accepts", func() bool {
				return acceptsOn(w.pid, inodeOf(t, fd)) == Yes
			})
			if v := acceptsOn(w.pid, inodeOf(t, other)); v != No {
				t.Errorf("on another socket: %v", v)
			}
			if v := acceptsOn(os.Getpid(), inodeOf(t, fd)); v != No {
				t.Errorf("by the holder that does not accept: %v", v)
			}
		})
	}
}

func TestAcceptingDatagrams(t *testing.T) {
	fd := listen(t, &unix.SockaddrInet4{Addr: loopback}, unix.SOCK_DGRAM)
	w := start(t, "recv", fd)
	eventually(t, "the worker receives", func() bool {
		return acceptsOn(w.pid, inodeOf(t, fd)) == Yes
	})
}

// Of many sockets in one process each has its own answer: of "-but-last" the
// helper has the last one too, and does nothing with it.
func TestAcceptingOnMany(t *testing.T) {
	for _, name := range []string{"epoll-but-last", "poll-but-last", "select-but-last", "accept-but-last"} {
		t.Run(name, func(t *testing.T) {
			fds, inodes := listenMany(t, 70) // more than one word of a select's set
			stranger, _ := listenTCP(t)
			w := startWith(t, name, fds)
			last, others := inodes[len(inodes)-1], inodes[:len(inodes)-1]
			all := append(slices.Clone(inodes), inodeOf(t, stranger), inodes[0])
			var answers map[uint64]Verdict
			eventually(t, "the worker accepts on all but the last", func() bool {
				answers = Accepting([]int{os.Getpid(), w.pid}, all)
				return !slices.ContainsFunc(others, func(inode uint64) bool { return answers[inode] != Yes })
			})
			if v, there := answers[last]; v != No || !there {
				t.Errorf("on the last: %v, answered %v", v, there)
			}
			if v, there := answers[inodeOf(t, stranger)]; v != No || !there {
				t.Errorf("on a socket that it does not have: %v, answered %v", v, there)
			}
		})
	}
}

// A process that has both sockets hides by a ring what it does, another accepts
// on one of them: a Yes settles the matter, in whichever order they are asked.
func TestAcceptingByOneOfSeveral(t *testing.T) {
	fds, inodes := listenMany(t, 2)
	first, ring := start(t, "accept", fds[0]), startWith(t, "ring", fds)
	eventually(t, "the first worker accepts", func() bool { return acceptsOn(first.pid, inodes[0]) == Yes })
	if !ring.holdsRing(t) {
		t.Skip("no io_uring here")
	}
	for _, pids := range [][]int{{first.pid, ring.pid}, {ring.pid, first.pid}} {
		answers := Accepting(pids, inodes)
		if answers[inodes[0]] != Yes || answers[inodes[1]] != Unknown {
			t.Errorf("got %v, want %d yes and %d unknown", answers, inodes[0], inodes[1])
		}
	}
}

func TestAcceptingOfNobodyAndNothing(t *testing.T) {
	if v := Accepting(nil, []uint64{7}); len(v) != 1 || v[7] != No {
		t.Errorf("by nobody: %v", v)
	}
	if v := Accepting([]int{os.Getpid()}, nil); len(v) != 0 {
		t.Errorf("on nothing: %v", v)
	}
}

func TestNotAccepting(t *testing.T) {
	watching := func(w *worker) bool { return w.line(t) == "watching" }
	inSet := func(w *worker) bool { return sleepsWithSet(w.pid) }
	for name, arrived := range map[string]func(w *worker) bool{
		"idle":      func(*worker) bool { return true },
		"epoll-out": watching, "stale": watching,
		"poll-out": inSet, "select-no": inSet,
	} {
		t.Run(name, func(t *testing.T) {
			fd, _ := listenTCP(t)
			w := start(t, name, fd)
			eventually(t, "the helper is where it stays", func() bool { return arrived(w) })
			for range 20 {
				if v := acceptsOn(w.pid, inodeOf(t, fd)); v != No {
					t.Fatalf("got %v", v)
				}
			}
		})
	}
}

// sleepsWithSet tells whether the main thread sleeps in poll or select.
func sleepsWithSet(pid int) bool {
	line, err := readFile(taskPath(pid, pid, "syscall"), nil)
	if err != nil {
		return false
	}
	call, ok := parseSyscall(line)
	kind := waits[call.number]
	return ok && (kind == waitsInPoll || kind == waitsInSelect)
}

func TestAcceptingInGrandchild(t *testing.T) {
	fd, _ := listenTCP(t)
	w := start(t, "parent", fd)
	child, err := strconv.Atoi(w.line(t))
	check(t, err)
	eventually(t, "somebody of the tree accepts", func() bool {
		return allAre(Yes, Accepting(Tree(w.pid), []uint64{inodeOf(t, fd)}))
	})
	if v := acceptsOn(w.pid, inodeOf(t, fd)); v != No {
		t.Errorf("by the parent alone: %v", v)
	}
	if v := acceptsOn(child, inodeOf(t, fd)); v != Yes {
		t.Errorf("by the child alone: %v", v)
	}
}

// A call that was restarted after SIGCONT hides which one it was.
func TestAcceptingAfterStopAndContinue(t *testing.T) {
	fd, _ := listenTCP(t)
	w := start(t, "poll", fd)
	asleep := func() bool { return acceptsOn(w.pid, inodeOf(t, fd)) != No }
	eventually(t, "the worker accepts", asleep)
	check(t, unix.Kill(w.pid, unix.SIGSTOP))
	eventually(t, "the worker is stopped", func() bool {
		p, err := ReadProc(w.pid)
		return err == nil && p.State == 'T'
	})
	check(t, unix.Kill(w.pid, unix.SIGCONT))
	eventually(t, "the worker may accept again", asleep)
}

func TestAcceptingUnknownWithRing(t *testing.T) {
	fd, _ := listenTCP(t)
	w := start(t, "ring", fd)
	if !w.holdsRing(t) {
		t.Skip("no io_uring here")
	}
	if v := acceptsOn(w.pid, inodeOf(t, fd)); v != Unknown {
		t.Errorf("got %v, want unknown", v)
	}
}

// holdsRing waits until the helper "ring" has made its ring, and is false where
// it could not.
func (w *worker) holdsRing(t testing.TB) bool {
	t.Helper()
	holds := func() bool {
		look, _ := readTable(w.pid, nil)
		return look.ring
	}
	eventually(t, "the helper has made or missed its ring", func() bool { return holds() || gone(w.pid) })
	return holds()
}

// Descriptors of a process whose main thread has left show under the others.
func TestInodesWithoutMainThread(t *testing.T) {
	fd, _ := listenTCP(t)
	w := start(t, "leaderless", fd)
	eventually(t, "the main thread has left", func() bool {
		p, err := ReadProc(w.pid)
		return err == nil && p.State == 'Z'
	})
	inodes, complete := Inodes([]int{w.pid})
	if _, ok := inodes[inodeOf(t, fd)]; !ok || !complete {
		t.Errorf("got %v, complete %v", inodes, complete)
	}
	if tree := Tree(w.pid); len(tree) != 1 {
		t.Errorf("tree %v, want the process itself", tree)
	}
}

func TestInodesAndHolders(t *testing.T) {
	fd, _ := listenTCP(t)
	w := start(t, "idle", fd)
	inodes, complete := Inodes([]int{w.pid, 1 << 30})
	if _, ok := inodes[inodeOf(t, fd)]; !ok || !complete {
		t.Errorf("got %v, complete %v", inodes, complete)
	}
	if _, ok := inodes[inodeOf(t, fd)+1<<40]; ok {
		t.Error("holds what does not exist")
	}
	got := fmt.Sprint(Holders(inodeOf(t, fd)))
	want := map[string]bool{fmt.Sprint([]int{os.Getpid(), w.pid}): true, fmt.Sprint([]int{w.pid, os.Getpid()}): true}
	if !want[got] {
		t.Errorf("holders %s, want %d and %d", got, os.Getpid(), w.pid)
	}
}

func TestVanishedHoldsNothing(t *testing.T) {
	fd, _ := listenTCP(t)
	w := start(t, "idle", fd)
	w.end()
	inodes, complete := Inodes([]int{w.pid})
	if len(inodes) != 0 || !complete {
		t.Errorf("inodes %v, complete %v", inodes, complete)
	}
	if v := acceptsOn(w.pid, inodeOf(t, fd)); v != No {
		t.Errorf("accepting: %v", v)
	}
}

// playObserver looks at the pid and inode in its environment with fewer rights
// and prints the answers.
func playObserver() {
	runtime.LockOSThread()
	pid, _ := strconv.Atoi(os.Getenv("OBSERVE_TEST_PID"))
	inode, _ := strconv.ParseUint(os.Getenv("OBSERVE_TEST_INODE"), 10, 64)
	fmt.Println("up")
	if uid, err := strconv.Atoi(os.Getenv("OBSERVE_TEST_UID")); err == nil {
		must(unix.Setresuid(uid, uid, uid))
	} else {
		must(dropTracing())
	}
	inodes, complete := Inodes([]int{pid})
	fmt.Println(acceptsOn(pid, inode), len(inodes), complete)
}

// dropTracing gives CAP_SYS_PTRACE up, for this thread: it is all it needs.
func dropTracing() error {
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var data [2]unix.CapUserData
	if err := unix.Capget(&header, &data[0]); err != nil {
		return err
	}
	data[0].Effective &^= 1 << unix.CAP_SYS_PTRACE
	return unix.Capset(&header, &data[0])
}

func TestWorkerOfAnotherUserIsUnknown(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("needs root, to be two others")
	}
	for name, uid := range map[string]string{"another user": "OBSERVE_TEST_UID=65533", "root without CAP_SYS_PTRACE": "OBSERVE_TEST_UID="} {
		t.Run(name, func(t *testing.T) {
			fd, _ := listenTCP(t)
			w := start(t, "accept", fd, "OBSERVE_TEST_UID=65534")
			eventually(t, "root sees the worker accept", func() bool {
				return acceptsOn(w.pid, inodeOf(t, fd)) == Yes
			})
			observer := start(t, "observer", -1, uid,
				fmt.Sprint("OBSERVE_TEST_PID=", w.pid), fmt.Sprint("OBSERVE_TEST_INODE=", inodeOf(t, fd)))
			if got := observer.line(t); got != "unknown 0 false" {
				t.Errorf("the observer sees %q", got)
			}
		})
	}
}

func TestParseWatch(t *testing.T) {
	line := "tfd:        5 events:     2019 data:             1234  pos:0 ino:abc sdev:8\n"
	if inode, events := parseWatch([]byte(line)); inode != 0xabc || events != 0x2019 {
		t.Errorf("got %x, %x", inode, events)
	}
	for _, other := range []string{"", "pos:\t0\n", "tfd:", "tfd: 5 events:", strings.Replace(line, "abc", "xyz", 1)} {
		if inode, _ := parseWatch([]byte(other)); inode != 0 {
			t.Errorf("%q has inode %x", other, inode)
		}
	}
}

func FuzzParseLines(f *testing.F) {
	f.Add([]byte("288 0x3 0x0 0x0 0x0 0x0 0x0 0x7ffd00000000 0x7f0000000000\n"))
	f.Add([]byte("running\n"))
	f.Add([]byte("tfd: 5 events: 19 data: 1 pos:0 ino:a sdev:8\n"))
	f.Fuzz(func(t *testing.T, line []byte) {
		parseWatch(line)
		if call, ok := parseSyscall(line); !ok && call.number == 288 && len(line) == 0 {
			t.Fatal("a call out of nothing")
		}
	})
}
