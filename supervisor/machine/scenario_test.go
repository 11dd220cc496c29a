package machine

import (
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/moult/moult/supervisor/control/api"
	"github.com/moult/moult/supervisor/ready"
)

const eagain = "cannot start the worker: resource temporarily unavailable"

// readyAtOnce is a server that says READY=1 a millisecond after its start.
func readyAtOnce(p *proc) { p.readyAfter(time.Millisecond) }

func TestStartThatTimesOutEndsRun(t *testing.T) {
	cfg := testConfig()
	cfg.ReadyTimeout = 7 * time.Second
	stubborn := func(p *proc) { p.ignores = map[Signal]bool{SIGTERM: true} }
	w := begin(t, cfg, stubborn)
	exit := w.wantEnd(12*time.Second, 1)
	w.wantSignals(w.nth(1), "7s TERM", "12s KILL")
	if !strings.Contains(exit.Reason, "--ready-timeout 7s") {
		t.Errorf("the reason is %q", exit.Reason)
	}
}

func TestUpgradeThatTimesOutLeavesTheOldOneAlone(t *testing.T) {
	cfg := testConfig()
	cfg.ReadyTimeout = 7 * time.Second
	play := func(p *proc) {
		if p.nth != 2 {
			readyAtOnce(p)
		}
	}
	w := begin(t, cfg, play)
	w.pass(time.Second)
	w.hup()
	w.pass(10 * time.Second)
	w.wantSignals(w.nth(1))
	w.wantSignals(w.nth(2), "8s TERM")
	if got := w.m.Phase; got != phaseServing {
		t.Errorf("the phase is %s", got)
	}
	w.term()
	w.wantEnd(11*time.Second, 0)
}

func TestReadyTimeoutIsExtendedByTheWorker(t *testing.T) {
	cfg := testConfig()
	cfg.ReadyTimeout = 5 * time.Second
	play := func(p *proc) {
		p.world.after(4*time.Second, func() { p.say(Notified{Extend: 20 * time.Second}) })
	}
	w := begin(t, cfg, play)
	w.wantEnd(24*time.Second, 1)
}

func TestDrainWithAnotherSignal(t *testing.T) {
	cfg := testConfig()
	cfg.DrainSignal = sigQUIT
	play := func(p *proc) {
		readyAtOnce(p)
		if p.nth == 1 {
			p.ignores = map[Signal]bool{sigQUIT: true, SIGTERM: true}
		}
	}
	w := begin(t, cfg, play)
	w.pass(time.Second)
	w.hup()
	w.pass(time.Minute)
	w.wantSignals(w.nth(1), "1.001s QUIT", "31.001s TERM", "36.001s KILL")
	w.wantSignals(w.nth(2))
	w.term()
	w.wantSignals(w.nth(2), "1m1s QUIT")
	w.wantEnd(61*time.Second, 0)
}

func TestDrainWithTERMGetsItOnce(t *testing.T) {
	play := func(p *proc) {
		readyAtOnce(p)
		p.ignores = map[Signal]bool{SIGTERM: true}
	}
	w := begin(t, testConfig(), play)
	w.pass(time.Second)
	w.term()
	w.wantEnd(36*time.Second, 0)
	w.wantSignals(w.nth(1), "1s TERM", "36s KILL")
}

func TestWorkerThatDrainsInTimeIsLeftAlone(t *testing.T) {
	play := func(p *proc) {
		readyAtOnce(p)
		p.linger = 29 * time.Second
	}
	w := begin(t, testConfig(), play)
	w.pass(time.Second)
	w.hup()
	w.pass(29 * time.Second)
	w.wantSignals(w.nth(1), "1.001s TERM")
	w.term()
	w.wantEnd(59*time.Second, 0)
}

func TestCrashesAreDelayed(t *testing.T) {
	play := func(p *proc) {
		readyAtOnce(p)
		if p.nth <= 4 {
			p.exitAfter(10*time.Millisecond, killedBy(11))
		}
		if p.nth == 5 {
			p.exitAfter(2*time.Minute, exited(1))
		}
	}
	w := begin(t, testConfig(), play)
	w.pass(10 * time.Minute)
	want := []time.Duration{0, 10, 270, 530, 790, 790 + 120_000} // milliseconds
	if len(w.procs) != len(want) {
		t.Fatalf("%d starts, want %d", len(w.procs), len(want))
	}
	for i, at := range want {
		if got := w.nth(i + 1).at; got != at*time.Millisecond {
			t.Errorf("start %d at %s, want %s", i+1, got, at*time.Millisecond)
		}
	}
	w.term()
}

func TestRestartLimit(t *testing.T) {
	cfg := testConfig()
	cfg.Restart.Limit, cfg.Restart.Within = 3, 10*time.Second
	play := func(p *proc) {
		readyAtOnce(p)
		p.exitAfter(time.Second, exited(7))
	}
	w := begin(t, cfg, play)
	exit := w.wantEnd(3250*time.Millisecond, 7)
	if !strings.Contains(exit.Reason, "--restart-limit 3/10s") {
		t.Errorf("the reason is %q", exit.Reason)
	}
	if len(w.procs) != 3 {
		t.Errorf("%d starts, want 3", len(w.procs))
	}
}

func TestFailuresOutsideTheWindowDoNotCount(t *testing.T) {
	cfg := testConfig()
	cfg.Restart.Limit, cfg.Restart.Within = 3, 10*time.Second
	play := func(p *proc) {
		readyAtOnce(p)
		p.exitAfter(6*time.Second, exited(7))
	}
	w := begin(t, cfg, play)
	w.pass(5 * time.Minute)
	if got := w.m.Phase; got != phaseServing {
		t.Errorf("the phase is %s", got)
	}
	w.quit()
}

func TestRestartPolicies(t *testing.T) {
	for _, c := range []struct {
		restart string
		status  Status
		ends    bool
		code    int
	}{
		{"always", exited(0), false, 0},
		{"always", exited(3), false, 0},
		{"on-failure", exited(0), true, 0},
		{"on-failure", exited(3), false, 0},
		{"on-failure", killedBy(SIGKILL), false, 0},
		{"never", exited(0), true, 0},
		{"never", exited(3), true, 3},
		{"never", killedBy(11), true, 139},
	} {
		cfg := testConfig()
		cfg.Restart.Policy = c.restart
		play := func(p *proc) {
			readyAtOnce(p)
			if p.nth == 1 {
				p.exitAfter(time.Second, c.status)
			}
		}
		w := begin(t, cfg, play)
		if c.ends {
			w.wantEnd(time.Second, c.code)
			return
		}
		w.pass(time.Minute)
		if len(w.procs) != 2 {
			t.Errorf("%s after %v: %d starts, want 2", c.restart, c.status, len(w.procs))
		}
		w.term()
		w.wantEnd(time.Minute, 0)
	}
}

func TestMaxDrainingEndsTheOldest(t *testing.T) {
	cfg := testConfig()
	cfg.DrainSignal, cfg.MaxDraining, cfg.DrainTimeout = sigQUIT, 2, time.Hour
	play := func(p *proc) {
		readyAtOnce(p)
		p.ignores = map[Signal]bool{sigQUIT: true, SIGTERM: true}
	}
	w := begin(t, cfg, play)
	for range 3 {
		w.pass(time.Second)
		w.hup()
	}
	w.pass(time.Minute)
	w.wantSignals(w.nth(1), "1.001s QUIT", "3.001s TERM", "8.001s KILL")
	w.wantSignals(w.nth(2), "2.001s QUIT")
	w.wantSignals(w.nth(3), "3.001s QUIT")
	w.wantSignals(w.nth(4))
	w.quit()
	w.wantEnd(63*time.Second, 0)
}

func TestManyHUPsDuringAnUpgradeAreOne(t *testing.T) {
	play := func(p *proc) { p.readyAfter(10 * time.Second) }
	w := begin(t, testConfig(), play)
	for range 50 {
		w.hup() // during the first start
	}
	w.pass(15 * time.Second)
	if len(w.procs) != 2 {
		t.Fatalf("%d starts after the first was ready, want 2", len(w.procs))
	}
	for range 50 {
		w.hup() // during the upgrade
	}
	w.pass(time.Hour)
	if len(w.procs) != 3 {
		t.Errorf("%d starts, want 3", len(w.procs))
	}
	if got := w.nth(3).at; got != 20*time.Second {
		t.Errorf("the last upgrade began at %s, want 20s: at the end of the one before", got)
	}
	w.term()
	w.wantEnd(time.Hour+15*time.Second, 0)
}

func TestHUPThatWaitsForAFailedStart(t *testing.T) {
	play := func(p *proc) {
		if p.nth == 2 {
			p.exitAfter(5*time.Second, exited(1))
			return
		}
		readyAtOnce(p)
	}
	w := begin(t, testConfig(), play)
	w.pass(time.Second)
	w.hup()
	w.pass(time.Second)
	w.hup()
	w.pass(time.Minute)
	if len(w.procs) != 3 || w.nth(3).at != 6*time.Second {
		t.Errorf("%d starts; want a third one when the second has failed", len(w.procs))
	}
	w.wantSignals(w.nth(1), "6.001s TERM")
	w.term()
}

func TestTERMDuringAnUpgrade(t *testing.T) {
	play := func(p *proc) {
		if p.nth == 1 {
			readyAtOnce(p)
		}
		p.linger = 2 * time.Second
	}
	w := begin(t, testConfig(), play)
	w.pass(time.Second)
	w.hup()
	w.hup() // forgotten with the rest
	w.pass(time.Second)
	w.term()
	w.wantEnd(4*time.Second, 0)
	w.wantSignals(w.nth(1), "2s TERM")
	w.wantSignals(w.nth(2), "2s TERM")
	if len(w.procs) != 2 {
		t.Errorf("%d starts, want 2", len(w.procs))
	}
}

func TestTERMDuringTheFirstStart(t *testing.T) {
	w := begin(t, testConfig(), nil)
	w.pass(time.Second)
	w.term()
	w.wantEnd(time.Second, 0)
}

func TestSecondTERMEndsAtOnce(t *testing.T) {
	play := func(p *proc) {
		readyAtOnce(p)
		p.ignores = map[Signal]bool{SIGTERM: true}
	}
	w := begin(t, testConfig(), play)
	w.pass(time.Second)
	w.hup()
	w.pass(time.Second)
	w.term()
	w.pass(time.Second)
	w.term()
	w.wantEnd(3*time.Second, 0)
	w.wantSignals(w.nth(1), "1.001s TERM", "3s KILL")
	w.wantSignals(w.nth(2), "2s TERM", "3s KILL")
}

func TestQUITEndsAtOnce(t *testing.T) {
	w := begin(t, testConfig(), readyAtOnce)
	w.pass(time.Second)
	w.quit()
	w.wantEnd(time.Second, 0)
	w.wantSignals(w.nth(1), "1s KILL")
}

func TestTERMInBackOff(t *testing.T) {
	cfg := testConfig()
	cfg.Restart.Min, cfg.Restart.Max = time.Minute, time.Minute
	play := func(p *proc) {
		readyAtOnce(p)
		p.exitAfter(time.Second, exited(1))
	}
	w := begin(t, cfg, play)
	w.pass(5 * time.Second)
	w.term()
	w.wantEnd(5*time.Second, 0)
	if len(w.procs) != 2 {
		t.Errorf("%d starts, want 2", len(w.procs))
	}
}

func TestCrashOfTheServingWorkerDuringAnUpgrade(t *testing.T) {
	play := func(p *proc) {
		switch p.nth {
		case 1:
			readyAtOnce(p)
			p.exitAfter(3*time.Second, killedBy(SIGKILL))
		case 2:
			p.readyAfter(10 * time.Second)
		default:
			readyAtOnce(p)
		}
	}
	w := begin(t, testConfig(), play)
	w.pass(time.Second)
	w.hup()
	w.pass(time.Minute)
	if len(w.procs) != 3 || w.nth(3).at != 3*time.Second || w.nth(3).generation != 1 {
		t.Fatalf("%d starts; want the replacement of generation 1 at 3s", len(w.procs))
	}
	w.wantSignals(w.nth(3), "11s TERM")
	w.wantSignals(w.nth(2))
	w.term()
}

func TestNewGenerationThatDiesAfterPromotionIsReplaced(t *testing.T) {
	play := func(p *proc) {
		readyAtOnce(p)
		p.linger = 20 * time.Second
		if p.nth == 2 {
			p.exitAfter(time.Second, killedBy(11))
		}
	}
	w := begin(t, testConfig(), play)
	w.pass(time.Second)
	w.hup()
	w.pass(5 * time.Second)
	if len(w.procs) != 3 || w.nth(3).at != 2*time.Second || w.nth(3).generation != 2 {
		t.Errorf("%d starts; want generation 2 again at 2s", len(w.procs))
	}
	w.term()
	w.wantEnd(26*time.Second, 0)
}

func TestFirstForkThatFailsEndsRun(t *testing.T) {
	play := func(p *proc) { p.fails = eagain }
	w := begin(t, testConfig(), play)
	exit := w.wantEnd(0, 1)
	if exit.Reason != eagain {
		t.Errorf("the reason is %q", exit.Reason)
	}
}

func TestForkThatFailsInAnUpgrade(t *testing.T) {
	play := func(p *proc) {
		readyAtOnce(p)
		if p.nth == 2 {
			p.fails = eagain
		}
	}
	w := begin(t, testConfig(), play)
	w.pass(time.Second)
	w.hup()
	w.pass(time.Second)
	w.wantSignals(w.nth(1))
	w.hup()
	w.pass(time.Second)
	w.wantSignals(w.nth(1), "2.001s TERM")
	w.term()
}

func TestForksThatFailInTheServingGenerationAreDelayed(t *testing.T) {
	play := func(p *proc) {
		readyAtOnce(p)
		switch {
		case p.nth == 1:
			p.exitAfter(time.Second, exited(1))
		case p.nth < 5:
			p.fails = eagain
		}
	}
	w := begin(t, testConfig(), play)
	w.pass(time.Minute)
	if len(w.procs) != 5 || w.nth(5).at != 1750*time.Millisecond {
		t.Errorf("%d starts, the last at %s; want the fifth at 1.75s", len(w.procs), w.nth(len(w.procs)).at)
	}
	w.term()
	w.wantEnd(time.Minute, 0)
}

func TestOneOfTwoThatFailsFailsTheStart(t *testing.T) {
	cfg := testConfig()
	cfg.Workers = 2
	play := func(p *proc) {
		if p.nth == 4 {
			p.exitAfter(2*time.Second, exited(9))
			return
		}
		readyAtOnce(p)
	}
	w := begin(t, cfg, play)
	w.pass(time.Second)
	w.hup()
	w.pass(time.Minute)
	w.wantSignals(w.nth(1))
	w.wantSignals(w.nth(2))
	w.wantSignals(w.nth(3), "3s TERM")
	if len(w.procs) != 4 {
		t.Errorf("%d starts, want 4", len(w.procs))
	}
	w.term()
	w.wantEnd(61*time.Second, 0)
}

func TestTreeIsEndedBeforeTheReplacementStarts(t *testing.T) {
	play := func(p *proc) {
		readyAtOnce(p)
		if p.nth == 1 {
			p.child(SIGTERM)
			p.exitAfter(time.Second, killedBy(SIGKILL))
		}
	}
	w := begin(t, testConfig(), play)
	w.pass(time.Minute)
	if got := w.nth(2).at; got != 6*time.Second {
		t.Errorf("the replacement started at %s, want 6s: when the child had got its grace and KILL", got)
	}
	w.term()
	w.wantEnd(time.Minute, 0)
}

func TestTreeThatGoesInTimeIsWaitedFor(t *testing.T) {
	play := func(p *proc) {
		readyAtOnce(p)
		if p.nth == 1 {
			p.child().linger = 2 * time.Second
			p.exitAfter(time.Second, killedBy(SIGKILL))
		}
	}
	w := begin(t, testConfig(), play)
	w.pass(time.Minute)
	if got := w.nth(2).at; got < 3*time.Second || got > 3100*time.Millisecond {
		t.Errorf("the replacement started at %s, want 3s", got)
	}
	w.term()
}

func TestSecondTERMEndsWhatIsLeftOfTrees(t *testing.T) {
	play := func(p *proc) {
		readyAtOnce(p)
		p.child(SIGTERM)
	}
	w := begin(t, testConfig(), play)
	w.pass(time.Second)
	w.term()
	w.pass(time.Second)
	w.term()
	w.wantEnd(2*time.Second, 0)
}

// What a shell leaves when it dies in the middle of a drain has what the drain
// had left, not all of it once more.
func TestLeftoversOfADrainHaveWhatItHadLeft(t *testing.T) {
	play := func(p *proc) {
		readyAtOnce(p)
		p.linger = 20 * time.Second
		p.child(SIGTERM)
	}
	w := begin(t, testConfig(), play)
	w.pass(time.Second)
	w.term()
	w.wantEnd(31*time.Second, 0)
}

func TestExitAndDeadlineAtTheSameInstant(t *testing.T) {
	cfg := testConfig()
	cfg.ReadyTimeout = 7 * time.Second
	play := func(p *proc) {
		p.linger = 5 * time.Second // leaves exactly when KILL is due
	}
	w := begin(t, cfg, play)
	w.wantEnd(12*time.Second, 1)
}

func TestForwardedSignals(t *testing.T) {
	w := begin(t, testConfig(), readyAtOnce)
	w.do(PassOn{sigUSR1}) // nobody serves yet
	w.pass(time.Second)
	w.do(PassOn{sigUSR1})
	w.wantSignals(w.nth(1), "1s USR1")
	w.wantSignals(w.nth(1), "1s USR1")
	w.term()
}

func TestScalingDuringAStart(t *testing.T) {
	cfg := testConfig()
	cfg.Workers = 2
	play := func(p *proc) { p.readyAfter(10 * time.Second) }
	w := begin(t, cfg, play)
	w.pass(time.Second)
	w.do(ScaleAsked{+1})
	w.pass(time.Minute)
	w.wantServing(3)
	w.hup()
	w.pass(time.Second)
	w.do(ScaleAsked{-1})
	w.do(ScaleAsked{-1})
	w.pass(time.Minute)
	w.wantServing(1)
	w.term()
}

// The last hope is the upgrade under way when the serving generation has been
// given up; a HUP then is as good as any other.
func TestHUPWhileTheLastHopeStarts(t *testing.T) {
	cfg := testConfig()
	cfg.Restart.Policy = "never"
	play := func(p *proc) {
		switch p.nth {
		case 1:
			readyAtOnce(p)
			p.exitAfter(2*time.Second, exited(4))
		case 2:
			p.exitAfter(9*time.Second, exited(5))
		default:
			readyAtOnce(p)
		}
	}
	w := begin(t, cfg, play)
	w.pass(time.Second)
	w.hup()
	w.pass(2 * time.Second)
	w.hup()
	w.pass(time.Minute)
	if len(w.procs) != 3 || w.m.Phase != phaseServing {
		t.Errorf("%d starts, phase %s; want a third start that serves", len(w.procs), w.m.Phase)
	}
	w.term()
	w.wantEnd(63*time.Second, 0)
}

func TestTheLastHopeThatFailsEndsWithTheLostWorkersStatus(t *testing.T) {
	cfg := testConfig()
	cfg.Restart.Policy = "never"
	play := func(p *proc) {
		if p.nth == 1 {
			readyAtOnce(p)
			p.exitAfter(2*time.Second, exited(4))
			return
		}
		p.exitAfter(9*time.Second, exited(5))
	}
	w := begin(t, cfg, play)
	w.pass(time.Second)
	w.hup()
	w.wantEnd(10*time.Second, 4)
}

func TestKillGraceOfNothing(t *testing.T) {
	cfg := testConfig()
	cfg.KillGrace, cfg.DrainTimeout = 0, 0
	play := func(p *proc) {
		readyAtOnce(p)
		p.ignores = map[Signal]bool{SIGTERM: true}
	}
	w := begin(t, cfg, play)
	w.pass(time.Second)
	w.term()
	w.wantEnd(time.Second, 0)
	w.wantSignals(w.nth(1), "1s TERM", "1s KILL")
}

func TestStartErrorsDecideTheExitCode(t *testing.T) {
	for _, code := range []int{127, 126, 1} {
		w := begin(t, testConfig(), func(p *proc) { p.fails, p.code = "cannot execute x", code })
		if exit := w.wantEnd(0, code); exit.Reason != "cannot execute x" {
			t.Errorf("the reason is %q", exit.Reason)
		}
	}
}

// What comes late meets a state that has passed.
func TestLateTimersAndWordsAreIgnored(t *testing.T) {
	w := begin(t, testConfig(), readyAtOnce)
	w.pass(time.Second)
	w.hup()
	w.pass(time.Second)
	for _, late := range []Event{
		Forked{Worker: 1, PID: 9}, StartFailed{Worker: 1}, Exited{1, exited(1)}, Looked{Worker: 1, Seq: 1},
		Notified{Worker: 1, Ready: true}, Alone{1, "late"}, ListenerLost{1}, Steered{Address: 1}, Steered{Address: 9},
		QueueSeen{1, 3}, Furnished{First: 1}, Tick{}, Mended{9}, ProgramChecked{Op: 4}, Listening{Call: 7, Worker: 1},
	} {
		if orders := w.m.Step(dawn.Add(w.now), late); len(orders) > 0 || w.m.Phase != phaseServing {
			t.Errorf("%T: %v follows", late, orders)
		}
	}
	w.term()
	w.wantEnd(2*time.Second, 0)
	if orders := w.m.Step(dawn, Hangup{}); orders != nil {
		t.Errorf("after the end: %v", orders)
	}
}

func TestScaling(t *testing.T) {
	w := begin(t, testConfig(), readyAtOnce)
	w.pass(time.Second)
	w.do(ScaleAsked{+1})
	w.pass(time.Second)
	w.wantStarts(2)
	w.do(ScaleAsked{-1})
	w.do(ScaleAsked{-1}) // never fewer than one
	w.pass(time.Second)
	w.wantSignals(w.nth(1))
	w.wantSignals(w.nth(2), "2s TERM")
	w.hup()
	w.pass(time.Second)
	w.wantStarts(3) // one worker in the new generation
	w.term()
	w.wantEnd(4*time.Second, 0)
}

// A version that says READY=1 and fails must not change what is asked of the
// one that goes on.
func TestReadinessOfAFailedVersionIsForgotten(t *testing.T) {
	cfg := testConfig()
	cfg.Ready, cfg.Workers = ready.Auto, 2
	play := func(p *proc) {
		p.accepts = p.generation == 1
		switch {
		case p.generation == 2 && p.nth%2 == 1:
			p.readyAfter(time.Second)
		case p.generation == 2:
			p.exitAfter(2*time.Second, exited(1))
		}
	}
	w := begin(t, cfg, play)
	w.pass(time.Second)
	w.wantServing(2)
	w.hup()
	w.pass(3 * time.Second)
	w.nth(1).exit(killedBy(SIGKILL))
	w.pass(time.Second)
	w.wantStarts(5)
	w.wantServing(2)
	w.quit()
}

// A dead generation's sockets are taken over by the next; while a start that
// failed still lets go of them, they are not to be taken once more.
func TestTakeOverWhileAFailedOneLetsGo(t *testing.T) {
	cfg := testConfig()
	cfg.Restart.Min, cfg.Restart.Max = time.Minute, time.Minute
	cfg.ReadyTimeout = 5 * time.Second
	play := func(p *proc) {
		switch {
		case p.nth <= 2: // crashes twice: the second time with a delay
			readyAtOnce(p)
			p.exitAfter(10*time.Millisecond, exited(1))
		case p.nth <= 4: // not ready in time, and slow to leave
			p.linger = 3 * time.Second
		default:
			readyAtOnce(p)
		}
	}
	w := begin(t, cfg, play)
	w.pass(time.Second)
	w.hup()
	w.wantStarts(3)
	w.pass(time.Second)
	w.hup() // follows when the first one has failed
	w.pass(5 * time.Minute)
	w.wantServing(1)
	if len(w.watch.Live) != 1 {
		t.Errorf("%d sockets are left, want 1", len(w.watch.Live))
	}
	w.term()
}

// What waits in the queue of a dead generation is served by the one that takes
// its sockets over.
func TestTakeOver(t *testing.T) {
	cfg := testConfig()
	cfg.Restart.Min, cfg.Restart.Max, cfg.Workers = time.Minute, time.Minute, 2
	play := func(p *proc) {
		readyAtOnce(p)
		if p.generation == 1 {
			p.exitAfter(10*time.Millisecond, exited(1))
		}
	}
	w := begin(t, cfg, play)
	w.pass(time.Second)
	w.wantStarts(4)
	before := slices.Clone(w.watch.Live)
	w.hup()
	w.pass(time.Second)
	w.wantServing(2)
	if !slices.Equal(w.watch.Live, before) {
		t.Errorf("the sockets are %v, want %v", w.watch.Live, before)
	}
	w.term()
	w.wantEnd(2*time.Second, 0)
}

// One that scales up while a dead generation is being replaced gets its worker
// when the upgrade is over.
func TestScalingDuringATakeOver(t *testing.T) {
	for _, up := range []bool{true, false} {
		cfg := testConfig()
		cfg.Restart.Min, cfg.Restart.Max = time.Minute, time.Minute
		play := func(p *proc) {
			readyAtOnce(p)
			if p.generation == 1 && p.nth <= 2 {
				p.exitAfter(10*time.Millisecond, exited(1))
			}
		}
		w := begin(t, cfg, play)
		w.pass(time.Second)
		w.delay = func(o Order) time.Duration {
			if _, furnishes := o.(Furnish); furnishes {
				return time.Second
			}
			return 0
		}
		if up {
			w.do(ScaleAsked{+1})
		}
		w.hup()
		w.do(ScaleAsked{+1})
		w.pass(time.Minute)
		want := 2
		if up {
			want = 3
		}
		w.wantServing(want)
		w.term()
		w.wantEnd(61*time.Second, 0)
	}
}

// The one line of an upgrade names the generation that serves now.
func TestTheLineOfAnUpgradeNamesTheNewGeneration(t *testing.T) {
	w := begin(t, testConfig(), readyAtOnce)
	w.pass(time.Second)
	w.hup()
	w.pass(time.Second)
	for _, tr := range w.seen {
		if tr.From == "upgrading" && tr.To == "serving" && tr.Generation != 2 {
			t.Errorf("%+v, want generation 2", tr)
		}
	}
	w.quit()
}

// An upgrade that was asked for during a first start which fails ends with it.
func TestClientsHearOfAFailedFirstStart(t *testing.T) {
	w := begin(t, testConfig(), func(p *proc) { p.exitAfter(time.Second, exited(3)) })
	id := w.ask(api.Operation{Kind: api.OpUpgrade})
	w.wantEnd(time.Second, 3)
	if got := w.said[id]; !slices.Equal(got, []string{"accepted", api.EventFailed}) {
		t.Errorf("the client has heard %v", got)
	}
}

func TestOperationsOfClients(t *testing.T) {
	play := func(p *proc) {
		readyAtOnce(p)
		if p.nth == 2 {
			p.exitAfter(time.Millisecond/2, exited(1))
		}
	}
	w := begin(t, testConfig(), play)
	w.pass(time.Second)
	heard := func(kind string, want ...string) {
		t.Helper()
		id := w.ask(api.Operation{Kind: kind, Workers: 2})
		w.pass(time.Second)
		if !slices.Equal(w.said[id], want) {
			t.Errorf("%s: the client has heard %v, want %v", kind, w.said[id], want)
		}
	}
	heard(api.OpRollback, "turned down")
	heard("nonsense", "turned down")
	heard(api.OpUpgrade, "accepted", api.EventStarting, api.EventFailed)
	heard(api.OpUpgrade, "accepted", api.EventStarting, api.EventReady, api.EventDraining, api.EventDone)
	heard(api.OpRollback, "accepted", api.EventStarting, api.EventReady, api.EventDraining, api.EventDone)
	heard(api.OpScale, "accepted", api.EventDone)
	if u := w.m.Status().Upgrades; u.Succeeded != 2 || u.Failed != 1 || u.RolledBack != 1 {
		t.Errorf("%+v", u)
	}
	heard(api.OpStop, "accepted", api.EventDraining, api.EventDone)
}

// A worker that dies when the kernel has been told half of it: clients may be in
// its queue, so that it is started once more, and the sockets stay until the
// kernel sends everybody back.
func TestDeathBetweenReadyAndTheSwitch(t *testing.T) {
	play := func(p *proc) { readyAtOnce(p) }
	w := begin(t, testConfig(), play, tcp(1), tcp(2))
	w.pass(time.Second)
	w.delay = func(o Order) time.Duration {
		if _, steers := o.(Steer); steers {
			return time.Second
		}
		return 0
	}
	w.queued = func(CountQueue) int { return 3 }
	w.hup()
	w.pass(10 * time.Millisecond)
	w.nth(2).exit(exited(1))
	w.pass(time.Minute)
	w.wantStarts(3)
	if p := w.nth(3); p.generation != 2 || p.at != 3001*time.Millisecond {
		t.Errorf("generation %d was started at %s, want generation 2 at 3.001s: when the kernel had switched back", p.generation, p.at)
	}
	w.wantSignals(w.nth(1))
	w.wantSignals(w.nth(3), "3.001s TERM")
	w.wantServing(1)
	w.queued = nil
	w.term()
}

// A worker that is taken away gets its signal when the kernel has been told, and
// what had come by then is served.
func TestScalingDownWaitsForTheKernel(t *testing.T) {
	cfg := testConfig()
	cfg.Workers = 2
	w := begin(t, cfg, readyAtOnce)
	w.pass(time.Second)
	w.delay = func(o Order) time.Duration {
		if _, steers := o.(Steer); steers {
			return time.Second
		}
		return 0
	}
	w.do(ScaleAsked{-1})
	w.pass(10 * time.Second)
	w.wantSignals(w.nth(2), "2s TERM")
	w.term()
}

// Several that are taken away at once are taken from the kernel's list at once.
func TestScalingDownByMany(t *testing.T) {
	cfg := testConfig()
	cfg.Workers = 4
	w := begin(t, cfg, readyAtOnce)
	w.pass(time.Second)
	before := strings.Count(w.trace(400), "machine.Steer{")
	w.ask(api.Operation{Kind: api.OpScale, Workers: 1})
	w.pass(time.Second)
	if n := strings.Count(w.trace(400), "machine.Steer{") - before; n != 1 {
		t.Errorf("steered %d times, want once", n)
	}
	w.wantServing(1)
	w.quit()
}

// Where all workers of a generation accept from one socket, one that is taken away
// does not wait for its queue: the others go on.
func TestScalingDownOfARenamedPath(t *testing.T) {
	cfg := testConfig()
	cfg.Workers = 2
	path := tcp(1)
	path.Socket.Handover = api.Rename
	w := begin(t, cfg, readyAtOnce, path)
	w.looked = func(o Look, p *proc, seen Seen) Seen {
		seen.Queued = 1 // there is always somebody
		return seen
	}
	w.pass(time.Second)
	w.do(ScaleAsked{-1})
	w.wantSignals(w.nth(2), "1s TERM")
	w.quit()
}

// A stop while a generation that has taken over starts: what waits in the sockets
// of the dead one is served all the same.
func TestStopDuringATakeOver(t *testing.T) {
	cfg := testConfig()
	cfg.Restart.Min, cfg.Restart.Max = time.Minute, time.Minute
	play := func(p *proc) {
		if p.nth <= 2 {
			readyAtOnce(p)
			p.exitAfter(10*time.Millisecond, exited(1))
		}
	}
	w := begin(t, cfg, play)
	w.pass(time.Second)
	w.hup()
	w.pass(time.Second)
	w.wantStarts(3)
	w.queued = func(CountQueue) int { return 5 }
	w.term()
	w.wantStarts(4)
	if p := w.nth(4); p.generation != 1 {
		t.Errorf("generation %d is started once more, want 1", p.generation)
	}
	w.wantEnd(2*time.Second, 0)
}

// Children are told once: to some servers a second QUIT means at once.
func TestChildrenAreToldOnce(t *testing.T) {
	play := func(p *proc) {
		readyAtOnce(p)
		p.child(SIGTERM)
	}
	w := begin(t, testConfig(), play)
	w.pass(time.Second)
	w.term()
	w.pass(time.Second)
	n := 0
	n += strings.Count(w.trace(400), "Tree:true Again:false")
	if n != 1 {
		t.Errorf("the children were told %d times, want once", n)
	}
	w.quit()
}

// The sockets are closed when nobody listens any more, those who drained already
// when the stop came included.
func TestAnEarlierDrainDoesNotKeepTheSockets(t *testing.T) {
	play := func(p *proc) {
		readyAtOnce(p)
		p.linger = 10 * time.Second
	}
	w := begin(t, testConfig(), play)
	w.looked = func(o Look, p *proc, seen Seen) Seen {
		if o.For == LookHeld {
			seen.Holds = w.now < 3*time.Second
		}
		return seen
	}
	w.pass(time.Second)
	w.hup()
	w.pass(time.Second)
	w.term()
	w.pass(2 * time.Second)
	if !w.m.House.Released {
		t.Error("the sockets are held, and nobody listens")
	}
	w.wantEnd(12*time.Second, 0)
}

// Sockets that were made for nobody are given back, also when all is over.
func TestSocketsThatComeTooLate(t *testing.T) {
	w := begin(t, testConfig(), readyAtOnce)
	w.pass(time.Second)
	w.delay = func(o Order) time.Duration {
		if _, furnishes := o.(Furnish); furnishes {
			return time.Minute
		}
		return 0
	}
	w.do(ScaleAsked{+1})
	w.hup()
	w.nth(1).linger = 2 * time.Minute
	w.term()
	w.wantEnd(36*time.Second, 0)
}
