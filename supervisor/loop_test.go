package supervisor

import (
	"errors"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/moult/moult/fdpass"
)

// readyAtOnce is a server that says READY=1 a millisecond after its start.
func readyAtOnce(p *fakeProc) { p.sayReadyAfter(time.Millisecond) }

func TestStartThatTimesOutEndsRun(t *testing.T) {
	cfg := testConfig()
	cfg.ReadyTimeout = 7 * time.Second
	stubborn := func(p *fakeProc) { p.ignores = map[syscall.Signal]bool{syscall.SIGTERM: true} }
	bubble(t, cfg, stubborn, func(b *trial) {
		exit := b.wantEnd(12*time.Second, 1)
		b.wantSignals(b.nth(1), "7s TERM", "12s KILL")
		if !strings.Contains(exit.Error(), "--ready-timeout 7s") {
			t.Errorf("the reason is %q", exit)
		}
	})
}

func TestUpgradeThatTimesOutLeavesTheOldOneAlone(t *testing.T) {
	cfg := testConfig()
	cfg.ReadyTimeout = 7 * time.Second
	play := func(p *fakeProc) {
		if p.nth != 2 {
			readyAtOnce(p)
		}
	}
	bubble(t, cfg, play, func(b *trial) {
		b.pass(time.Second)
		b.do(syscall.SIGHUP)
		b.pass(10 * time.Second)
		b.wantSignals(b.nth(1))
		b.wantSignals(b.nth(2), "8s TERM")
		if got := b.phase(); got != phaseServing {
			t.Errorf("the phase is %s", got)
		}
		b.do(syscall.SIGTERM)
		b.wantEnd(11*time.Second, 0)
	})
}

func TestReadyTimeoutIsExtendedByTheWorker(t *testing.T) {
	cfg := testConfig()
	cfg.ReadyTimeout = 5 * time.Second
	play := func(p *fakeProc) {
		time.AfterFunc(4*time.Second, func() { p.say("EXTEND_TIMEOUT_USEC", "20000000") })
	}
	bubble(t, cfg, play, func(b *trial) {
		b.wantEnd(24*time.Second, 1)
	})
}

func TestDrainWithAnotherSignal(t *testing.T) {
	cfg := testConfig()
	cfg.DrainSignal = syscall.SIGQUIT
	play := func(p *fakeProc) {
		readyAtOnce(p)
		if p.nth == 1 {
			p.ignores = map[syscall.Signal]bool{syscall.SIGQUIT: true, syscall.SIGTERM: true}
		}
	}
	bubble(t, cfg, play, func(b *trial) {
		b.pass(time.Second)
		b.do(syscall.SIGHUP)
		b.pass(time.Minute)
		b.wantSignals(b.nth(1), "1.001s QUIT", "31.001s TERM", "36.001s KILL")
		b.wantSignals(b.nth(2))
		b.do(syscall.SIGTERM)
		b.wantSignals(b.nth(2), "1m1s QUIT")
		b.wantEnd(61*time.Second, 0)
	})
}

func TestDrainWithTERMGetsItOnce(t *testing.T) {
	play := func(p *fakeProc) {
		readyAtOnce(p)
		p.ignores = map[syscall.Signal]bool{syscall.SIGTERM: true}
	}
	bubble(t, testConfig(), play, func(b *trial) {
		b.pass(time.Second)
		b.do(syscall.SIGTERM)
		b.wantEnd(36*time.Second, 0)
		b.wantSignals(b.nth(1), "1s TERM", "36s KILL")
	})
}

func TestWorkerThatDrainsInTimeIsLeftAlone(t *testing.T) {
	play := func(p *fakeProc) {
		readyAtOnce(p)
		p.linger = 29 * time.Second
	}
	bubble(t, testConfig(), play, func(b *trial) {
		b.pass(time.Second)
		b.do(syscall.SIGHUP)
		b.pass(29 * time.Second)
		b.wantSignals(b.nth(1), "1.001s TERM")
		b.do(syscall.SIGTERM)
		b.wantEnd(59*time.Second, 0)
	})
}

func TestCrashesAreDelayed(t *testing.T) {
	play := func(p *fakeProc) {
		readyAtOnce(p)
		if p.nth <= 4 {
			p.exitAfter(10*time.Millisecond, killedBy(syscall.SIGSEGV))
		}
		if p.nth == 5 {
			p.exitAfter(2*time.Minute, exited(1))
		}
	}
	bubble(t, testConfig(), play, func(b *trial) {
		b.pass(10 * time.Minute)
		want := []time.Duration{0, 10, 270, 530, 790, 790 + 120_000} // milliseconds
		if b.count() != len(want) {
			t.Fatalf("%d starts, want %d", b.count(), len(want))
		}
		for i, at := range want {
			if got := b.nth(i + 1).at; got != at*time.Millisecond {
				t.Errorf("start %d at %s, want %s", i+1, got, at*time.Millisecond)
			}
		}
		b.do(syscall.SIGTERM)
	})
}

func TestRestartLimit(t *testing.T) {
	cfg := testConfig()
	cfg.RestartLimit, cfg.RestartWithin = 3, 10*time.Second
	play := func(p *fakeProc) {
		readyAtOnce(p)
		p.exitAfter(time.Second, exited(7))
	}
	bubble(t, cfg, play, func(b *trial) {
		exit := b.wantEnd(3250*time.Millisecond, 7)
		if !strings.Contains(exit.Error(), "--restart-limit 3/10s") {
			t.Errorf("the reason is %q", exit)
		}
		if b.count() != 3 {
			t.Errorf("%d starts, want 3", b.count())
		}
	})
}

func TestFailuresOutsideTheWindowDoNotCount(t *testing.T) {
	cfg := testConfig()
	cfg.RestartLimit, cfg.RestartWithin = 3, 10*time.Second
	play := func(p *fakeProc) {
		readyAtOnce(p)
		p.exitAfter(6*time.Second, exited(7))
	}
	bubble(t, cfg, play, func(b *trial) {
		b.pass(5 * time.Minute)
		if got := b.phase(); got != phaseServing {
			t.Errorf("the phase is %s", got)
		}
		b.do(syscall.SIGQUIT)
	})
}

func TestRestartPolicies(t *testing.T) {
	for _, c := range []struct {
		restart Restart
		status  syscall.WaitStatus
		ends    bool
		code    int
	}{
		{RestartAlways, exited(0), false, 0},
		{RestartAlways, exited(3), false, 0},
		{RestartOnFailure, exited(0), true, 0},
		{RestartOnFailure, exited(3), false, 0},
		{RestartOnFailure, killedBy(syscall.SIGKILL), false, 0},
		{RestartNever, exited(0), true, 0},
		{RestartNever, exited(3), true, 3},
		{RestartNever, killedBy(syscall.SIGSEGV), true, 139},
	} {
		cfg := testConfig()
		cfg.Restart = c.restart
		play := func(p *fakeProc) {
			readyAtOnce(p)
			if p.nth == 1 {
				p.exitAfter(time.Second, c.status)
			}
		}
		bubble(t, cfg, play, func(b *trial) {
			if c.ends {
				b.wantEnd(time.Second, c.code)
				return
			}
			b.pass(time.Minute)
			if b.count() != 2 {
				t.Errorf("%s after %d: %d starts, want 2", c.restart, c.status, b.count())
			}
			b.do(syscall.SIGTERM)
			b.wantEnd(time.Minute, 0)
		})
	}
}

func TestMaxDrainingEndsTheOldest(t *testing.T) {
	cfg := testConfig()
	cfg.DrainSignal, cfg.MaxDraining, cfg.DrainTimeout = syscall.SIGQUIT, 2, time.Hour
	play := func(p *fakeProc) {
		readyAtOnce(p)
		p.ignores = map[syscall.Signal]bool{syscall.SIGQUIT: true, syscall.SIGTERM: true}
	}
	bubble(t, cfg, play, func(b *trial) {
		for range 3 {
			b.pass(time.Second)
			b.do(syscall.SIGHUP)
		}
		b.pass(time.Minute)
		b.wantSignals(b.nth(1), "1.001s QUIT", "3.001s TERM", "8.001s KILL")
		b.wantSignals(b.nth(2), "2.001s QUIT")
		b.wantSignals(b.nth(3), "3.001s QUIT")
		b.wantSignals(b.nth(4))
		b.do(syscall.SIGQUIT)
		b.wantEnd(63*time.Second, 0)
	})
}

func TestManyHUPsDuringAnUpgradeAreOne(t *testing.T) {
	play := func(p *fakeProc) { p.sayReadyAfter(10 * time.Second) }
	bubble(t, testConfig(), play, func(b *trial) {
		for range 50 {
			b.do(syscall.SIGHUP) // during the first start
		}
		b.pass(15 * time.Second)
		if b.count() != 2 {
			t.Fatalf("%d starts after the first was ready, want 2", b.count())
		}
		for range 50 {
			b.do(syscall.SIGHUP) // during the upgrade
		}
		b.pass(time.Hour)
		if b.count() != 3 {
			t.Errorf("%d starts, want 3", b.count())
		}
		if got := b.nth(3).at; got != 20*time.Second {
			t.Errorf("the last upgrade began at %s, want 20s: at the end of the one before", got)
		}
		b.do(syscall.SIGTERM)
		b.wantEnd(time.Hour+15*time.Second, 0)
	})
}

func TestHUPThatWaitsForAFailedStart(t *testing.T) {
	play := func(p *fakeProc) {
		if p.nth == 2 {
			p.exitAfter(5*time.Second, exited(1))
			return
		}
		readyAtOnce(p)
	}
	bubble(t, testConfig(), play, func(b *trial) {
		b.pass(time.Second)
		b.do(syscall.SIGHUP)
		b.pass(time.Second)
		b.do(syscall.SIGHUP)
		b.pass(time.Minute)
		if b.count() != 3 || b.nth(3).at != 6*time.Second {
			t.Errorf("%d starts; want a third one when the second has failed", b.count())
		}
		b.wantSignals(b.nth(1), "6.001s TERM")
		b.do(syscall.SIGTERM)
	})
}

func TestTERMDuringAnUpgrade(t *testing.T) {
	play := func(p *fakeProc) {
		if p.nth == 1 {
			readyAtOnce(p)
		}
		p.linger = 2 * time.Second
	}
	bubble(t, testConfig(), play, func(b *trial) {
		b.pass(time.Second)
		b.do(syscall.SIGHUP)
		b.do(syscall.SIGHUP) // forgotten with the rest
		b.pass(time.Second)
		b.do(syscall.SIGTERM)
		b.wantEnd(4*time.Second, 0)
		b.wantSignals(b.nth(1), "2s TERM")
		b.wantSignals(b.nth(2), "2s TERM")
		if b.count() != 2 {
			t.Errorf("%d starts, want 2", b.count())
		}
	})
}

func TestTERMDuringTheFirstStart(t *testing.T) {
	bubble(t, testConfig(), nil, func(b *trial) {
		b.pass(time.Second)
		b.do(syscall.SIGTERM)
		b.wantEnd(time.Second, 0)
	})
}

func TestSecondTERMEndsAtOnce(t *testing.T) {
	play := func(p *fakeProc) {
		readyAtOnce(p)
		p.ignores = map[syscall.Signal]bool{syscall.SIGTERM: true}
	}
	bubble(t, testConfig(), play, func(b *trial) {
		b.pass(time.Second)
		b.do(syscall.SIGHUP)
		b.pass(time.Second)
		b.do(syscall.SIGTERM)
		b.pass(time.Second)
		b.do(syscall.SIGTERM)
		b.wantEnd(3*time.Second, 0)
		b.wantSignals(b.nth(1), "1.001s TERM", "3s KILL")
		b.wantSignals(b.nth(2), "2s TERM", "3s KILL")
	})
}

func TestQUITEndsAtOnce(t *testing.T) {
	bubble(t, testConfig(), readyAtOnce, func(b *trial) {
		b.pass(time.Second)
		b.do(syscall.SIGQUIT)
		b.wantEnd(time.Second, 0)
		b.wantSignals(b.nth(1), "1s KILL")
	})
}

func TestTERMInBackOff(t *testing.T) {
	cfg := testConfig()
	cfg.RestartMin, cfg.RestartMax = time.Minute, time.Minute
	play := func(p *fakeProc) {
		readyAtOnce(p)
		p.exitAfter(time.Second, exited(1))
	}
	bubble(t, cfg, play, func(b *trial) {
		b.pass(5 * time.Second)
		b.do(syscall.SIGTERM)
		b.wantEnd(5*time.Second, 0)
		if b.count() != 2 {
			t.Errorf("%d starts, want 2", b.count())
		}
	})
}

func TestCrashOfTheServingWorkerDuringAnUpgrade(t *testing.T) {
	play := func(p *fakeProc) {
		switch p.nth {
		case 1:
			readyAtOnce(p)
			p.exitAfter(3*time.Second, killedBy(syscall.SIGKILL))
		case 2:
			p.sayReadyAfter(10 * time.Second)
		default:
			readyAtOnce(p)
		}
	}
	bubble(t, testConfig(), play, func(b *trial) {
		b.pass(time.Second)
		b.do(syscall.SIGHUP)
		b.pass(time.Minute)
		if b.count() != 3 || b.nth(3).at != 3*time.Second || b.nth(3).generation != 1 {
			t.Fatalf("%d starts; want the replacement of generation 1 at 3s", b.count())
		}
		b.wantSignals(b.nth(3), "11s TERM")
		b.wantSignals(b.nth(2))
		b.do(syscall.SIGTERM)
	})
}

func TestNewGenerationThatDiesAfterPromotionIsReplaced(t *testing.T) {
	play := func(p *fakeProc) {
		readyAtOnce(p)
		p.linger = 20 * time.Second
		if p.nth == 2 {
			p.exitAfter(time.Second, killedBy(syscall.SIGSEGV))
		}
	}
	bubble(t, testConfig(), play, func(b *trial) {
		b.pass(time.Second)
		b.do(syscall.SIGHUP)
		b.pass(5 * time.Second)
		if b.count() != 3 || b.nth(3).at != 2*time.Second || b.nth(3).generation != 2 {
			t.Errorf("%d starts; want generation 2 again at 2s", b.count())
		}
		b.do(syscall.SIGTERM)
		b.wantEnd(26*time.Second, 0)
	})
}

func TestStartErrorsDecideTheExitCode(t *testing.T) {
	for _, c := range []struct {
		err  error
		code int
	}{
		{&fdpass.StartError{Step: "execute", What: "x", Err: syscall.ENOENT}, 127},
		{&fdpass.StartError{Step: "execute", What: "x", Err: syscall.EACCES}, 126},
		{&fdpass.StartError{Step: "enter directory", What: "/x", Err: syscall.ENOENT}, 1},
	} {
		bubble(t, testConfig(), func(p *fakeProc) { p.execErr = c.err }, func(b *trial) {
			exit := b.wantEnd(0, c.code)
			if !errors.Is(exit, c.err) {
				t.Errorf("the cause is %v, want %v", exit, c.err)
			}
		})
	}
}

func TestFirstForkThatFailsEndsRun(t *testing.T) {
	play := func(p *fakeProc) { p.forkErr = syscall.EAGAIN }
	bubble(t, testConfig(), play, func(b *trial) {
		exit := b.wantEnd(0, 1)
		if !errors.Is(exit, syscall.EAGAIN) {
			t.Errorf("the cause is %v", exit)
		}
	})
}

func TestForkThatFailsInAnUpgrade(t *testing.T) {
	play := func(p *fakeProc) {
		readyAtOnce(p)
		if p.nth == 2 {
			p.forkErr = syscall.EAGAIN
		}
	}
	bubble(t, testConfig(), play, func(b *trial) {
		b.pass(time.Second)
		b.do(syscall.SIGHUP)
		b.pass(time.Second)
		b.wantSignals(b.nth(1))
		b.do(syscall.SIGHUP)
		b.pass(time.Second)
		b.wantSignals(b.nth(1), "2.001s TERM")
		b.do(syscall.SIGTERM)
	})
}

func TestForksThatFailInTheServingGenerationAreDelayed(t *testing.T) {
	play := func(p *fakeProc) {
		readyAtOnce(p)
		switch {
		case p.nth == 1:
			p.exitAfter(time.Second, exited(1))
		case p.nth < 5:
			p.forkErr = syscall.EAGAIN
		}
	}
	bubble(t, testConfig(), play, func(b *trial) {
		b.pass(time.Minute)
		if b.count() != 5 || b.nth(5).at != 1750*time.Millisecond {
			t.Errorf("%d starts, the last at %s; want the fifth at 1.75s", b.count(), b.nth(b.count()).at)
		}
		b.do(syscall.SIGTERM)
		b.wantEnd(time.Minute, 0)
	})
}

func TestOneOfTwoThatFailsFailsTheStart(t *testing.T) {
	cfg := testConfig()
	cfg.Workers = 2
	play := func(p *fakeProc) {
		if p.nth == 4 {
			p.exitAfter(2*time.Second, exited(9))
			return
		}
		readyAtOnce(p)
	}
	bubble(t, cfg, play, func(b *trial) {
		b.pass(time.Second)
		b.do(syscall.SIGHUP)
		b.pass(time.Minute)
		b.wantSignals(b.nth(1))
		b.wantSignals(b.nth(2))
		b.wantSignals(b.nth(3), "3s TERM")
		if b.count() != 4 {
			t.Errorf("%d starts, want 4", b.count())
		}
		b.do(syscall.SIGTERM)
		b.wantEnd(61*time.Second, 0)
	})
}

func TestTreeIsEndedBeforeTheReplacementStarts(t *testing.T) {
	play := func(p *fakeProc) {
		readyAtOnce(p)
		if p.nth == 1 {
			p.child(syscall.SIGTERM)
			p.exitAfter(time.Second, killedBy(syscall.SIGKILL))
		}
	}
	bubble(t, testConfig(), play, func(b *trial) {
		b.pass(time.Minute)
		if got := b.nth(2).at; got != 6*time.Second {
			t.Errorf("the replacement started at %s, want 6s: when the child had got its grace and KILL", got)
		}
		b.do(syscall.SIGTERM)
		b.wantEnd(time.Minute, 0)
	})
}

func TestTreeThatGoesInTimeIsWaitedFor(t *testing.T) {
	play := func(p *fakeProc) {
		readyAtOnce(p)
		if p.nth == 1 {
			p.child().linger = 2 * time.Second
			p.exitAfter(time.Second, killedBy(syscall.SIGKILL))
		}
	}
	bubble(t, testConfig(), play, func(b *trial) {
		b.pass(time.Minute)
		if got := b.nth(2).at; got != 3*time.Second {
			t.Errorf("the replacement started at %s, want 3s", got)
		}
		b.do(syscall.SIGTERM)
	})
}

func TestSecondTERMEndsWhatIsLeftOfTrees(t *testing.T) {
	play := func(p *fakeProc) {
		readyAtOnce(p)
		p.child(syscall.SIGTERM)
	}
	bubble(t, testConfig(), play, func(b *trial) {
		b.pass(time.Second)
		b.do(syscall.SIGTERM)
		b.pass(time.Second)
		b.do(syscall.SIGTERM)
		b.wantEnd(2*time.Second, 0)
	})
}

// What a shell leaves when it dies in the middle of a drain has what the drain
// had left, not all of it once more.
func TestLeftoversOfADrainHaveWhatItHadLeft(t *testing.T) {
	play := func(p *fakeProc) {
		readyAtOnce(p)
		p.linger = 20 * time.Second
		p.child(syscall.SIGTERM)
	}
	bubble(t, testConfig(), play, func(b *trial) {
		b.pass(time.Second)
		b.do(syscall.SIGTERM)
		b.wantEnd(31*time.Second, 0)
	})
}

func TestExitAndDeadlineAtTheSameInstant(t *testing.T) {
	cfg := testConfig()
	cfg.ReadyTimeout = 7 * time.Second
	play := func(p *fakeProc) {
		p.linger = 5 * time.Second // leaves exactly when KILL is due
	}
	bubble(t, cfg, play, func(b *trial) {
		b.wantEnd(12*time.Second, 1)
	})
}

func TestLateTimersAndWordsAreIgnored(t *testing.T) {
	bubble(t, testConfig(), readyAtOnce, func(b *trial) {
		var first *worker
		b.pass(time.Second)
		b.on(func(s *Supervisor) { first = s.serving.slots[0].worker })
		b.do(syscall.SIGHUP)
		b.pass(time.Second)
		b.on(func(s *Supervisor) {
			if first.state != gone {
				t.Fatalf("the first worker is %s", first.state)
			}
			before := len(b.seen)
			first.deadline, first.poll = time.Now(), time.Now()
			first.look(time.Now())
			first.execResult(errors.New("late"))
			first.ended(exited(1))
			first.crossBarrier()
			first.notified(notification{pid: first.pid, fields: map[string]string{"READY": "1"}})
			for e := range numWorkerEvents {
				first.happen(e, "late")
			}
			if len(b.seen) != before || first.state != gone || s.phase != phaseServing {
				t.Errorf("something followed: %v", b.seen[before:])
			}
		})
		b.do(syscall.SIGTERM)
		b.wantEnd(2*time.Second, 0)
	})
}

func TestForwardedSignals(t *testing.T) {
	bubble(t, testConfig(), readyAtOnce, func(b *trial) {
		b.do(syscall.SIGUSR1) // nobody serves yet
		b.pass(time.Second)
		b.do(syscall.SIGUSR1)
		b.wantSignals(b.nth(1), "1s USR1")
		b.do(syscall.SIGUSR2)
		b.wantSignals(b.nth(1), "1s USR1")
		b.do(syscall.SIGTERM)
	})
}

func TestScaling(t *testing.T) {
	cfg := testConfig()
	cfg.Addresses = []fdpass.Address{abstractAddress(t)} // a slot with members stays until they are given back
	bubble(t, cfg, readyAtOnce, func(b *trial) {
		b.pass(time.Second)
		b.do(syscall.SIGTTIN)
		b.pass(time.Second)
		if b.count() != 2 {
			t.Fatalf("%d starts, want 2", b.count())
		}
		b.do(syscall.SIGTTOU)
		b.do(syscall.SIGTTOU) // never fewer than one
		b.pass(time.Second)
		b.wantSignals(b.nth(1))
		b.wantSignals(b.nth(2), "2s TERM")
		b.do(syscall.SIGHUP)
		b.pass(time.Second)
		if b.count() != 3 {
			t.Errorf("%d starts, want 3: one worker in the new generation", b.count())
		}
		b.do(syscall.SIGTERM)
		b.wantEnd(4*time.Second, 0)
	})
}

// wantServing compares the number of workers that serve.
func (b *trial) wantServing(want int) {
	b.t.Helper()
	n := 0
	b.on(func(s *Supervisor) {
		for _, sl := range s.serving.slots {
			if sl.worker != nil && sl.worker.state == serving {
				n++
			}
		}
	})
	if n != want {
		b.t.Errorf("%d workers serve, want %d", n, want)
	}
}

func TestScalingDuringAStart(t *testing.T) {
	cfg := testConfig()
	cfg.Workers = 2
	play := func(p *fakeProc) { p.sayReadyAfter(10 * time.Second) }
	bubble(t, cfg, play, func(b *trial) {
		b.pass(time.Second)
		b.do(syscall.SIGTTIN)
		b.pass(time.Minute)
		b.wantServing(3)
		b.do(syscall.SIGHUP)
		b.pass(time.Second)
		b.do(syscall.SIGTTOU)
		b.do(syscall.SIGTTOU)
		b.pass(time.Minute)
		b.wantServing(1)
		b.do(syscall.SIGTERM)
	})
}

// A version that says READY=1 and fails must not change what is asked of the
// one that goes on.
func TestReadinessOfAFailedVersionIsForgotten(t *testing.T) {
	bubble(t, testConfig(), readyAtOnce, func(b *trial) {
		b.pass(time.Second)
		b.do(syscall.SIGHUP)
		b.pass(time.Second)
		b.do(syscall.SIGTERM)
	})
	cfg := testConfig()
	cfg.Ready, cfg.Workers = ReadyAuto, 2
	cfg.Addresses = []fdpass.Address{abstractAddress(t)}
	play := func(p *fakeProc) {
		switch {
		case p.generation == 2 && p.nth%2 == 1:
			p.sayReadyAfter(time.Second)
		case p.generation == 2:
			p.exitAfter(2*time.Second, exited(1))
		}
	}
	bubble(t, cfg, play, func(b *trial) {
		accepts := func(s *Supervisor) { // what /proc would show
			for _, w := range s.workers() {
				for _, c := range w.ready.checks {
					c.seen = w.number == 1
				}
				if w.state == starting {
					w.lookReady(time.Now())
				}
			}
		}
		b.on(accepts)
		b.wantServing(2)
		b.do(syscall.SIGHUP)
		b.pass(3 * time.Second)
		b.nth(1).exit(killedBy(syscall.SIGKILL))
		b.pass(time.Millisecond)
		b.on(accepts)
		b.wantServing(2)
		b.do(syscall.SIGQUIT)
	})
}

// A dead generation's sockets are taken over by the next; while a start that
// failed still lets go of them, they are not to be taken once more.
func TestTakeOverWhileAFailedOneLetsGo(t *testing.T) {
	cfg := testConfig()
	cfg.RestartMin, cfg.RestartMax = time.Minute, time.Minute
	cfg.Addresses = []fdpass.Address{abstractAddress(t)}
	cfg.ReadyTimeout = 5 * time.Second
	play := func(p *fakeProc) {
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
	bubble(t, cfg, play, func(b *trial) {
		b.pass(time.Second)
		b.do(syscall.SIGHUP)
		b.pass(time.Second)
		b.do(syscall.SIGHUP) // follows when the first one has failed
		b.pass(5 * time.Minute)
		b.on(func(s *Supervisor) {
			for _, sl := range s.slots() {
				if sl.worker != nil && sl.members == nil {
					t.Errorf("worker %d runs without a socket", sl.worker.pid)
				}
			}
			if n := len(s.workers()); n != 1 {
				t.Errorf("%d workers, want 1", n)
			}
		})
		b.do(syscall.SIGTERM)
	})
}

// The last hope is the upgrade under way when the serving generation has been
// given up; a HUP then is as good as any other.
func TestHUPWhileTheLastHopeStarts(t *testing.T) {
	cfg := testConfig()
	cfg.Restart = RestartNever
	play := func(p *fakeProc) {
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
	bubble(t, cfg, play, func(b *trial) {
		b.pass(time.Second)
		b.do(syscall.SIGHUP)
		b.pass(2 * time.Second)
		b.do(syscall.SIGHUP)
		b.pass(time.Minute)
		if b.count() != 3 || b.phase() != phaseServing {
			t.Errorf("%d starts, phase %s; want a third start that serves", b.count(), b.phase())
		}
		b.do(syscall.SIGTERM)
		b.wantEnd(63*time.Second, 0)
	})
}

func TestTheLastHopeThatFailsEndsWithTheLostWorkersStatus(t *testing.T) {
	cfg := testConfig()
	cfg.Restart = RestartNever
	play := func(p *fakeProc) {
		if p.nth == 1 {
			readyAtOnce(p)
			p.exitAfter(2*time.Second, exited(4))
			return
		}
		p.exitAfter(9*time.Second, exited(5))
	}
	bubble(t, cfg, play, func(b *trial) {
		b.pass(time.Second)
		b.do(syscall.SIGHUP)
		b.wantEnd(10*time.Second, 4)
	})
}

func TestKillGraceOfNothing(t *testing.T) {
	cfg := testConfig()
	cfg.KillGrace, cfg.DrainTimeout = 0, 0
	play := func(p *fakeProc) {
		readyAtOnce(p)
		p.ignores = map[syscall.Signal]bool{syscall.SIGTERM: true}
	}
	bubble(t, cfg, play, func(b *trial) {
		b.pass(time.Second)
		b.do(syscall.SIGTERM)
		b.wantEnd(time.Second, 0)
		b.wantSignals(b.nth(1), "1s TERM", "1s KILL")
	})
}

func abstractAddress(t *testing.T) fdpass.Address {
	t.Helper()
	a, err := fdpass.ParseAddress("unix://@moult-test/" + newMark())
	if err != nil {
		t.Fatal(err)
	}
	return a
}
