package process

import (
	"bufio"
	"io"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/moult/moult/supervisor/e2e/testkit/leak"
	"github.com/moult/moult/supervisor/observe"
)

// roleVariable makes the test binary play a process of a worker's tree.
const roleVariable = "PROCESS_TEST_ROLE"

var roles = map[string]func(){}

const nobody = 1<<22 + 1 // above the highest pid

func TestMain(m *testing.M) {
	if play := roles[os.Getenv(roleVariable)]; play != nil {
		play()
		os.Exit(0)
	}
	leak.Main(m)
}

func init() {
	// stay lives until its stdin is closed.
	roles["stay"] = func() { _, _ = io.Copy(io.Discard, os.Stdin) }
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// eventually waits for a fact.
func eventually(t testing.TB, what string, fact func() bool) {
	t.Helper()
	for end := time.Now().Add(10 * time.Second); !fact(); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("not within 10 s: %s", what)
		}
	}
}

// child is a process whose end nobody but the test takes in.
type child struct {
	*Process
	stdin io.WriteCloser
	lines *bufio.Scanner
}

// start starts a program that leads a group, as workers do, with a mark. It is
// killed and reaped with the test.
func start(t testing.TB, extra []*os.File, command ...string) *child {
	t.Helper()
	mark := NewMark()
	cmd := exec.Command(command[0], command[1:]...)
	cmd.Env = append(os.Environ(), "GORACE=atexit_sleep_ms=0", MarkVariable+"="+mark)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Stderr, cmd.ExtraFiles = os.Stderr, extra
	stdin, err := cmd.StdinPipe()
	must(t, err)
	stdout, err := cmd.StdoutPipe()
	must(t, err)
	must(t, cmd.Start())
	c := &child{New(cmd.Process.Pid, -1, os.Getpid(), mark), stdin, bufio.NewScanner(stdout)}
	t.Cleanup(func() {
		stdin.Close()
		c.mu.Lock()
		reaped := c.reaped
		c.mu.Unlock()
		if !reaped {
			c.End()
		}
		stdout.Close()
	})
	return c
}

// play starts the test binary in a role.
func play(t testing.TB, role string) *child {
	t.Helper()
	t.Setenv(roleVariable, role)
	return start(t, nil, os.Args[0])
}

// line is the next that the process says.
func (c *child) line(t testing.TB) string {
	t.Helper()
	if !c.lines.Scan() {
		t.Fatalf("pid %d says nothing more: %v", c.PID, c.lines.Err())
	}
	return c.lines.Text()
}

// sleepers reads "NAME PID" for each of some programs that sleep, and waits until
// they do. They are killed with the test.
func (c *child) sleepers(t testing.TB, n int) map[string]int {
	t.Helper()
	pids := map[string]int{}
	for range n {
		name, text, _ := strings.Cut(c.line(t), " ")
		pid, err := strconv.Atoi(text)
		must(t, err)
		pids[name] = pid
		t.Cleanup(func() {
			_ = syscall.Kill(pid, syscall.SIGKILL)
			wait(pid, 0) // ours by now: we are the parent of orphans
		})
		eventually(t, name+" sleeps", func() bool {
			p, err := observe.ReadProc(pid)
			return err == nil && p.Comm == "sleep"
		})
	}
	return pids
}

func isZombie(pid int) bool {
	p, err := observe.ReadProc(pid)
	return err == nil && !p.Alive()
}

func (c *child) ended(t testing.TB) (s Status) {
	t.Helper()
	eventually(t, "it has ended", func() (ok bool) {
		_, s, ok = Ended(c.PID)
		return ok
	})
	return s
}
