package machine

import (
	"strings"
	"testing"
	"time"
)

// Deliberate mistakes in the tables. Each must be caught by the explorer, and by
// the promise that it breaks: one that is never caught is not checked.
var mutations = []struct {
	name  string
	want  string // letters of the promises that may catch it
	with  string // the configuration that meets it
	wrong func() (undo func())
}{
	{"an upgrade during an upgrade is forgotten", "g", "1 worker, 1 address, 3 generations", func() func() {
		return masterRow(phaseUpgrading, evUpgrade, masterStep{phaseUpgrading, doRemember})
	}},
	{"one more upgrade is forgotten when the first fails", "gcj", "1 worker, 2 addresses, 3 generations", func() func() {
		return masterRow(phaseMore, evFailed, masterStep{phaseServing, doFail})
	}},
	{"a failed upgrade stops the master", "cja", "1 worker, 1 address, 3 generations", func() func() {
		return masterRow(phaseUpgrading, evFailed, masterStep{phaseStopping, doFail})
	}},
	{"the end without an end", "j", "1 worker, 1 address, answers at any time", func() func() {
		return masterRow(phaseStopping, evEmpty, masterStep{phaseStopping, doNothing})
	}},
	{"an end although processes are left", "i", "1 worker, 1 address, answers at any time", func() func() {
		return masterRow(phaseServing, evStop, masterStep{phaseEnded, doExit})
	}},
	{"an upgrade starts while all drains", "gbcjei", "1 worker, 1 address, 3 generations", func() func() {
		return masterRow(phaseStopping, evUpgrade, masterStep{phaseStopping, doStart})
	}},
	{"nobody hears that a stop has ended an upgrade", "f", "clients and stops", func() func() {
		meddle = func(m *Machine, e Event) {
			if _, stops := e.(StopAsked); stops && m.next() != nil {
				m.next().Asked = nil
			}
		}
		return func() { meddle = nil }
	}},
	{"a socket is counted twice", "h", "1 worker, 1 address, 3 generations", func() func() {
		meddle = func(m *Machine, e Event) {
			if _, is := e.(Hangup); is && len(m.Book.Addresses[0].Members) > 0 {
				m.Book.Addresses[0].Members[0].Users++
			}
		}
		return func() { meddle = nil }
	}},
	{"a generation is named before it has started", "b", "1 worker, 1 address, 3 generations", func() func() {
		return generationRow(joining, geFurnished, generationStep{switching, gStart})
	}},
	{"the old generation serves on beside the new one", "bc", "1 worker, 1 address, 3 generations", func() func() {
		return generationRow(current, geRetire, generationStep{current, gRetire})
	}},
	{"a generation that fails at the switch is ended at once", "adh", "1 worker, 2 addresses, the kernel answers at any time", func() func() {
		return generationRow(switching, geFail, generationStep{failed, gEnd})
	}},
	{"a worker drains without having settled", "d", "1 worker, 1 address, 3 generations", func() func() {
		return workerRow(parting, wApart, workerStep{draining, wDrain})
	}},
	{"a worker settles before the kernel was told", "d", "2 workers, one more and one fewer", func() func() {
		return workerRow(serving, wRetire, workerStep{settling, wSettle})
	}},
	{"a worker that does not obey is not killed", "ej", "1 worker, 1 address, answers at any time", func() func() {
		return workerRow(terminating, wDeadline, workerStep{terminating, wNothing})
	}},
	{"a worker that drains for ever", "ej", "1 worker, 1 address, answers at any time", func() func() {
		return workerRow(draining, wDeadline, workerStep{draining, wNothing})
	}},
	{"a death is not noticed", "ej", "1 worker, 1 address, answers at any time", func() func() {
		return workerRow(draining, wExited, workerStep{draining, wNothing})
	}},
	{"the sockets of a dead worker are given back", "aceh", "1 worker, 1 address, 3 generations", func() func() {
		return slotRow(slotFree, seRestart, slotStep{slotWaiting, slRelease})
	}},
	{"a dead worker is not replaced", "ej", "1 worker, 1 address, 3 generations", func() func() {
		return slotRow(slotWaiting, seDue, slotStep{slotFree, slNothing})
	}},
	{"a socket is given back twice", "hec", "1 worker, 1 address, 3 generations", func() func() {
		return slotRow(slotCounting, seEmpty, slotStep{slotCounting, slRelease})
	}},
	{"lent sockets never come back", "ej", "taking over from the dead", func() func() {
		return slotRow(slotLent, seBack, slotStep{slotLent, slNothing})
	}},
}

func masterRow(p phase, e masterEvent, s masterStep) func() {
	was, had := masterTable[p][e]
	masterTable[p][e] = s
	return func() { restore(masterTable[p], e, was, had) }
}

func generationRow(p generationState, e generationEvent, s generationStep) func() {
	was, had := generationTable[p][e]
	generationTable[p][e] = s
	return func() { restore(generationTable[p], e, was, had) }
}

func slotRow(p slotState, e slotEvent, s slotStep) func() {
	was, had := slotTable[p][e]
	slotTable[p][e] = s
	return func() { restore(slotTable[p], e, was, had) }
}

func workerRow(p workerState, e workerEvent, s workerStep) func() {
	was, had := workerTable[p][e]
	workerTable[p][e] = s
	return func() { restore(workerTable[p], e, was, had) }
}

func restore[E comparable, S any](row map[E]S, e E, was S, had bool) {
	if had {
		row[e] = was
	} else {
		delete(row, e)
	}
}

// TestMutations must not run beside others: it changes the tables.
func TestMutations(t *testing.T) {
	for _, c := range mutations {
		t.Run(c.name, func(t *testing.T) {
			defer c.wrong()()
			for _, x := range configurations {
				if x.name != c.with {
					continue
				}
				x.states, x.cut = 30_000, true
				began := time.Now()
				s, broken := x.safely(10)
				line, _, _ := strings.Cut(broken, "\n")
				t.Logf("after %d states, %s: %s", len(s.seen), time.Since(began).Round(time.Millisecond), line)
				letter, _, _ := strings.Cut(strings.TrimPrefix(line, "driven: "), ":")
				if broken == "" || !strings.Contains(c.want, letter) && letter != "panic" {
					t.Errorf("caught by %q, want one of %q", line, c.want)
				}
				return
			}
			t.Fatalf("no configuration is called %q", c.with)
		})
	}
}

// safely explores a machine that may break down.
func (x exploring) safely(drive int) (s *search, broken string) {
	s = &search{}
	defer func() {
		if r := recover(); r != nil {
			broken = "panic: it breaks down"
		}
	}()
	return x.explore(drive)
}
