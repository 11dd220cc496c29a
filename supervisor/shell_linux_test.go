package supervisor

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/rs/zerolog"

	"github.com/moult/moult/fdpass"
	"github.com/moult/moult/fdpass/group"
	"github.com/moult/moult/supervisor/control/api"
	"github.com/moult/moult/supervisor/e2e/testkit/leak"
	"github.com/moult/moult/supervisor/machine"
)

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func TestTasksOfAnAddressComeInTurn(t *testing.T) {
	a := &address{}
	var done []int
	running, nested := 0, false
	for i := range 200 {
		a.do(func() {
			if running++; running != 1 {
				t.Error("two tasks at a time")
			}
			done = append(done, i)
			if i == 100 {
				a.do(func() { nested = true })
			}
			running--
		})
	}
	ran := false
	a.call(func() { ran = true })
	if !ran || !slices.IsSorted(done) || len(done) != 200 {
		t.Errorf("call has come back before its turn, or tasks were mixed up: %d done", len(done))
	}
	for limit := time.Now().Add(10 * time.Second); !a.idle() && time.Now().Before(limit); time.Sleep(time.Millisecond) {
	}
	if !a.idle() || !nested {
		t.Error("a task that a task has added was not done, or there is work left")
	}
}

// failing is a group that runs out of sockets.
type failing struct {
	group.Group
	left int
}

func (f *failing) Join(gen int) (*group.Member, error) {
	if f.left--; f.left < 0 {
		return nil, errors.New("no more")
	}
	return f.Group.Join(gen)
}

// shell is a Supervisor without a loop, with some addresses.
func shell(t *testing.T, addresses ...string) *Supervisor {
	t.Helper()
	t.Cleanup(leak.Check(t))
	s := &Supervisor{log: zerolog.Nop(), events: make(chan machine.Event, 64), asks: make(chan func()), done: make(chan struct{}), workers: newWorkers()}
	s.sockets = newSockets(false, s.link())
	t.Cleanup(s.Close)
	for _, text := range addresses {
		a, err := fdpass.ParseAddress(text)
		must(t, err)
		must(t, s.sockets.open(a, &s.cfg))
	}
	return s
}

func (s *Supervisor) mustFurnish(t *testing.T, generation, slots int) machine.Furnished {
	t.Helper()
	s.sockets.furnish(machine.Furnish{Generation: generation, First: 7, Slots: slots})
	e := (<-s.events).(machine.Furnished)
	if e.First != 7 || len(e.Members) != slots {
		t.Fatalf("%+v", e)
	}
	return e
}

// sizes are how many members each group has, and how many are known of it.
func (s *Supervisor) sizes() (list [][2]int) {
	for _, a := range s.sockets.opened {
		a.call(func() { list = append(list, [2]int{len(a.group.Members()), len(a.members)}) })
	}
	return list
}

// What a generation got before an address failed is in the answer, so that it
// can be given back; then all is as it was before.
func TestFurnishThatFails(t *testing.T) {
	path := filepath.Join(t.TempDir(), "sock")
	s := shell(t, "tcp://127.0.0.1:0", "unix:"+path, "tcp://127.0.0.1:0")
	first := s.mustFurnish(t, 1, 2)
	if first.Err != "" {
		t.Fatal(first.Err)
	}
	for _, a := range s.sockets.opened {
		a.steer(machine.Steer{Members: []machine.Inode{first.Members[0][a.id-1].Inode}})
	}
	before := s.sizes()
	last := s.sockets.opened[2]
	last.group = &failing{last.group, 1}
	e := s.mustFurnish(t, 2, 3)
	if e.Err != "no more" || len(e.Members[0]) != 3 || len(e.Members[1]) != 2 || len(e.Members[2]) != 2 {
		t.Errorf("%+v", e)
	}
	given := map[machine.Held]bool{}
	for _, members := range e.Members {
		for _, h := range members {
			if !given[h] { // the machine counts who has a socket
				s.sockets.leave(machine.Leave{Held: h})
			}
			given[h] = true
		}
	}
	if after := s.sizes(); !slices.Equal(after, before) {
		t.Errorf("members are %v, %v before", after, before)
	}
}

// The workers of a generation share the socket of a unix path, which goes with
// the last of them: the machine says so once.
func TestSharedPathGoesOnce(t *testing.T) {
	dir := t.TempDir()
	s := shell(t, "unix:"+filepath.Join(dir, "sock"))
	a := s.sockets.opened[0]
	for gen := 1; gen < 4; gen++ {
		e := s.mustFurnish(t, gen, 3)
		old := e.Members[0][0]
		if e.Members[2][0] != old {
			t.Fatal("workers have sockets of their own: ", e)
		}
		if _, err := a.steer(machine.Steer{Members: []machine.Inode{old.Inode}}); err != nil {
			t.Fatal(err)
		}
		if gen > 1 {
			a.call(func() {
				for inode, m := range a.members {
					if inode != old.Inode {
						a.leave(inode, m)
					}
				}
			})
		}
		if sizes := s.sizes()[0]; sizes != [2]int{1, 1} {
			t.Errorf("generation %d: %v members", gen, sizes)
		}
	}
	if names, _ := os.ReadDir(dir); len(names) != 2 { // the path, and the own name of the last
		t.Errorf("%d names are left", len(names))
	}
}

func TestReplaceFile(t *testing.T) {
	dir := t.TempDir()
	path, other := filepath.Join(dir, "pid"), filepath.Join(dir, "other")
	read := func(path string) string {
		text, _ := os.ReadFile(path)
		return string(text)
	}
	must(t, replaceFile(path, []byte("1\n")))
	must(t, replaceFile(path, []byte("2\n")))
	must(t, os.WriteFile(other, []byte("precious"), 0o600))
	must(t, os.Remove(path))
	must(t, os.Symlink(other, path))
	must(t, replaceFile(path, []byte("3\n")))
	if read(path) != "3\n" || read(other) != "precious" {
		t.Errorf("%q at the path, %q behind the link that was there", read(path), read(other))
	}
	must(t, os.Mkdir(filepath.Join(dir, "taken"), 0o700))
	if replaceFile(filepath.Join(dir, "taken"), nil) == nil || replaceFile(filepath.Join(dir, "no", "where"), nil) == nil {
		t.Error("a directory was replaced, or a file written into none")
	}
	left, _ := filepath.Glob(dir + "/*")
	if want := []string{other, path, filepath.Join(dir, "taken")}; !slices.Equal(left, want) {
		t.Errorf("left are %v, want %v", left, want)
	}
}

// begin asks for an operation, and answers in the loop's place.
func (s *Supervisor) begin(t *testing.T, decide func(machine.OpID)) (<-chan api.Event, error) {
	t.Helper()
	go func() { decide((<-s.events).(machine.Asked).Op) }()
	return s.Begin(context.Background(), api.Operation{Kind: api.OpUpgrade})
}

func TestClients(t *testing.T) {
	s := shell(t)
	var id machine.OpID
	events, err := s.begin(t, func(op machine.OpID) { id = op; s.clients.accept(op) })
	must(t, err)
	// Nobody reads: the master goes on, and what fits is there later.
	for i := range maxEvents + 5 {
		s.clients.inform(machine.Inform{Op: id, Event: api.Event{At: time.Now(), Reason: strings.Repeat("x", i)}, Last: i == maxEvents+4})
	}
	var got []int
	for e := range events {
		got = append(got, len(e.Reason))
	}
	if want := []int{1, 2, 3, 4, 5, 6, 7, maxEvents + 4}; !slices.Equal(got, want) {
		t.Errorf("events %v, want %v", got, want)
	}
	s.clients.inform(machine.Inform{Op: id, Last: true}) // of one that is over

	_, err = s.begin(t, func(op machine.OpID) { s.clients.turnDown(machine.TurnDown{Op: op, Reason: "not now"}) })
	var refused *api.Refused
	if !errors.As(err, &refused) || refused.Reason != "not now" {
		t.Errorf("turned down with %v", err)
	}
	for range 20 { // the last word before the end counts
		ended := &Supervisor{events: make(chan machine.Event), done: make(chan struct{})}
		if _, err := ended.begin(t, func(op machine.OpID) { ended.clients.accept(op); close(ended.done) }); err != nil {
			t.Fatal(err)
		}
	}
	if len(s.clients.open) > 0 {
		t.Errorf("%d clients are remembered", len(s.clients.open))
	}
}
