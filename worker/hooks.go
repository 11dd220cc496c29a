package worker

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"
)

// A Hook runs at the end, when the connections are gone: flushes a buffer,
// drains a pool, closes a database, says goodbye to a peer. It holds the end
// up until it returns or its time is over.
type Hook struct {
	// Stage orders the hooks: lower ones first. Hooks of one stage run at the
	// same time. Those of a negative stage run earlier, when connections are
	// told to end, beside the wait for them: for servers with a graceful stop
	// of their own, gRPC's for one.
	Stage int
	Name  string
	// Timeout bounds this hook; 0 stands for Config.HookTimeout, or for Drain
	// and Grace together if the stage is negative.
	Timeout time.Duration
	Run     func(ctx context.Context) error
}

// A HookError says which hook did not do its work, and why: what it returned,
// a panic, context.DeadlineExceeded if it was left behind, context.Canceled if
// the end came too soon for it.
type HookError struct {
	Name string
	Err  error
}

func (e *HookError) Error() string {
	return fmt.Sprintf("cannot finish the hook %q: %v", e.Name, e.Err)
}

// Unwrap returns the cause.
func (e *HookError) Unwrap() error { return e.Err }

// Hook registers h. Hooks that are registered after their stage has begun do
// not run.
func (w *Worker) Hook(h Hook) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.hooks = append(w.hooks, h)
}

// hookStages returns the hooks that keep asks for, grouped by stage.
func (w *Worker) hookStages(keep func(Hook) bool) [][]Hook {
	w.mu.Lock()
	hooks := slices.Clone(w.hooks)
	w.mu.Unlock()
	hooks = slices.DeleteFunc(hooks, func(h Hook) bool { return !keep(h) })
	slices.SortStableFunc(hooks, func(a, b Hook) int { return cmp.Compare(a.Stage, b.Stage) })
	var stages [][]Hook
	for i, h := range hooks {
		if i == 0 || h.Stage != hooks[i-1].Stage {
			stages = append(stages, nil)
		}
		stages[len(stages)-1] = append(stages[len(stages)-1], h)
	}
	return stages
}

// runHooks runs the stages in order, whatever becomes of each hook.
func (w *Worker) runHooks(ctx context.Context, stages [][]Hook) []error {
	var errs []error
	for i, stage := range stages {
		if i > 0 {
			sleep(ctx, w.cfg.HookPause)
		}
		errs = append(errs, w.runStage(ctx, stage)...)
	}
	return errs
}

func (w *Worker) runStage(ctx context.Context, hooks []Hook) []error {
	errs := make([]error, len(hooks))
	var wg sync.WaitGroup
	for i, h := range hooks {
		wg.Go(func() { errs[i] = w.runHook(ctx, h) })
	}
	wg.Wait()
	return slices.DeleteFunc(errs, func(err error) bool { return err == nil })
}

// runHook leaves a hook that does not heed its context behind.
func (w *Worker) runHook(ctx context.Context, h Hook) error {
	ctx, cancel := context.WithTimeout(ctx, cmp.Or(h.Timeout, w.cfg.HookTimeout))
	defer cancel()
	started := time.Now()
	done := make(chan error, 1)
	if ctx.Err() == nil {
		go func() { done <- protect(ctx, h.Run) }()
	}
	var err error
	select {
	case err = <-done:
	case <-ctx.Done():
		err = ctx.Err()
	}
	w.log.Info("hook", "name", h.Name, "stage", h.Stage, "took", time.Since(started), "error", err)
	if err != nil {
		return &HookError{Name: h.Name, Err: err}
	}
	return nil
}

func protect(ctx context.Context, run func(context.Context) error) (err error) {
	defer func() {
		if r := recover(); r != nil {
			err = fmt.Errorf("panic: %v", r)
		}
	}()
	if run == nil {
		return errors.New("there is nothing to run")
	}
	return run(ctx)
}

// sleep waits for d, or until ctx ends.
func sleep(ctx context.Context, d time.Duration) {
	if d <= 0 {
		return
	}
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
	case <-timer.C:
	}
}
