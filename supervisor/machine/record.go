package machine

import (
	"encoding/json"
	"fmt"
	"io"
	"reflect"
	"time"

	"github.com/moult/moult/supervisor/control/api"
)

// A run is written down as lines of JSON, the Config first and then each event, so
// that it can be looked at and replayed: what a machine orders follows from these
// alone.

// Recorded is an event with its time.
type Recorded struct {
	At    time.Time
	Event Event
}

type line struct {
	At    time.Time       `json:"at"`
	Event string          `json:"event"`
	Data  json.RawMessage `json:"data"`
}

// events are all kinds, by their names.
var events = func() map[string]reflect.Type {
	kinds := map[string]reflect.Type{}
	for _, e := range []Event{
		Begin{}, Hangup{}, StopAsked{}, ScaleAsked{}, PassOn{}, Tick{}, Furnished{}, Forked{}, StartFailed{}, Exited{}, Looked{}, QueueSeen{},
		Notified{}, Steered{}, Mended{}, BindAsked{}, ListenAsked{}, Listening{}, Alone{}, ListenerLost{}, Asked{}, ProgramChecked{}, Viewed{},
	} {
		kinds[reflect.TypeOf(e).Name()] = reflect.TypeOf(e)
	}
	return kinds
}()

// RecordConfig writes the first line.
func RecordConfig(w io.Writer, c Config) error {
	text, err := json.Marshal(c)
	if err != nil {
		return err
	}
	_, err = w.Write(append(text, '\n'))
	return err
}

// Record writes one event as a line.
func Record(w io.Writer, r Recorded) error {
	data, err := json.Marshal(r.Event)
	if err != nil {
		return err
	}
	text, err := json.Marshal(line{r.At, reflect.TypeOf(r.Event).Name(), data})
	if err != nil {
		return err
	}
	_, err = w.Write(append(text, '\n'))
	return err
}

// Replay reads what RecordConfig and Record have written.
func Replay(r io.Reader) (cfg Config, list []Recorded, err error) {
	d := json.NewDecoder(r)
	if err := d.Decode(&cfg); err != nil {
		return Config{}, nil, fmt.Errorf("cannot read the record: %w", err)
	}
	for {
		var l line
		switch err := d.Decode(&l); {
		case err == io.EOF:
			return cfg, list, nil
		case err != nil:
			return Config{}, nil, fmt.Errorf("cannot read the record: %w", err)
		}
		kind, ok := events[l.Event]
		if !ok {
			return Config{}, nil, fmt.Errorf("cannot read the record: there is no event %q", l.Event)
		}
		e := reflect.New(kind)
		if err := json.Unmarshal(l.Data, e.Interface()); err != nil {
			return Config{}, nil, fmt.Errorf("cannot read the record: %w", err)
		}
		list = append(list, Recorded{l.At, e.Elem().Interface().(Event)})
	}
}

// asked is Asked with what the operation's own form leaves out: there the path
// of the request names it.
type asked struct {
	Op        OpID
	Kind      string
	Operation api.Operation
}

// MarshalJSON writes the kind of the operation as well.
func (a Asked) MarshalJSON() ([]byte, error) {
	return json.Marshal(asked{a.Op, a.Operation.Kind, a.Operation})
}

// UnmarshalJSON reads what MarshalJSON has written.
func (a *Asked) UnmarshalJSON(text []byte) error {
	var x asked
	if err := json.Unmarshal(text, &x); err != nil {
		return err
	}
	x.Operation.Kind = x.Kind
	*a = Asked{x.Op, x.Operation}
	return nil
}
