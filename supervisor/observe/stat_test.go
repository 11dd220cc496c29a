package observe

import (
	"fmt"
	"strings"
	"testing"
)

// statLine writes what the kernel would.
func statLine(p Proc) string {
	return fmt.Sprintf("%d (%s) %c %d %d %d 0 -1 4194560 1 2 3 4 5 6 7 8 20 0 %d 0 %d 1 2 3\n",
		p.PID, p.Comm, p.State, p.PPID, p.PGID, p.SID, p.Threads, p.StartTime)
}

func FuzzStatRoundTrip(f *testing.F) {
	f.Add(1, 0, 1, uint64(5), "init")
	f.Add(77, 1, 70, uint64(1<<63), "a) S 1 (b")
	f.Add(4194304, 2, 0, uint64(0), ") R 1 1 1 ((\n")
	f.Add(2, 2, 2, uint64(2), "")
	f.Fuzz(func(t *testing.T, pid, ppid, group int, start uint64, comm string) {
		want := Proc{PID: pid, PPID: ppid, PGID: group, SID: group, State: 'S', Threads: 3, StartTime: start, Comm: comm}
		got, err := parseStat([]byte(statLine(want)))
		if err != nil || got != want {
			t.Fatalf("got %+v, %v, want %+v", got, err, want)
		}
	})
}

func FuzzStatGarbage(f *testing.F) {
	line := statLine(Proc{PID: 1, State: 'S', Comm: "x"})
	f.Add([]byte(line))
	f.Add([]byte(line[:20]))
	f.Add([]byte("1 (x"))
	f.Add([]byte(") 1 (x"))
	f.Add([]byte(strings.Replace(line, "S", "SS", 1)))
	f.Fuzz(func(t *testing.T, line []byte) {
		if p, err := parseStat(line); err != nil && p != (Proc{}) {
			t.Fatalf("error %v with a partial result %+v", err, p)
		}
	})
}

func TestStatRefusesWhatIsCut(t *testing.T) {
	line := statLine(Proc{PID: 1, State: 'S', Comm: "x) y"})
	for _, cut := range []string{"", "1", "1 (x", line[:30], strings.Replace(line, "1 (", "a (", 1)} {
		if p, err := parseStat([]byte(cut)); err == nil {
			t.Errorf("%q gave %+v", cut, p)
		}
	}
}

func TestTreeOfAnyList(t *testing.T) {
	all := []Proc{
		{PID: 1, State: 'S'}, {PID: 10, PPID: 1, State: 'S'}, {PID: 5, PPID: 10, State: 'R'},
		{PID: 6, PPID: 5, State: 'Z', Threads: 1}, {PID: 7, PPID: 5, State: 'Z', Threads: 2},
		{PID: 8, PPID: 9, State: 'S'}, {PID: 9, PPID: 8, State: 'S'},
	}
	for root, want := range map[int]string{10: "[10 5 7]", 6: "[]", 99: "[]", 8: "[8 9]"} {
		if got := fmt.Sprint(treeOf(root, all)); got != want {
			t.Errorf("tree of %d: got %s, want %s", root, got, want)
		}
	}
}
