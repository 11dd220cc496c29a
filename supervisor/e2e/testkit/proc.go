//go:build linux

package testkit

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// Settled waits until the master sleeps: longer without a context switch than
// between any two looks that it takes at a worker which has become ready.
func Settled(t testing.TB, m *Master) {
	t.Helper()
	last, since := Switches(m.PID()), time.Now()
	Until(t, "the master sleeps", func() error {
		if now := Switches(m.PID()); now != last {
			last, since = now, time.Now()
		}
		if time.Since(since) < 4500*time.Millisecond {
			return os.ErrDeadlineExceeded
		}
		return nil
	})
}

// What /proc says about a process.

// processesWith are the pids whose environment has the token, zombies aside.
func processesWith(token string) (pids []int) {
	needle := []byte(tokenVariable + "=" + token + "\x00")
	files, _ := filepath.Glob("/proc/[0-9]*/environ")
	for _, file := range files {
		environ, err := os.ReadFile(file)
		if err != nil || !bytes.Contains(append(environ, 0), needle) {
			continue
		}
		if pid, err := strconv.Atoi(filepath.Base(filepath.Dir(file))); err == nil {
			pids = append(pids, pid)
		}
	}
	return pids
}

func Describe(pids []int) string {
	var lines []string
	for _, pid := range pids {
		command, _ := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
		lines = append(lines, fmt.Sprintf("%d (%s, parent %s)", pid,
			bytes.ReplaceAll(bytes.TrimRight(command, "\x00"), []byte{0}, []byte{' '}), StatusField(pid, "PPid")))
	}
	return strings.Join(lines, ", ")
}

// KillProcess kills by pidfd, so that a pid that has just been given to
// somebody else is in no danger after the check.
func KillProcess(pid int) {
	fd, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		return
	}
	defer unix.Close(fd)
	unix.PidfdSendSignal(fd, unix.SIGKILL, nil, 0)
}

// Alive tells whether a process exists and is no zombie.
func Alive(pid int) bool {
	state := StatusField(pid, "State")
	return state != "" && !strings.HasPrefix(state, "Z") && !strings.HasPrefix(state, "X")
}

func StatusField(pid int, name string) string {
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return ""
	}
	for line := range strings.Lines(string(status)) {
		if value, found := strings.CutPrefix(line, name+":"); found {
			return strings.TrimSpace(value)
		}
	}
	return ""
}

func StatusNumber(t testing.TB, pid int, name string) int {
	t.Helper()
	number, _, _ := strings.Cut(StatusField(pid, name), " ")
	n, err := strconv.Atoi(number)
	if err != nil {
		t.Fatalf("cannot read %s of process %d: %v", name, pid, err)
	}
	return n
}

// Children are the direct ones, zombies included.
func Children(pid int) (pids []int) {
	files, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/children", pid))
	for _, file := range files {
		list, _ := os.ReadFile(file)
		for field := range strings.FieldsSeq(string(list)) {
			if child, err := strconv.Atoi(field); err == nil {
				pids = append(pids, child)
			}
		}
	}
	return pids
}

func Zombies(pid int) (n int) {
	for _, child := range Children(pid) {
		if strings.HasPrefix(StatusField(child, "State"), "Z") {
			n++
		}
	}
	return n
}

// Descriptors are the open ones with what they lead to.
func Descriptors(pid int) map[int]string {
	open := map[int]string{}
	directory := fmt.Sprintf("/proc/%d/fd", pid)
	files, _ := os.ReadDir(directory)
	for _, file := range files {
		if fd, err := strconv.Atoi(file.Name()); err == nil {
			if target, err := os.Readlink(filepath.Join(directory, file.Name())); err == nil {
				open[fd] = target
			}
		}
	}
	return open
}

// Switches is the sum of voluntary and involuntary context switches of all
// threads.
func Switches(pid int) (n int) {
	tasks, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/status", pid))
	for _, task := range tasks {
		status, _ := os.ReadFile(task)
		for line := range strings.Lines(string(status)) {
			if name, value, found := strings.Cut(line, ":"); found && strings.HasSuffix(name, "voluntary_ctxt_switches") {
				count, _ := strconv.Atoi(strings.TrimSpace(value))
				n += count
			}
		}
	}
	return n
}

// Memory is resident and proportional memory in kB.
func Memory(t testing.TB, pid int) (rss, pss int) {
	t.Helper()
	rollup, err := os.ReadFile(fmt.Sprintf("/proc/%d/smaps_rollup", pid))
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(rollup)) {
		fields := strings.Fields(line)
		if len(fields) < 2 {
			continue
		}
		switch fields[0] {
		case "Rss:":
			rss, _ = strconv.Atoi(fields[1])
		case "Pss:":
			pss, _ = strconv.Atoi(fields[1])
		}
	}
	return rss, pss
}

// Stock is what must not grow.
type Stock struct{ descriptors, children, zombies int }

func TakeStock(pid int) Stock {
	return Stock{len(Descriptors(pid)), len(Children(pid)), Zombies(pid)}
}

// A group of steered sockets keeps a spare member for each generation that may
// drain, by default up to eight, and may be left with some of them.
const spareDescriptors = 8

// With makes room for the spares of more groups than one.
func (s Stock) With(groups int) Stock {
	s.descriptors += groups * spareDescriptors
	return s
}

// BackTo waits until the master holds no more than it held before.
func (m *Master) BackTo(before Stock) {
	m.t.Helper()
	Until(m.t, "descriptors, children and zombies as before", func() error {
		now := TakeStock(m.PID())
		if now.descriptors > before.descriptors+spareDescriptors || now.children != before.children || now.zombies > 0 {
			return fmt.Errorf("%+v, before %+v; descriptors %v", now, before, SortedTargets(m.PID()))
		}
		return nil
	})
}

func SortedTargets(pid int) (targets []string) {
	for fd, target := range Descriptors(pid) {
		targets = append(targets, fmt.Sprintf("%d→%s", fd, target))
	}
	slices.Sort(targets)
	return targets
}

// Gone waits until a process has ended and been reaped.
func Gone(t testing.TB, pid int) {
	t.Helper()
	Until(t, fmt.Sprintf("process %d is gone", pid), func() error {
		if _, err := os.Stat(fmt.Sprintf("/proc/%d", pid)); err == nil {
			return errors.New(Describe([]int{pid}) + " is " + StatusField(pid, "State"))
		}
		return nil
	})
}

// Freeze stops a process and returns when it has.
func Freeze(t testing.TB, pid int) {
	t.Helper()
	OK(t, syscall.Kill(pid, syscall.SIGSTOP))
	Until(t, "the worker has stopped", func() error {
		if state := StatusField(pid, "State"); !strings.HasPrefix(state, "T") {
			return errors.New("it is " + state)
		}
		return nil
	})
}

// Thaw lets a frozen process go on.
func Thaw(t testing.TB, pid int) {
	t.Helper()
	OK(t, syscall.Kill(pid, syscall.SIGCONT))
}

// Family is a process with its descendants.
func Family(pid int) []int {
	pids := []int{pid}
	for _, child := range Children(pid) {
		pids = append(pids, Family(child)...)
	}
	return pids
}
