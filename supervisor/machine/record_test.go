package machine

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/moult/moult/supervisor/control/api"
)

// fill gives every field of a value something that is not nothing.
func fill(v reflect.Value, n *int) {
	*n++
	switch v.Kind() {
	case reflect.Int, reflect.Int64:
		v.SetInt(int64(*n))
	case reflect.Uint8, reflect.Uint64:
		v.SetUint(uint64(*n % 3))
	case reflect.Bool:
		v.SetBool(true)
	case reflect.String:
		v.SetString(strings.Repeat("é", *n%5+1))
	case reflect.Slice:
		v.Set(reflect.MakeSlice(v.Type(), 2, 2))
		for i := range v.Len() {
			fill(v.Index(i), n)
		}
	case reflect.Struct:
		for i := range v.NumField() {
			fill(v.Field(i), n)
		}
	}
}

func TestRecordIsReplayed(t *testing.T) {
	for name, kind := range events {
		e, n := reflect.New(kind).Elem(), 0
		fill(e, &n)
		want := Recorded{time.Date(2026, 1, 2, 3, 4, 5, 6, time.UTC), e.Interface().(Event)}
		var b bytes.Buffer
		if err := RecordConfig(&b, testConfig()); err != nil {
			t.Fatal(err)
		}
		if err := Record(&b, want); err != nil {
			t.Fatal(err)
		}
		if bytes.Count(b.Bytes(), []byte("\n")) != 2 {
			t.Errorf("%s is not one line: %q", name, b.String())
		}
		cfg, got, err := Replay(&b)
		if err != nil {
			t.Fatal(err)
		}
		if cfg != testConfig() {
			t.Errorf("%+v, want %+v", cfg, testConfig())
		}
		if len(got) != 1 || !reflect.DeepEqual(got[0], want) {
			t.Errorf("%s: %+v, want %+v", name, got, want)
		}
	}
}

func TestRecordsThatCannotBeRead(t *testing.T) {
	for _, text := range []string{"", "{", "{}\n{", `{}{"event":"Nonsense","data":{}}`, `{}{"event":"Hangup","data":[]}`} {
		if _, list, err := Replay(strings.NewReader(text)); list != nil || err == nil || !strings.HasPrefix(err.Error(), "cannot read the record: ") {
			t.Errorf("%s: %v", text, err)
		}
	}
}

// replay runs what was recorded, and returns what was ordered.
func replay(t *testing.T, record []byte) string {
	t.Helper()
	cfg, list, err := Replay(bytes.NewReader(record))
	if err != nil {
		t.Fatal(err)
	}
	m, w, out := New(cfg), watch{}, &strings.Builder{}
	for _, r := range list {
		w.before(m, r.Event)
		orders := m.Step(r.At, r.Event)
		if broken := w.after(m, orders); broken != "" {
			t.Fatalf("%s\n%T%+v", broken, r.Event, r.Event)
		}
		for _, o := range orders {
			text, _ := json.Marshal(o)
			fmt.Fprintf(out, "%T%s\n", o, text)
		}
	}
	return out.String()
}

// A run that was written down leads to the same orders when it is replayed.
func TestARunIsReplayed(t *testing.T) {
	w := begin(t, interceptConfig(), binder("a", "b"))
	w.pass(time.Second)
	w.ask(api.Operation{Kind: api.OpUpgrade})
	w.pass(time.Second)
	w.nth(2).exit(killedBy(11))
	w.pass(time.Second)
	w.ask(api.Operation{Kind: api.OpRollback})
	w.pass(time.Second)
	w.term()
	w.wantEnd(4*time.Second, 0)
	var record bytes.Buffer
	var want strings.Builder
	_ = RecordConfig(&record, w.m.Cfg)
	for _, s := range w.last {
		if err := Record(&record, Recorded{dawn.Add(s.at), s.event}); err != nil {
			t.Fatal(err)
		}
		for _, o := range s.orders {
			text, _ := json.Marshal(o)
			fmt.Fprintf(&want, "%T%s\n", o, text)
		}
	}
	if got := replay(t, record.Bytes()); got != want.String() {
		t.Errorf("the replay differs:\n%s\nwant\n%s", got, want.String())
	}
}

// Records of real runs (MOULT_RECORD=FILE) keep the promises when they are
// replayed, and lead to the same orders each time.
func TestReplayRealRuns(t *testing.T) {
	files, _ := filepath.Glob("testdata/*.jsonl")
	for _, name := range files {
		text, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		if first, second := replay(t, text), replay(t, text); first != second || first == "" {
			t.Errorf("%s: two replays differ", name)
		}
	}
}
