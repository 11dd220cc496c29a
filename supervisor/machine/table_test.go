package machine

import (
	"reflect"
	"testing"
	"time"
)

// Every process ends: whatever has happened to a worker, when its time runs out
// often enough and the kernel does what SIGKILL asks for, it is gone.
func TestEveryWorkerEnds(t *testing.T) {
	for from := range workerState(numWorkerStates) {
		if from == serving || from <= forkingKill { // waits for what is asked, or for the outcome of its start
			continue
		}
		state := from
		for range 10 {
			for _, e := range []workerEvent{wDeadline, wExited, wCleared} {
				step, ok := workerTable[state][e]
				if ok && (e == wDeadline || state == killing || state == clearing) {
					state = step.to
				}
			}
		}
		if state != gone {
			t.Errorf("from %s it ends up in %s", from, state)
		}
	}
}

// A worker never goes back: what has been told to leave does not serve again.
func TestWorkersOnlyMoveForward(t *testing.T) {
	for from, row := range workerTable {
		for e, step := range row {
			if int(step.to) < from {
				t.Errorf("event %d leads from %s back to %s", e, workerState(from), step.to)
			}
		}
	}
}

// Whatever a worker does, TERM, KILL and the end of its process are noticed.
func TestEveryWorkerCanBeKilled(t *testing.T) {
	for state := range workerState(numWorkerStates) {
		if _, ok := workerTable[state][wKill]; !ok && state != killing && state != gone && state != forkingKill {
			t.Errorf("%s: KILL is ignored", state)
		}
		if _, ok := workerTable[state][wExited]; !ok && state > forkingKill && state < clearing {
			t.Errorf("%s: the end of the process is ignored", state)
		}
		if outsideStates[state] == "" {
			t.Errorf("%s has no name for the outside", state)
		}
	}
}

// From every phase the master can be ended by two TERMs.
func TestEveryPhaseEnds(t *testing.T) {
	for from := range phaseStopping {
		step := masterTable[from][evStop]
		if step.to != phaseStopping || step.do != doStop {
			t.Errorf("TERM leads from phase %d to phase %d", from, step.to)
		}
	}
	if masterTable[phaseStopping][evStop].to != phaseEnding || masterTable[phaseStopping][evEmpty].do != doExit || masterTable[phaseEnding][evEmpty].do != doExit {
		t.Error("a second TERM does not end it")
	}
}

// What is asked for after a stop was asked for never starts anything.
func TestNothingStartsAfterAStop(t *testing.T) {
	starts := map[masterAction]bool{doStart: true, doPromote: true, doPromoteNew: true, doFailNew: true}
	for p := phaseStopping; p <= phaseEnded; p++ {
		for e, step := range masterTable[p] {
			if step.to < p || starts[step.do] {
				t.Errorf("event %d leads from phase %d to phase %d with action %d", e, p, step.to, step.do)
			}
		}
	}
}

// No upgrade that was asked for is forgotten: between the asking and a stop there
// is one that starts.
func TestNoUpgradeIsForgotten(t *testing.T) {
	for from := range phaseStopping {
		p := from
		if step, ok := masterTable[from][evUpgrade]; ok {
			if step.do == doStart {
				continue
			}
			p = step.to
		}
		for _, over := range []masterEvent{evReady, evFailed} {
			if do := masterTable[p][over].do; do != doPromoteNew && do != doFailNew && do != doFailEnd {
				t.Errorf("asked for in phase %d, the upgrade is forgotten: event %d leads to action %d", from, over, do)
			}
		}
	}
}

// A generation that is given up, or that others have replaced, never serves again;
// a slot that is gone stays so.
func TestGenerationsAndSlotsOnlyMoveForward(t *testing.T) {
	for from, row := range generationTable {
		for e, step := range row {
			if int(step.to) <= from {
				t.Errorf("event %d leads from %s to %s", e, generationState(from), step.to)
			}
		}
	}
	if len(slotTable[slotGone]) > 0 || len(generationTable[retired]) > 0 || len(generationTable[failed]) > 0 {
		t.Error("something follows the end")
	}
	for state := range slotGone {
		_, drop := slotTable[state][seDrop]
		if worker := state == slotTaken || state == slotRescue; drop == worker {
			t.Errorf("slot %s: it can be dropped: %v", state, drop)
		}
	}
}

func TestNamesOfStates(t *testing.T) {
	if len(phaseNames) != len(masterTable) || len(generationStateNames) != len(generationTable) || len(slotStateNames) != len(slotTable) || len(workerStateNames) != len(workerTable) {
		t.Error("a state has no name, or no row")
	}
}

// crash is what follows when a worker that lived so long dies.
func (m *Machine) crash(s *slot, lived time.Duration) time.Duration {
	return staffing{m}.backoff(s, lived)
}

func TestBackoffDoublesFromMinToMax(t *testing.T) {
	cfg := testConfig()
	cfg.Restart.Min, cfg.Restart.Max = 100*time.Millisecond, 30*time.Second
	m, s := New(cfg), &slot{}
	if d := m.crash(s, 0); d != 0 {
		t.Fatalf("the first replacement comes after %s, want at once", d)
	}
	delay := cfg.Restart.Min
	for n := 2; n < 40; n++ {
		low, high := max(delay*8/10, cfg.Restart.Min), min(delay*12/10, cfg.Restart.Max)
		if d := m.crash(s, 0); d < low || d > high {
			t.Errorf("crash %d: %s, want between %s and %s", n, d, low, high)
		}
		delay = min(delay*2, cfg.Restart.Max)
	}
}

func TestBackoffStaysWithinItsBounds(t *testing.T) {
	for _, c := range []struct{ min, max time.Duration }{
		{0, 0}, {0, time.Second}, {time.Second, time.Second}, {time.Millisecond, 1<<63 - 1},
	} {
		cfg := testConfig()
		cfg.Restart.Min, cfg.Restart.Max = c.min, c.max
		m, s := New(cfg), &slot{}
		m.crash(s, 0)
		for n := range 200 {
			if d := m.crash(s, 0); d < c.min || d > c.max {
				t.Fatalf("%s..%s: crash %d is followed by %s", c.min, c.max, n+2, d)
			}
		}
	}
}

func TestBackoffBeginsAgainAfterAStableMinute(t *testing.T) {
	cfg := testConfig()
	cfg.Restart.Min, cfg.Restart.Max = time.Second, time.Minute
	m, s := New(cfg), &slot{}
	for range 5 {
		m.crash(s, 59*time.Second)
	}
	if d := m.crash(s, 59*time.Second); d < 10*time.Second {
		t.Errorf("after 59 s of life the sixth delay is %s", d)
	}
	if d := m.crash(s, time.Minute); d != 0 {
		t.Errorf("after a minute of life the delay is %s, want none", d)
	}
	if d := m.crash(s, 0); d < time.Second || d > 1200*time.Millisecond {
		t.Errorf("the second delay after that is %s, want about 1s", d)
	}
}

func TestBackoffSpreads(t *testing.T) {
	seen := map[time.Duration]bool{}
	for seed := range uint64(20) {
		cfg := testConfig()
		cfg.Seed, cfg.Restart.Min, cfg.Restart.Max = seed, time.Second, time.Hour
		m, s := New(cfg), &slot{}
		for range 5 {
			m.crash(s, 0)
		}
		seen[m.crash(s, 0)] = true
	}
	if len(seen) < 10 {
		t.Errorf("20 masters restart at only %d different times", len(seen))
	}
}

// What is cloned shares nothing with its original: else a step of the one would
// be seen in the other, and the explorer would walk elsewhere than it believes.
func TestClonesShareNothing(t *testing.T) {
	w := begin(t, interceptConfig(), binder("a", "b"))
	w.pass(time.Second)
	w.hup()
	w.pass(time.Millisecond)
	c := w.m.clone()
	w.m.orders, c.orders = nil, nil
	if !reflect.DeepEqual(w.m, c) {
		t.Error("the clone differs")
	}
	seen := map[uintptr]string{}
	walk(reflect.ValueOf(w.m), "m", func(p uintptr, path string) { seen[p] = path })
	walk(reflect.ValueOf(c), "m", func(p uintptr, path string) {
		if was, is := seen[p]; is {
			t.Errorf("%s is shared (%s)", path, was)
		}
	})
	w.quit()
}

// walk visits all pointers and lists that are not constant once they are made.
func walk(v reflect.Value, path string, f func(uintptr, string)) {
	switch v.Kind() {
	case reflect.Pointer:
		if v.IsNil() || v.Type().Elem().PkgPath() != reflect.TypeOf(Machine{}).PkgPath() {
			return
		}
		f(v.Pointer(), path)
		walk(v.Elem(), path, f)
	case reflect.Slice:
		if v.Cap() > 0 && v.Type().Elem().Kind() != reflect.String {
			f(v.Pointer(), path)
		}
		for i := range v.Len() {
			walk(v.Index(i), path+"[]", f)
		}
	case reflect.Struct:
		if v.Type() == reflect.TypeOf(time.Time{}) {
			return
		}
		for i := range v.NumField() {
			walk(v.Field(i), path+"."+v.Type().Field(i).Name, f)
		}
	}
}
