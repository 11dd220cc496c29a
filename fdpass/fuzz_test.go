package fdpass

import (
	"os"
	"strconv"
	"strings"
	"testing"
)

func FuzzActivated(f *testing.F) {
	f.Add("2", "web:admin", "admin")
	f.Add("1", "", "unknown")
	f.Add("99999999999", "a", "a")
	f.Add("-1", "a:b", "b")
	f.Fuzz(func(t *testing.T, count, names, name string) {
		if strings.ContainsRune(count+names+name, 0) {
			t.Skip("no environment holds that")
		}
		t.Setenv("LISTEN_PID", strconv.Itoa(os.Getpid()))
		t.Setenv("LISTEN_FDS", count)
		t.Setenv("LISTEN_FDNAMES", names)
		fd, err := activated(name)
		if err != nil {
			if fd != -1 {
				t.Fatalf("an error with descriptor %d", fd)
			}
			return
		}
		n, _ := strconv.Atoi(count)
		if fd < listenFDsStart || fd >= listenFDsStart+n {
			t.Fatalf("descriptor %d of %d", fd, n)
		}
		list := append(strings.Split(names, ":"), make([]string, n)...)
		if got := list[fd-listenFDsStart]; got != name && got != name+".socket" && name != "unknown" {
			t.Fatalf("%q was asked for, %q was found", name, got)
		}
	})
}
