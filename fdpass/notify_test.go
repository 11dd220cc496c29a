package fdpass

import (
	"net"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"
)

func TestNotify(t *testing.T) {
	names := []string{filepath.Join(t.TempDir(), "notify")}
	if runtime.GOOS == "linux" {
		names = append(names, "@fdpass-test-notify-"+filepath.Base(t.TempDir()))
	}
	for _, name := range names {
		conn, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: name, Net: "unixgram"})
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		t.Setenv("NOTIFY_SOCKET", name)
		if sent, err := Notify("READY=1\nSTATUS=here"); !sent || err != nil {
			t.Errorf("%s: sent %v, %v", name, sent, err)
		}
		_ = conn.SetReadDeadline(time.Now().Add(10 * time.Second))
		p := make([]byte, 100)
		n, err := conn.Read(p)
		if string(p[:n]) != "READY=1\nSTATUS=here" || err != nil {
			t.Errorf("%s: heard %q, %v", name, p[:n], err)
		}
	}
}

func TestNotifyNobody(t *testing.T) {
	t.Setenv("NOTIFY_SOCKET", "")
	if sent, err := Notify("READY=1"); sent || err != nil {
		t.Errorf("sent %v, %v; want neither", sent, err)
	}
}

func TestNotifyErrors(t *testing.T) {
	for name, want := range map[string]string{
		filepath.Join(t.TempDir(), "gone"): "cannot notify",
		"vsock:2:1234":                     "neither a path nor an abstract name",
	} {
		t.Setenv("NOTIFY_SOCKET", name)
		if sent, err := Notify("READY=1"); sent || err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: sent %v, %v", name, sent, err)
		}
	}
}
