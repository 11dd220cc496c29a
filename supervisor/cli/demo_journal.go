package cli

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/moult/moult/supervisor"
)

// journal keeps the master's transitions for those who wait for one. The
// master itself never waits for a reader.
type journal struct {
	mu      sync.Mutex
	entries []supervisor.Transition
	news    chan struct{} // closed and replaced with each entry
}

func newJournal() *journal { return &journal{news: make(chan struct{})} }

func (j *journal) add(t supervisor.Transition) {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.entries = append(j.entries, t)
	close(j.news)
	j.news = make(chan struct{})
}

// mark is the number of entries so far, for waits that only look at later ones.
func (j *journal) mark() int {
	j.mu.Lock()
	defer j.mu.Unlock()
	return len(j.entries)
}

func (j *journal) since(mark int) ([]supervisor.Transition, <-chan struct{}) {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.entries[mark:], j.news
}

// errDemoStopped says that the demo's master was told to end, or had to.
var errDemoStopped = errors.New("stopped")

// await returns the first transition from mark on that is the one wanted.
func (j *journal) await(ctx context.Context, limit time.Duration, mark int, what string, wanted func(supervisor.Transition) bool) (supervisor.Transition, error) {
	timer := time.NewTimer(limit)
	defer timer.Stop()
	for {
		entries, news := j.since(mark)
		for _, t := range entries {
			if wanted(t) {
				return t, nil
			}
		}
		mark += len(entries)
		select {
		case <-news:
		case <-ctx.Done():
			return supervisor.Transition{}, errDemoStopped
		case <-timer.C:
			return supervisor.Transition{}, fmt.Errorf("%s: not within %s", what, limit)
		}
	}
}

// isMaster tells transitions of the master itself from those of workers.
func isMaster(t supervisor.Transition, to string) bool { return t.PID == 0 && t.To == to }

// isWorker takes a worker that could not even be forked for one as well.
func isWorker(t supervisor.Transition, generation int, to string) bool {
	return t.Generation == generation && t.To == to && (t.PID != 0 || to == "gone")
}
