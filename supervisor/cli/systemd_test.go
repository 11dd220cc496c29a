package cli

import (
	"net"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/moult/moult/supervisor"
)

func TestSystemdHearsOfEachStep(t *testing.T) {
	for _, test := range []struct {
		name string
		t    supervisor.Transition
		want string
	}{
		{"first generation", supervisor.Transition{Generation: 1, From: "starting", To: "serving"}, "READY=1\nSTATUS=Generation 1 serves"},
		{"upgrade begins", supervisor.Transition{Generation: 1, From: "serving", To: "upgrading"}, "RELOADING=1\n"},
		{"upgrade done", supervisor.Transition{Generation: 2, From: "upgrading", To: "serving"}, "READY=1\nSTATUS=Generation 2 serves"},
		{"upgrade failed", supervisor.Transition{Generation: 2, From: "upgrading", To: "serving", Reason: "no\nmore", Trouble: true}, "READY=1\nSTATUS=Upgrade failed, generation 2 keeps serving: no"},
		{"one more at once", supervisor.Transition{Generation: 2, From: "upgrading", To: "upgrading"}, "RELOADING=1\n"},
		{"stop", supervisor.Transition{Generation: 2, From: "serving", To: "stopping"}, "STOPPING=1"},
		{"a worker's own step", supervisor.Transition{Generation: 2, PID: 7, From: "starting", To: "serving"}, ""},
	} {
		if got := systemdState(test.t); !strings.HasPrefix(got, test.want) || test.want == "" && got != "" {
			t.Errorf("%s: %q, want %q", test.name, got, test.want)
		}
	}
}

func TestSystemdReloadBearsTheClock(t *testing.T) {
	if word := reloading(2); !strings.Contains(word, "\nMONOTONIC_USEC=") {
		t.Errorf("%q has no MONOTONIC_USEC: Type=notify-reload would hang", word)
	}
}

func TestSystemdIsToldOverTheSocket(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s")
	conn, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Net: "unixgram", Name: path})
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	t.Setenv("NOTIFY_SOCKET", path)
	tell := tellSystemd()
	tell(supervisor.Transition{Generation: 1, From: "starting", To: "serving"})
	buf := make([]byte, 256)
	if err := conn.SetReadDeadline(time.Now().Add(10 * time.Second)); err != nil {
		t.Fatal(err)
	}
	n, err := conn.Read(buf)
	if err != nil || !strings.HasPrefix(string(buf[:n]), "READY=1") {
		t.Fatalf("heard %q, %v", buf[:n], err)
	}
}

func TestNobodyListens(t *testing.T) {
	t.Setenv("NOTIFY_SOCKET", "")
	if tellSystemd() != nil {
		t.Error("an observer although nobody listens")
	}
}
