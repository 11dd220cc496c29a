package supervisor

import (
	"bufio"
	"fmt"
	"os"
	"syscall"
	"time"

	"github.com/moult/moult/supervisor/machine"
)

// RecordVariable names a file to which the events of a run are written, so that
// it can be replayed (machine.Replay). It must not be there before.
const RecordVariable = "MOULT_RECORD"

// recorder writes down the events of a run, beside the loop. Where the file
// cannot keep up, the record ends: one with a hole would lead elsewhere.
type recorder struct {
	events chan machine.Recorded
	done   chan struct{}
	full   bool
}

// openRecorder returns nil where nobody has asked for a record.
func openRecorder(cfg machine.Config) (*recorder, error) {
	path := os.Getenv(RecordVariable)
	if path == "" {
		return nil, nil
	}
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL|syscall.O_NOFOLLOW, 0o600)
	if err != nil {
		return nil, fmt.Errorf("cannot write the record that %s asks for: %w", RecordVariable, err)
	}
	const behind = 1 << 14
	r := &recorder{events: make(chan machine.Recorded, behind), done: make(chan struct{})}
	go r.write(f, cfg)
	return r, nil
}

func (r *recorder) write(f *os.File, cfg machine.Config) {
	defer close(r.done)
	defer f.Close()
	w := bufio.NewWriter(f)
	defer w.Flush()
	err := machine.RecordConfig(w, cfg)
	for e := range r.events {
		if err == nil {
			err = machine.Record(w, e)
		}
		if len(r.events) == 0 {
			_ = w.Flush()
		}
	}
}

func (r *recorder) note(now time.Time, e machine.Event) {
	if r == nil || r.full {
		return
	}
	select {
	case r.events <- machine.Recorded{At: now, Event: e}:
	default:
		r.full = true
	}
}

func (r *recorder) close() {
	if r != nil {
		close(r.events)
		<-r.done
	}
}
