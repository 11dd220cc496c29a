package worker

import (
	"os"
	"os/signal"
	"slices"
	"syscall"
)

// signals is what the worker hears from outside.
type signals struct {
	drain   chan os.Signal
	upgrade chan os.Signal // holds one: any number of SIGHUPs during an upgrade is one more
	stop    chan struct{}
}

func (w *Worker) startSignals() {
	w.signals = signals{
		drain:   make(chan os.Signal, 2),
		upgrade: make(chan os.Signal, 1),
		stop:    make(chan struct{}),
	}
	if len(w.cfg.Signals) > 0 {
		signal.Notify(w.signals.drain, w.cfg.Signals...)
	}
	// Under nohup SIGHUP is ignored on purpose.
	if !w.cfg.NoUpgrade && !signal.Ignored(syscall.SIGHUP) && !slices.Contains(w.cfg.Signals, os.Signal(syscall.SIGHUP)) {
		signal.Notify(w.signals.upgrade, syscall.SIGHUP)
	}
	go w.handleDrainSignals()
	go w.handleUpgradeSignals()
}

// stopSignals gives the signals their default action back: whoever hangs after
// the end can be ended by one more.
func (w *Worker) stopSignals() {
	signal.Stop(w.signals.drain)
	signal.Stop(w.signals.upgrade)
	close(w.signals.stop)
}

// handleDrainSignals: the first signal asks, the second one insists. While a
// drain after an upgrade is under way the first one changes nothing, since a
// service manager that stops the unit sends it to the old process as well.
func (w *Worker) handleDrainSignals() {
	for n := 1; ; n++ {
		select {
		case <-w.signals.stop:
			return
		case sig := <-w.signals.drain:
			if n == 1 {
				w.Drain("signal " + sig.String())
				continue
			}
			w.log.Warn("second signal: ending at once", "signal", sig.String())
			w.Kill()
		}
	}
}

func (w *Worker) handleUpgradeSignals() {
	for {
		select {
		case <-w.signals.stop:
			return
		case <-w.signals.upgrade:
			if err := w.upgradeOrPassOn(); err != nil {
				w.log.Error("upgrade", "reason", err)
			}
		}
	}
}
