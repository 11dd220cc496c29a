package supervisor

import (
	"fmt"
	"testing"
)

// pair is one entry of a table as the test expects it. What a row does not
// list must change nothing.
type masterPair struct {
	on event
	to phase
	do action
}

var masterExpected = map[phase][]masterPair{
	phaseStarting: {
		{evUpgrade, phaseStartMore, doRemember},
		{evStop, phaseStopping, doStop},
		{evStopNow, phaseEnding, doKill},
		{evReady, phaseServing, doPromote},
		{evFailed, phaseStopping, doFailEnd},
		{evGaveUp, phaseStarting, doNothing},
		{evEmpty, phaseStarting, doNothing},
	},
	phaseStartMore: {
		{evUpgrade, phaseStartMore, doNothing},
		{evStop, phaseStopping, doStop},
		{evStopNow, phaseEnding, doKill},
		{evReady, phaseUpgrading, doPromoteNew},
		{evFailed, phaseStopping, doFailEnd},
		{evGaveUp, phaseStartMore, doNothing},
		{evEmpty, phaseStartMore, doNothing},
	},
	phaseServing: {
		{evUpgrade, phaseUpgrading, doStart},
		{evStop, phaseStopping, doStop},
		{evStopNow, phaseEnding, doKill},
		{evReady, phaseServing, doNothing},
		{evFailed, phaseServing, doNothing},
		{evGaveUp, phaseStopping, doGiveUp},
		{evEmpty, phaseServing, doNothing},
	},
	phaseUpgrading: {
		{evUpgrade, phaseMore, doRemember},
		{evStop, phaseStopping, doStop},
		{evStopNow, phaseEnding, doKill},
		{evReady, phaseServing, doPromote},
		{evFailed, phaseServing, doFail},
		{evGaveUp, phaseLastHope, doLose},
		{evEmpty, phaseUpgrading, doNothing},
	},
	phaseMore: {
		{evUpgrade, phaseMore, doNothing},
		{evStop, phaseStopping, doStop},
		{evStopNow, phaseEnding, doKill},
		{evReady, phaseUpgrading, doPromoteNew},
		{evFailed, phaseUpgrading, doFailNew},
		{evGaveUp, phaseHopeMore, doLose},
		{evEmpty, phaseMore, doNothing},
	},
	phaseLastHope: {
		{evUpgrade, phaseHopeMore, doRemember},
		{evStop, phaseStopping, doStop},
		{evStopNow, phaseEnding, doKill},
		{evReady, phaseServing, doPromote},
		{evFailed, phaseStopping, doGiveUp},
		{evGaveUp, phaseLastHope, doNothing},
		{evEmpty, phaseLastHope, doNothing},
	},
	phaseHopeMore: {
		{evUpgrade, phaseHopeMore, doNothing},
		{evStop, phaseStopping, doStop},
		{evStopNow, phaseEnding, doKill},
		{evReady, phaseUpgrading, doPromoteNew},
		{evFailed, phaseLastHope, doFailNew},
		{evGaveUp, phaseHopeMore, doNothing},
		{evEmpty, phaseHopeMore, doNothing},
	},
	phaseStopping: {
		{evUpgrade, phaseStopping, doTooLate},
		{evStop, phaseEnding, doKill},
		{evStopNow, phaseEnding, doKill},
		{evReady, phaseStopping, doNothing},
		{evFailed, phaseStopping, doNothing},
		{evGaveUp, phaseStopping, doNothing},
		{evEmpty, phaseEnded, doExit},
	},
	phaseEnding: {
		{evUpgrade, phaseEnding, doNothing},
		{evStop, phaseEnding, doNothing},
		{evStopNow, phaseEnding, doNothing},
		{evReady, phaseEnding, doNothing},
		{evFailed, phaseEnding, doNothing},
		{evGaveUp, phaseEnding, doNothing},
		{evEmpty, phaseEnded, doExit},
	},
	phaseEnded: {
		{evUpgrade, phaseEnded, doNothing},
		{evStop, phaseEnded, doNothing},
		{evStopNow, phaseEnded, doNothing},
		{evReady, phaseEnded, doNothing},
		{evFailed, phaseEnded, doNothing},
		{evGaveUp, phaseEnded, doNothing},
		{evEmpty, phaseEnded, doNothing},
	},
}

func TestMasterTable(t *testing.T) {
	if len(masterExpected) != len(phaseNames) || len(masterTable) != len(phaseNames) {
		t.Fatalf("%d phases have names, %d are in the table, %d in the test", len(phaseNames), len(masterTable), len(masterExpected))
	}
	for p, row := range masterExpected {
		seen := map[event]bool{}
		for _, want := range row {
			seen[want.on] = true
			if to, do := next(p, want.on); to != want.to || do != want.do {
				t.Errorf("phase %d (%s) on event %d: phase %d and action %d, want %d and %d", p, p, want.on, to, do, want.to, want.do)
			}
		}
		if len(seen) != int(numEvents) || len(row) != int(numEvents) {
			t.Errorf("phase %d: the test has %d of %d events", p, len(seen), numEvents)
		}
	}
}

type workerPair struct {
	on workerEvent
	to workerState
	do workerAction
}

var workerExpected = map[workerState][]workerPair{
	starting: {
		{wReady, serving, wServe},
		{wDeadline, terminating, wTerminate},
		{wEmpty, starting, wNothing},
		{wRetire, settling, wSettle},
		{wEnd, terminating, wTerminate},
		{wKill, killing, wKillAll},
		{wExited, clearing, wClear},
		{wCleared, starting, wNothing},
	},
	serving: {
		{wReady, serving, wNothing},
		{wDeadline, serving, wNothing},
		{wEmpty, serving, wNothing},
		{wRetire, settling, wSettle},
		{wEnd, draining, wDrainFast},
		{wKill, killing, wKillAll},
		{wExited, clearing, wClear},
		{wCleared, serving, wNothing},
	},
	settling: {
		{wReady, settling, wNothing},
		{wDeadline, draining, wDrain},
		{wEmpty, quiescing, wQuiesce},
		{wRetire, settling, wNothing},
		{wEnd, draining, wDrainFast},
		{wKill, killing, wKillAll},
		{wExited, clearing, wClear},
		{wCleared, settling, wNothing},
	},
	quiescing: {
		{wReady, quiescing, wNothing},
		{wDeadline, draining, wDrain},
		{wEmpty, draining, wDrain},
		{wRetire, quiescing, wNothing},
		{wEnd, draining, wDrainFast},
		{wKill, killing, wKillAll},
		{wExited, clearing, wClear},
		{wCleared, quiescing, wNothing},
	},
	draining: {
		{wReady, draining, wNothing},
		{wDeadline, terminating, wTerminate},
		{wEmpty, draining, wNothing},
		{wRetire, draining, wNothing},
		{wEnd, terminating, wTerminate},
		{wKill, killing, wKillAll},
		{wExited, clearing, wClear},
		{wCleared, draining, wNothing},
	},
	terminating: {
		{wReady, terminating, wNothing},
		{wDeadline, killing, wKillAll},
		{wEmpty, terminating, wNothing},
		{wRetire, terminating, wNothing},
		{wEnd, terminating, wNothing},
		{wKill, killing, wKillAll},
		{wExited, clearing, wClear},
		{wCleared, terminating, wNothing},
	},
	killing: {
		{wReady, killing, wNothing},
		{wDeadline, killing, wKillAll},
		{wEmpty, killing, wNothing},
		{wRetire, killing, wNothing},
		{wEnd, killing, wNothing},
		{wKill, killing, wNothing},
		{wExited, clearing, wClear},
		{wCleared, killing, wNothing},
	},
	clearing: {
		{wReady, clearing, wNothing},
		{wDeadline, clearing, wKillRest},
		{wEmpty, clearing, wNothing},
		{wRetire, clearing, wNothing},
		{wEnd, clearing, wKillRest},
		{wKill, clearing, wKillRest},
		{wExited, clearing, wNothing},
		{wCleared, gone, wForget},
	},
	gone: {
		{wReady, gone, wNothing},
		{wDeadline, gone, wNothing},
		{wEmpty, gone, wNothing},
		{wRetire, gone, wNothing},
		{wEnd, gone, wNothing},
		{wKill, gone, wNothing},
		{wExited, gone, wNothing},
		{wCleared, gone, wNothing},
	},
}

func TestWorkerTable(t *testing.T) {
	if len(workerExpected) != len(workerStateNames) || len(workerTable) != len(workerStateNames) {
		t.Fatalf("%d states have names, %d are in the table, %d in the test", len(workerStateNames), len(workerTable), len(workerExpected))
	}
	for state, row := range workerExpected {
		seen := map[workerEvent]bool{}
		for _, want := range row {
			seen[want.on] = true
			if to, do := nextWorker(state, want.on); to != want.to || do != want.do {
				t.Errorf("%s on event %d: %s and action %d, want %s and %d", state, want.on, to, do, want.to, want.do)
			}
		}
		if len(seen) != int(numWorkerEvents) || len(row) != int(numWorkerEvents) {
			t.Errorf("%s: the test has %d of %d events", state, len(seen), numWorkerEvents)
		}
	}
}

// Every process ends: whatever has happened to a worker, when its time runs out
// often enough and the kernel does what SIGKILL asks for, it is gone; and no
// order of other events keeps it from that.
func TestEveryWorkerEnds(t *testing.T) {
	for from := range workerState(len(workerStateNames)) {
		if from == serving { // has no deadline: it serves until something is asked
			continue
		}
		for _, order := range orders(from) {
			if steps, ok := runsOut(order); !ok {
				t.Errorf("from %s it ends up in %s after %d deadlines", from, order, steps)
			}
		}
	}
}

// orders is every state that any order of events leads to from one state,
// except by serving, in which a worker may stay for good.
func orders(from workerState) []workerState {
	reached := map[workerState]bool{from: true}
	queue := []workerState{from}
	for len(queue) > 0 {
		state := queue[0]
		queue = queue[1:]
		for e := range numWorkerEvents {
			if to, _ := nextWorker(state, e); !reached[to] && to != serving {
				reached[to] = true
				queue = append(queue, to)
			}
		}
	}
	var list []workerState
	for state := range reached {
		list = append(list, state)
	}
	return list
}

// runsOut lets the time of one state after the other run out. KILL ends the
// main process, and then the rest of its tree.
func runsOut(state workerState) (int, bool) {
	const most = 10
	for n := range most {
		if state == gone {
			return n, true
		}
		var do workerAction
		state, do = nextWorker(state, wDeadline)
		switch do {
		case wKillAll:
			state, _ = nextWorker(state, wExited)
		case wKillRest:
			state, _ = nextWorker(state, wCleared)
		}
	}
	return most, state == gone
}

// A worker never goes back: what has been told to leave does not serve again.
func TestWorkersOnlyMoveForward(t *testing.T) {
	for from := range workerState(len(workerStateNames)) {
		for e := range numWorkerEvents {
			if to, _ := nextWorker(from, e); to < from {
				t.Errorf("event %d leads from %s back to %s", e, from, to)
			}
		}
	}
}

// From every phase the master can be ended by two TERMs, whatever comes between
// them and before the last process is gone.
func TestEveryPhaseEnds(t *testing.T) {
	for from := range phaseEnded {
		for _, between := range afterEach(from) {
			p, do := next(between, evStop)
			if between < phaseStopping && (p != phaseStopping || do != doStop) {
				t.Errorf("TERM leads from phase %d to phase %d", between, p)
			}
			p, _ = next(p, evStop)
			if p != phaseEnding {
				t.Errorf("two TERMs lead from phase %d to phase %d", between, p)
			}
			if p, do = next(p, evEmpty); p != phaseEnded || do != doExit {
				t.Errorf("after the last process phase %d follows", p)
			}
		}
	}
}

// afterEach is every phase but the last that an order of events leads to.
func afterEach(from phase) []phase {
	reached := map[phase]bool{from: true}
	list := []phase{from}
	for i := 0; i < len(list); i++ {
		for e := range numEvents {
			if to, _ := next(list[i], e); !reached[to] && to != phaseEnded {
				reached[to] = true
				list = append(list, to)
			}
		}
	}
	return list
}

// What is asked for after a stop was asked for never starts anything.
func TestNothingStartsAfterAStop(t *testing.T) {
	starts := map[action]bool{doStart: true, doPromote: true, doPromoteNew: true, doFailNew: true}
	for _, p := range []phase{phaseStopping, phaseEnding, phaseEnded} {
		for e := range numEvents {
			if to, do := next(p, e); to < p || starts[do] {
				t.Errorf("event %d leads from phase %d to phase %d with action %d", e, p, to, do)
			}
		}
	}
}

// No upgrade that was asked for is forgotten: between the asking and a stop
// there is one that starts.
func TestNoUpgradeIsForgotten(t *testing.T) {
	for from := range phaseStopping {
		p, do := next(from, evUpgrade)
		if do == doStart {
			continue
		}
		for _, over := range []event{evReady, evFailed} {
			to, do := next(p, over)
			if do != doPromoteNew && do != doFailNew && do != doFailEnd {
				t.Errorf("asked for in phase %d, the upgrade is forgotten: event %d leads to phase %d with action %d", from, over, to, do)
			}
		}
	}
}

func TestNamesOfStates(t *testing.T) {
	for p := range phase(len(phaseNames)) {
		if p.String() == "" {
			t.Errorf("phase %d has no name", p)
		}
	}
	for state := range workerState(len(workerStateNames)) {
		if fmt.Sprint(state) == "" {
			t.Errorf("state %d has no name", state)
		}
	}
}
