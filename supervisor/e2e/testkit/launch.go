//go:build linux

package testkit

import (
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"testing"
)

// Launch is how a master is started. The functions without one start it as the
// test is.
//
// What stands for a place in a command line, in the environment or in a plan is
// the master's own: the addresses {a}, {b} and {c}, {p}, which is the port of
// {a}, the IPv6 address {six}, the path {s} and the gate {gate}.
type Launch struct {
	Wrap   []string   // a command that executes the rest of its arguments
	Env    []string   // in addition to the test's
	Files  []*os.File // descriptors from 3 on; stay the caller's
	Dir    string
	Exe    string    // another moult than the test binary
	Public bool      // moult and its workers are a copy that everybody may execute
	Stdout io.Writer // gets what workers write there
}

// Listen starts "moult run -l {a}" with flags, over workers that do what
// the plan says.
func Listen(t testing.TB, plan string, flags ...string) *Master {
	t.Helper()
	return Launch{}.Listen(t, plan, flags...)
}

// Capture starts "moult run" with flags, over workers that bind their own
// addresses as the plan says: "binds" and its steps.
func Capture(t testing.TB, plan string, flags ...string) *Master {
	t.Helper()
	return Launch{}.Capture(t, plan, flags...)
}

// Run starts "moult run" with flags in front of the command.
func Run(t testing.TB, flags []string, command []string) *Master {
	t.Helper()
	return Launch{}.Start(t, slices.Concat([]string{"run"}, flags, []string{"--"}, command)...)
}

// Listen is the function of this name.
func (l Launch) Listen(t testing.TB, plan string, flags ...string) *Master {
	t.Helper()
	return l.planned(t, plan, append([]string{"-l", "{a}"}, flags...))
}

// Capture is the function of this name.
func (l Launch) Capture(t testing.TB, plan string, flags ...string) *Master {
	t.Helper()
	return l.planned(t, plan, flags)
}

func (l Launch) planned(t testing.TB, plan string, flags []string) *Master {
	t.Helper()
	m, worker := l.prepare(t), Executable()
	m.plan = filepath.Join(PublicDir(t), "plan")
	m.Next(plan)
	if l.Public {
		worker = m.cmd.Path
	}
	return m.start(slices.Concat([]string{"run"}, flags, []string{"--", worker, workerPrefix + "plan", m.plan}))
}

// Start starts moult with these arguments.
func (l Launch) Start(t testing.TB, args ...string) *Master {
	t.Helper()
	return l.prepare(t).start(args)
}

func (l Launch) prepare(t testing.TB) *Master {
	t.Helper()
	if l.Public {
		l.Exe, l.Dir = PublicCopy(t), "/"
	}
	if l.Exe == "" {
		l.Exe = Executable()
	}
	m := &Master{
		t: t, exited: make(chan struct{}), news: make(chan struct{}),
		token: newToken(), places: map[string]string{},
	}
	m.cmd = exec.Command(l.Exe)
	m.wrap, m.cmd.Dir, m.cmd.ExtraFiles, m.cmd.Stdout = l.Wrap, l.Dir, l.Files, l.Stdout
	// A control socket of its own: in the default place masters of one name
	// look whether the others live, and so wake them.
	m.cmd.Env = append(os.Environ(), tokenVariable+"="+m.token, "MOULT_LOG_FORMAT=json", "MOULT_CONTROL="+m.control())
	m.cmd.Env = append(m.cmd.Env, m.fillAll(l.Env)...)
	// Out of the terminal's process group: its signals are meant for the test.
	m.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	return m
}

func (m *Master) start(args []string) *Master {
	m.t.Helper()
	m.cmd.Args = append(m.cmd.Args, m.fillAll(args)...)
	if len(m.wrap) > 0 {
		path, err := exec.LookPath(m.wrap[0])
		OK(m.t, err)
		m.cmd.Path, m.cmd.Args = path, append(slices.Clone(m.wrap), m.cmd.Args...)
	}
	m.Address = m.places["a"]
	stderr, write, err := os.Pipe()
	OK(m.t, err)
	m.cmd.Stderr = write
	OK(m.t, m.cmd.Start())
	write.Close()
	go m.follow(stderr)
	go m.await()
	m.t.Cleanup(func() { m.cleanUp(); stderr.Close() })
	return m
}

// control is short enough for a unix socket, wherever the test's folder is.
func (m *Master) control() string {
	return filepath.Join(os.TempDir(), "moult-test-"+m.token+".sock")
}

// Next says what the workers shall be that start from now on: a worker's name
// with its options, or "sh" with a command line.
func (m *Master) Next(plan string) {
	m.t.Helper()
	OK(m.t, os.WriteFile(m.plan+".new", []byte(m.Fill(plan)), 0o644))
	OK(m.t, os.Rename(m.plan+".new", m.plan))
}

var placePattern = regexp.MustCompile(`\{(a|b|c|p|six|s|gate)\}`)

// Fill puts the master's places into a text.
func (m *Master) Fill(text string) string {
	m.t.Helper()
	return placePattern.ReplaceAllStringFunc(text, func(word string) string { return m.place(strings.Trim(word, "{}")) })
}

func (m *Master) fillAll(texts []string) (filled []string) {
	for _, text := range texts {
		filled = append(filled, m.Fill(text))
	}
	return filled
}

func (m *Master) place(name string) string {
	if _, known := m.places[name]; !known {
		switch name {
		case "p":
			m.places[name] = PortOf(m.place("a"))
		case "six":
			m.places[name] = net.JoinHostPort("::1", PortOf(FreeAddress(m.t)))
		case "s":
			m.places[name] = filepath.Join(PublicDir(m.t), "s")
		case "gate":
			m.places[name] = m.newGate()
		default:
			m.places[name] = FreeAddress(m.t)
		}
	}
	return m.places[name]
}

// newGate makes what a worker's step "wait" waits at until the test lets it
// pass.
func (m *Master) newGate() string {
	path := filepath.Join(PublicDir(m.t), "gate")
	OK(m.t, syscall.Mkfifo(path, 0o644))
	gate, err := os.OpenFile(path, os.O_RDWR, 0)
	OK(m.t, err)
	m.t.Cleanup(func() { gate.Close() })
	m.gate = gate
	return path
}

// Pass lets n workers through the gate, which wait there already or come later.
func (m *Master) Pass(n int) {
	m.t.Helper()
	_, err := m.gate.Write(make([]byte, n))
	OK(m.t, err)
}
