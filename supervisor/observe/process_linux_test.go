package observe

import (
	"errors"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"testing"

	"golang.org/x/sys/unix"
)

func TestReadProc(t *testing.T) {
	p, err := ReadProc(os.Getpid())
	check(t, err)
	sid, err := unix.Getsid(0)
	check(t, err)
	if p.PID != os.Getpid() || p.PPID != os.Getppid() || p.PGID != unix.Getpgrp() || p.SID != sid || !p.Alive() || p.Threads < 2 {
		t.Errorf("got %+v", p)
	}
	if _, err := ReadProc(1 << 30); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("no such process: %v", err)
	}
}

func TestProcessWithAnOddName(t *testing.T) {
	name := t.TempDir() + "/a) Z 1 (b"
	sleep, err := exec.LookPath("sleep")
	check(t, err)
	check(t, os.Symlink(sleep, name))
	pid := run(t, name, "60")
	eventually(t, "the process bears its name", func() bool {
		p, err := ReadProc(pid)
		return err == nil && p.Comm == "a) Z 1 (b" && p.PPID == os.Getpid() && p.Alive()
	})
}

// run starts a program that ends with the test.
func run(t testing.TB, name string, args ...string) int {
	t.Helper()
	cmd := exec.Command(name, args...)
	check(t, cmd.Start())
	t.Cleanup(func() {
		cmd.Process.Kill()
		cmd.Wait()
	})
	return cmd.Process.Pid
}

func TestFamily(t *testing.T) {
	fd, _ := listenTCP(t)
	w := start(t, "parent", fd)
	child, err := strconv.Atoi(w.line(t))
	check(t, err)
	if tree := Tree(w.pid); !slices.Equal(tree, []int{w.pid, child}) {
		t.Errorf("tree %v, want %d and %d", tree, w.pid, child)
	}
	if got := Children(w.pid); !slices.Equal(got, []int{child}) {
		t.Errorf("children %v, want %d", got, child)
	}
	if got := childrenByPass(w.pid); !slices.Equal(got, []int{child}) {
		t.Errorf("children by a pass %v, want %d", got, child)
	}
	for _, c := range []struct {
		pid, root int
		want      Verdict
	}{
		{child, os.Getpid(), Yes}, {child, child, Yes}, {w.pid, child, No},
		{os.Getpid(), w.pid, No}, {1 << 30, w.pid, Unknown},
	} {
		if v := DescendsFrom(c.pid, c.root); v != c.want {
			t.Errorf("%d descends from %d: %v, want %v", c.pid, c.root, v, c.want)
		}
	}
}

func TestProcessesListsAll(t *testing.T) {
	pid := run(t, "sleep", "60")
	all, err := Processes()
	check(t, err)
	for _, want := range []int{pid, os.Getpid()} {
		if !slices.ContainsFunc(all, func(p Proc) bool { return p.PID == want }) {
			t.Errorf("%d is not listed", want)
		}
	}
}

func TestZombieIsOutOfEverything(t *testing.T) {
	fd, _ := listenTCP(t)
	w := start(t, "accept", fd)
	check(t, unix.Kill(w.pid, unix.SIGKILL))
	eventually(t, "the worker is a zombie", func() bool {
		p, err := ReadProc(w.pid)
		return err == nil && !p.Alive()
	})
	if slices.Contains(Tree(os.Getpid()), w.pid) || slices.Contains(Children(os.Getpid()), w.pid) || Tree(w.pid) != nil {
		t.Error("a zombie is listed among the living")
	}
	if inodes, complete := Inodes([]int{w.pid}); len(inodes) != 0 || !complete {
		t.Errorf("inodes %v, complete %v", inodes, complete)
	}
	if v := acceptsOn(w.pid, inodeOf(t, fd)); v != No {
		t.Errorf("accepting: %v", v)
	}
	if v := DescendsFrom(w.pid, os.Getpid()); v != Yes {
		t.Errorf("descends from here: %v", v)
	}
	if v := Handles(w.pid, unix.SIGTERM); v != Unknown {
		t.Errorf("handles TERM: %v", v)
	}
}

func TestHandles(t *testing.T) {
	pid := run(t, "sh", "-c", `trap "" USR2; exec sleep 60`)
	eventually(t, "the shell has become sleep", func() bool {
		p, err := ReadProc(pid)
		return err == nil && p.Comm == "sleep"
	})
	for sig, want := range map[unix.Signal]Verdict{unix.SIGUSR2: Yes, unix.SIGUSR1: No, unix.SIGKILL: No, 0: Unknown, 65: Unknown} {
		if v := Handles(pid, sig); v != want {
			t.Errorf("%v: %v, want %v", sig, v, want)
		}
	}
	if v := Handles(os.Getpid(), unix.SIGTERM); v != Yes {
		t.Errorf("Go's own handler: %v", v)
	}
	if v := Handles(1<<30, unix.SIGTERM); v != Unknown {
		t.Errorf("nobody: %v", v)
	}
}

func TestMemory(t *testing.T) {
	rss, pss, err := Memory(os.Getpid())
	if err != nil || pss == 0 || pss > rss || rss < 1<<20 {
		t.Errorf("got %d, %d, %v", rss, pss, err)
	}
	if _, _, err := Memory(1 << 30); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("nobody: %v", err)
	}
}

func TestNothingStaysOpen(t *testing.T) {
	fd, port := listenTCP(t)
	w := start(t, "accept", fd)
	look := func() {
		Accepting(Tree(w.pid), []uint64{inodeOf(t, fd)})
		Inodes([]int{w.pid})
		Children(os.Getpid())
		Connections([]uint16{port}, true)
		Listeners(port)
		AcceptQueue(fd)
		UnixConnections("@nobody")
		Memory(w.pid)
	}
	look() // the runtime's poller opens with the first netlink socket
	before, err := numbers("/proc/self/fd")
	check(t, err)
	for range 20 {
		look()
	}
	after, err := numbers("/proc/self/fd")
	check(t, err)
	if len(after) != len(before) {
		t.Errorf("%d descriptors before, %d after", len(before), len(after))
	}
}
