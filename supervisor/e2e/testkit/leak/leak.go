// Package leak finds goroutines and descriptors that tests have left behind.
package leak

import (
	"fmt"
	"os"
	"runtime"
	"strings"
	"testing"
	"time"
)

// Main runs the tests of a package, for TestMain, and fails if a goroutine that
// they started outlives them.
func Main(m *testing.M) {
	code := m.Run()
	if left := Left(nil); code == 0 && len(left) > 0 {
		fmt.Fprintf(os.Stderr, "goroutines are left:\n\n%s\n", strings.Join(left, "\n\n"))
		code = 1
	}
	os.Exit(code)
}

// Check notes which goroutines and descriptors there are. What it returns fails
// the test if there are more by then.
func Check(t testing.TB) (verify func()) {
	t.Helper()
	known, open := others(), Descriptors()
	return func() {
		t.Helper()
		if left := Left(known); len(left) > 0 {
			t.Errorf("goroutines are left:\n\n%s", strings.Join(left, "\n\n"))
		}
		now := Descriptors()
		for limit := time.Now().Add(moment); now > open && time.Now().Before(limit); now = Descriptors() {
			time.Sleep(time.Millisecond)
		}
		if now > open {
			t.Errorf("%d descriptors are open, %d before", now, open)
		}
	}
}

// Descriptors counts those of this process: 0 where the system does not tell.
func Descriptors() int {
	list, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		return 0
	}
	return len(list)
}

// moment is what those that are about to end are given.
const moment = 2 * time.Second

// Left returns the stacks of goroutines that are neither the caller's nor the
// runtime's, nor among those of known, which an earlier call has returned. Those
// that are about to end are given a moment.
func Left(known []string) (stacks []string) {
	ids := map[string]bool{}
	for _, stack := range known {
		ids[id(stack)] = true
	}
	for limit := time.Now().Add(moment); time.Now().Before(limit); time.Sleep(10 * time.Millisecond) {
		stacks = nil
		for _, stack := range others() {
			if !ids[id(stack)] {
				stacks = append(stacks, stack)
			}
		}
		if len(stacks) == 0 {
			break
		}
	}
	return stacks
}

// id is the goroutine's, "goroutine 7".
func id(stack string) string {
	name, _, _ := strings.Cut(stack, " [")
	return name
}

// others are the stacks of all goroutines but the caller's, that of signals,
// and those of tests that wait for others.
func others() (stacks []string) {
	all := make([]byte, 4<<20)
	all = all[:runtime.Stack(all, true)]
	for _, stack := range strings.Split(strings.TrimSpace(string(all)), "\n\n")[1:] {
		if !strings.Contains(stack, "os/signal.") && !strings.Contains(stack, "testing.(*T).Run") && !strings.Contains(stack, "testing.(*M).") {
			stacks = append(stacks, stack)
		}
	}
	return stacks
}
