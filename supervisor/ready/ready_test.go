package ready

import (
	"strings"
	"testing"
	"time"
)

var (
	seen   = Socket{Name: "web", Stream: true, Seen: true}
	silent = Socket{Name: "web", Stream: true}
	given  = Socket{Name: "web", Stream: true, Given: true}
	hidden = Socket{Name: "web", Stream: true, Hidden: true}
	packet = Socket{Name: "dns"} // a datagram socket
)

// Each row is a worker, the verdict on it, and what it lacks.
func TestVerdict(t *testing.T) {
	for _, c := range []struct {
		name  string
		w     Worker
		by    How
		ok    bool
		lacks string
	}{
		{"auto: accepts", Worker{How: Auto, Sockets: []Socket{seen}}, Accept, true, ""},
		{"auto: accepts and has said so", Worker{How: Auto, Notified: true, Sockets: []Socket{seen}}, Notify, true, ""},
		{"auto: accepts, an earlier one has said so", Worker{How: Auto, ExpectsNotify: true, Sockets: []Socket{seen}}, Accept, false, "has not sent READY=1 as an earlier generation did"},
		{"auto: the same, and it says so", Worker{How: Auto, ExpectsNotify: true, Notified: true, Sockets: []Socket{seen}}, Notify, true, ""},
		{"auto: has said so, does not accept", Worker{How: Auto, Notified: true, Sockets: []Socket{silent}}, Notify, false, "nobody accepts on web"},
		{"auto: does not accept on what it was given", Worker{How: Auto, Sockets: []Socket{given}}, Notify, false, "does it use the socket that it was given?"},
		{"auto: accepts on one of two", Worker{How: Auto, Notified: true, Sockets: []Socket{seen, silent}}, Notify, false, "nobody accepts on web"},
		{"auto: cannot be seen", Worker{How: Auto, Sockets: []Socket{hidden}}, Notify, false, "choose --ready notify or alive=D"},
		{"auto: cannot be seen, has said so", Worker{How: Auto, Notified: true, Sockets: []Socket{hidden}}, Notify, true, ""},
		{"auto: one of two cannot be seen, has said so", Worker{How: Auto, Notified: true, Sockets: []Socket{seen, hidden}}, Notify, true, ""},
		{"auto: hidden before, seen now", Worker{How: Auto, Sockets: []Socket{{Stream: true, Seen: true, Hidden: true}}}, Accept, true, ""},
		{"auto: no socket", Worker{How: Auto}, Notify, false, "it has bound no address"},
		{"auto: no socket, has said so", Worker{How: Auto, Notified: true}, Notify, true, ""},
		{"auto: datagrams beside a stream do not count", Worker{How: Auto, Sockets: []Socket{packet, seen}}, Accept, true, ""},
		{"auto: datagrams alone count", Worker{How: Auto, Sockets: []Socket{packet}}, Notify, false, "nobody accepts on dns"},
		{"auto: lacks an address that clients use", Worker{How: Auto, Notified: true, Sockets: []Socket{seen}, Lacks: []string{":80", ":81"}}, "", false, "it does not listen on :80, :81"},
		{"auto: has bound its only socket and does not listen", Worker{How: Auto, Waits: 1}, "", false, "does not listen on it"},
		{"auto: has bound and does not listen", Worker{How: Auto, Notified: true, Sockets: []Socket{seen}, Waits: 1}, "", false, "does not listen on it"},

		{"notify: has said so", Worker{How: Notify, Notified: true, Sockets: []Socket{silent}}, Notify, true, ""},
		{"notify: accepts", Worker{How: Notify, Sockets: []Socket{seen}}, Notify, false, "it has not sent READY=1"},
		{"notify: lacks an address", Worker{How: Notify, Notified: true, Lacks: []string{":80"}}, "", false, "it does not listen on :80"},
		{"notify: has bound and does not listen", Worker{How: Notify, Notified: true, Waits: 1}, "", false, "does not listen on it"},

		{"accept: accepts, an earlier one has said so", Worker{How: Accept, ExpectsNotify: true, Sockets: []Socket{seen}}, Accept, true, ""},
		{"accept: has said so", Worker{How: Accept, Notified: true, Sockets: []Socket{silent}}, Accept, false, "nobody accepts on web"},
		{"accept: cannot be seen", Worker{How: Accept, Notified: true, Sockets: []Socket{hidden}}, Accept, false, "accepts on web; choose --ready"},
		{"accept: no socket", Worker{How: Accept, Notified: true}, Accept, false, "it has bound no address"},
		{"accept: lacks an address", Worker{How: Accept, Sockets: []Socket{seen}, Lacks: []string{":80"}}, "", false, "it does not listen on :80"},

		{"alive: not long enough", Worker{How: Alive, Alive: time.Second, Lived: time.Second - 1, Notified: true, Sockets: []Socket{seen}}, Alive, false, "did not live long enough"},
		{"alive: long enough", Worker{How: Alive, Alive: time.Second, Lived: time.Second}, Alive, true, ""},
		{"alive: has no time to live", Worker{How: Alive}, Alive, true, ""},
		{"alive: long enough, lacks an address", Worker{How: Alive, Lacks: []string{":80"}, Waits: 1}, Alive, true, ""},
	} {
		if by, ok := c.w.Verdict(); by != c.by || ok != c.ok {
			t.Errorf("%s: %v by %q, want %v by %q", c.name, ok, by, c.ok, c.by)
		}
		if missing := c.w.Missing(); !c.ok && !strings.Contains(missing, c.lacks) {
			t.Errorf("%s: %q, want %q", c.name, missing, c.lacks)
		}
	}
}
