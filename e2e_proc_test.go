//go:build linux

package main

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

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

func describe(pids []int) string {
	var lines []string
	for _, pid := range pids {
		command, _ := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
		lines = append(lines, fmt.Sprintf("%d (%s, parent %s)", pid,
			bytes.ReplaceAll(bytes.TrimRight(command, "\x00"), []byte{0}, []byte{' '}), statusField(pid, "PPid")))
	}
	return strings.Join(lines, ", ")
}

// killProcess kills by pidfd, so that a pid that has just been given to
// somebody else is in no danger after the check.
func killProcess(pid int) {
	fd, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		return
	}
	defer unix.Close(fd)
	unix.PidfdSendSignal(fd, unix.SIGKILL, nil, 0)
}

// alive tells whether a process exists and is no zombie.
func alive(pid int) bool {
	state := statusField(pid, "State")
	return state != "" && !strings.HasPrefix(state, "Z") && !strings.HasPrefix(state, "X")
}

func statusField(pid int, name string) string {
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

func statusNumber(t testing.TB, pid int, name string) int {
	t.Helper()
	number, _, _ := strings.Cut(statusField(pid, name), " ")
	n, err := strconv.Atoi(number)
	if err != nil {
		t.Fatalf("cannot read %s of process %d: %v", name, pid, err)
	}
	return n
}

// children are the direct ones, zombies included.
func children(pid int) (pids []int) {
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

func zombies(pid int) (n int) {
	for _, child := range children(pid) {
		if strings.HasPrefix(statusField(child, "State"), "Z") {
			n++
		}
	}
	return n
}

// descriptors are the open ones with what they lead to.
func descriptors(pid int) map[int]string {
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

// switches is the sum of voluntary and involuntary context switches of all
// threads.
func switches(pid int) (n int) {
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

// memory is resident and proportional memory in kB.
func memory(t testing.TB, pid int) (rss, pss int) {
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

// stock is what must not grow.
type stock struct{ descriptors, children, zombies int }

func takeStock(pid int) stock {
	return stock{len(descriptors(pid)), len(children(pid)), zombies(pid)}
}

// A group of steered sockets keeps a spare member for each generation that may
// drain, by default up to eight, and may be left with some of them.
const spareDescriptors = 8

// backTo waits until the master holds no more than it held before.
func (m *master) backTo(before stock) {
	m.t.Helper()
	until(m.t, "descriptors, children and zombies as before", func() error {
		now := takeStock(m.pid())
		if now.descriptors > before.descriptors+spareDescriptors || now.children != before.children || now.zombies > 0 {
			return fmt.Errorf("%+v, before %+v; descriptors %v", now, before, sortedTargets(m.pid()))
		}
		return nil
	})
}

func sortedTargets(pid int) (targets []string) {
	for fd, target := range descriptors(pid) {
		targets = append(targets, fmt.Sprintf("%d→%s", fd, target))
	}
	slices.Sort(targets)
	return targets
}

// gone waits until a process has ended and been reaped.
func gone(t testing.TB, pid int) {
	t.Helper()
	until(t, fmt.Sprintf("process %d is gone", pid), func() error {
		if _, err := os.Stat(fmt.Sprintf("/proc/%d", pid)); err == nil {
			return errors.New(describe([]int{pid}) + " is " + statusField(pid, "State"))
		}
		return nil
	})
}
