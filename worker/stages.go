package worker

import (
	"cmp"
	"context"
	"log/slog"
	"os"
	"time"

	"github.com/moult/moult/fdpass"
)

// Stage is how far a worker has come. Stages only ever go up; some are passed
// over where there is nothing to do in them.
type Stage int

// The stages in their order.
const (
	StageStarting Stage = iota // not ready yet
	StageServing               // ready
	StageLameDuck              // not ready any more, but everything still works
	StageClosing               // the listeners close
	StageEnding                // HTTP connections end after the request in hand
	StageTelling               // hijacked and plain connections are told too
	StageGrace                 // the limit has passed: contexts are cancelled
	StageHooks                 // the connections are gone, hooks run
	StageEnded                 // Wait returns
)

var stageNames = [...]string{"starting", "serving", "lame-duck", "closing", "ending", "telling", "grace", "hooks", "ended"}

func (s Stage) String() string { return stageNames[s] }

// Stage returns how far the worker has come.
func (w *Worker) Stage() Stage { return Stage(w.stage.Load()) }

// enter is the one place where the stage changes.
func (w *Worker) enter(s Stage) {
	from := Stage(w.stage.Load())
	if s <= from {
		return
	}
	w.stage.Store(int32(s))
	now := time.Now()
	c := w.Counts()
	w.log.Info("stage", "from", from.String(), "to", s.String(), "took", now.Sub(w.entered),
		slog.Int("open", c.Open), slog.Int("active", c.Active), slog.Int("hijacked", c.Hijacked), slog.Int("plain", c.Plain))
	w.entered = now
	if w.cfg.OnStage != nil {
		w.cfg.OnStage(s)
	}
}

// trigger is what begins the end.
type trigger struct {
	reason   string
	upgraded bool
}

// run waits for the trigger and then goes through the stages.
func (w *Worker) run() {
	var t trigger
	select {
	case t = <-w.triggered:
	case <-w.killed.Done():
		t = trigger{reason: "kill"}
	}
	started := time.Now()
	w.log.Info("drain", "reason", t.reason)
	w.readyOnce.Do(func() {}) // not any more
	if !t.upgraded {
		w.notify("STOPPING=1")
		w.enter(StageLameDuck)
		sleep(w.killed, w.cfg.LameDuck)
	}
	w.enter(StageClosing)
	w.closeListeners(t.upgraded)
	if t.upgraded || !w.sockets.alone {
		w.closeLast() // probes shall reach who takes over
	}
	r := Result{Reason: t.reason, Upgraded: t.upgraded}
	early := w.startEarlyHooks()
	r.Cut = w.endConnections()
	r.Errors = <-early
	w.enter(StageHooks)
	r.Errors = append(r.Errors, w.runHooks(w.killed, w.hookStages(func(h Hook) bool { return h.Stage >= 0 }))...)
	w.closeLast()
	r.Killed = w.killed.Err() != nil
	r.Took = time.Since(started)
	w.finish(r)
}

// startEarlyHooks runs the hooks of negative stages beside the wait for the
// connections. The channel tells what failed.
func (w *Worker) startEarlyHooks() <-chan []error {
	stages := w.hookStages(func(h Hook) bool { return h.Stage < 0 })
	for _, hooks := range stages {
		for i := range hooks {
			hooks[i].Timeout = cmp.Or(hooks[i].Timeout, w.cfg.Drain+w.cfg.Grace)
		}
	}
	result := make(chan []error, 1)
	go func() { result <- w.runHooks(w.killed, stages) }()
	return result
}

// endConnections returns what had to be cut.
func (w *Worker) endConnections() []Cut {
	drain, cancel := context.WithTimeout(w.killed, w.cfg.Drain)
	defer cancel()
	if w.endGently(drain) {
		w.watcher.cancel()
		return nil
	}
	w.enter(StageGrace)
	w.watcher.cancel()
	grace, cancel := context.WithTimeout(w.killed, w.cfg.Grace)
	defer cancel()
	if w.watcher.awaitAll(grace) {
		return nil
	}
	cut := w.watcher.cutAll()
	w.eachServer(func(h *httpServer) { _ = h.Close() })
	return cut
}

// endGently returns whether every connection ended before ctx.
func (w *Worker) endGently(ctx context.Context) bool {
	w.enter(StageEnding)
	w.watcher.drainHTTP()
	w.eachServer((*httpServer).sayGoAway)
	// Requests may need what hijacked connections do, such as a chat message
	// that is posted here and delivered there: so these are told later, but
	// not too late to use the news.
	half, cancel := context.WithTimeout(ctx, w.cfg.Drain/2)
	defer cancel()
	noHTTP := w.watcher.awaitHTTP(half)
	w.enter(StageTelling)
	w.watcher.drainRest()
	if !noHTTP && !w.watcher.awaitHTTP(ctx) {
		return false
	}
	// Nothing is left that Shutdown could drop. It runs what was registered
	// with RegisterOnShutdown.
	w.eachServer(func(h *httpServer) { go h.Shutdown(ctx) })
	return w.watcher.awaitAll(ctx)
}

// closeListeners is the end of accepting. The kernel's queue is emptied where
// it would be lost: the socket is ours alone and no process comes after us.
func (w *Worker) closeListeners(upgraded bool) {
	w.mu.Lock()
	w.closing = true
	listeners := w.listeners
	w.mu.Unlock()
	done := make(chan struct{})
	for _, l := range listeners {
		go func() {
			l.stop(!upgraded && w.sockets.alone)
			done <- struct{}{}
		}()
	}
	for range listeners {
		<-done
	}
	w.sockets.close()
}

func (w *Worker) eachServer(do func(*httpServer)) {
	w.mu.Lock()
	servers := w.servers
	w.mu.Unlock()
	for _, h := range servers {
		do(h)
	}
}

// closeLast ends what answers probes until the very end.
func (w *Worker) closeLast() {
	w.mu.Lock()
	servers := w.health
	w.mu.Unlock()
	ctx, cancel := context.WithTimeout(w.killed, lingerTime)
	defer cancel()
	for _, srv := range servers {
		if srv.Shutdown(ctx) != nil {
			_ = srv.Close()
		}
	}
}

func (w *Worker) notify(state string) {
	if _, err := fdpass.Notify(state); err != nil {
		w.log.Warn("cannot tell the service manager", "reason", err)
	}
}

func (w *Worker) finish(r Result) {
	w.mu.Lock()
	r.Errors = append(w.failed, r.Errors...)
	w.mu.Unlock()
	w.result = r
	w.stopSignals()
	w.log.Info(r.String(), "reason", r.Reason, "pid", os.Getpid())
	w.enter(StageEnded)
	close(w.ended)
}
