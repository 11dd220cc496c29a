package fdpass

import (
	"errors"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
)

// shortDir is a directory whose path leaves room in a socket's address.
func shortDir(t testing.TB) string {
	t.Helper()
	dir, err := os.MkdirTemp("/tmp", "m")
	must(t, err)
	t.Cleanup(func() { os.RemoveAll(dir) })
	return dir
}

func names(t testing.TB, dir string) []string {
	t.Helper()
	entries, err := os.ReadDir(dir)
	must(t, err)
	var list []string
	for _, e := range entries {
		list = append(list, e.Name())
	}
	return list
}

// serveUnix accepts on a member and says which one it is, until the member's
// own name is gone and its queue is empty.
func serveUnix(t testing.TB, m *Member, word string) net.Listener {
	t.Helper()
	f, err := m.Duplicate()
	must(t, err)
	defer f.Close()
	ln, err := net.FileListener(f)
	must(t, err)
	ln.(*net.UnixListener).SetUnlinkOnClose(false)
	go func() {
		for {
			conn, err := ln.Accept()
			if err != nil {
				return
			}
			_, _ = conn.Write([]byte(word))
			conn.Close()
		}
	}()
	t.Cleanup(func() { ln.Close() })
	return ln
}

func ask(path string) (string, error) {
	conn, err := net.Dial("unix", path)
	if err != nil {
		return "", err
	}
	defer conn.Close()
	word := make([]byte, 1)
	_, err = conn.Read(word)
	return string(word), err
}

func TestPathMovesWithoutAGap(t *testing.T) {
	path := filepath.Join(shortDir(t), "app.sock")
	s := mustOpen(t, "unix://"+path, Options{})
	m := mustJoin(t, s, 0)
	serveUnix(t, m, "0")
	must(t, s.Steer([]*Member{m}))

	stop := make(chan struct{})
	var asked atomic.Int64
	var wg sync.WaitGroup
	wg.Add(1)
	go func() {
		defer wg.Done()
		for ; ; asked.Add(1) {
			select {
			case <-stop:
				return
			default:
			}
			if _, err := ask(path); err != nil {
				t.Errorf("request %d: %v", asked.Load(), err)
				return
			}
		}
	}()
	old := []*Member{m}
	for gen := 1; gen <= 50; gen++ {
		from := asked.Load()
		next := mustJoin(t, s, gen)
		serveUnix(t, next, string(rune('0'+gen%10)))
		must(t, s.Steer([]*Member{next}))
		if word, err := ask(path); err != nil || word != string(rune('0'+gen%10)) {
			t.Fatalf("generation %d: %q answers, %v", gen, word, err)
		}
		old = append(old, next)
		eventually(t, "a request in between", func() bool { return asked.Load() > from || t.Failed() })
	}
	for i := range 2000 { // in the very moment of a switch
		must(t, s.Steer([]*Member{old[49+i%2]}))
	}
	close(stop)
	wg.Wait()
	for _, m := range old[:50] {
		s.Leave(m)
	}
	if n := names(t, filepath.Dir(path)); len(n) != 2 {
		t.Errorf("there are %q; want the path and one name of its own", n)
	}
	s.Close()
	if n := names(t, filepath.Dir(path)); len(n) != 0 {
		t.Errorf("left behind: %q", n)
	}
}

func TestOneGenerationSharesAPath(t *testing.T) {
	s := mustOpen(t, "unix://"+filepath.Join(shortDir(t), "s"), Options{})
	if a, b := mustJoin(t, s, 1), mustJoin(t, s, 1); a != b {
		t.Error("two workers of a generation have a socket each")
	}
	if a, b := mustJoin(t, s, 1), mustJoin(t, s, 2); a == b {
		t.Error("two generations have one socket")
	}
}

func TestMend(t *testing.T) {
	path := filepath.Join(shortDir(t), "app.sock")
	s := mustOpen(t, "unix://"+path, Options{})
	m := mustJoin(t, s, 1)
	serveUnix(t, m, "1")
	must(t, s.Steer([]*Member{m}))
	if mended, err := s.Mend(); mended || err != nil {
		t.Fatalf("nothing was broken: %v, %v", mended, err)
	}
	must(t, os.Remove(path))
	if mended, err := s.Mend(); !mended || err != nil {
		t.Fatalf("%v, %v", mended, err)
	}
	if word, err := ask(path); word != "1" {
		t.Errorf("%q answers, %v", word, err)
	}
	// Another socket at the path: a worker that binds it itself.
	must(t, os.Remove(path))
	ln, err := net.Listen("unix", path)
	must(t, err)
	ln.(*net.UnixListener).SetUnlinkOnClose(false)
	ln.Close()
	if mended, err := s.Mend(); !mended || err != nil {
		t.Fatalf("%v, %v", mended, err)
	}
	must(t, s.Refuse())
	if _, err := os.Lstat(path); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("new clients still find the path: %v", err)
	}
	if mended, _ := s.Mend(); mended {
		t.Error("put back after the end")
	}
	must(t, s.Steer([]*Member{m}))
	if _, err := os.Lstat(path); !errors.Is(err, fs.ErrNotExist) {
		t.Error("steered to after the end")
	}
}

func TestCloseLeavesTheFilesOfOthers(t *testing.T) {
	for _, share := range []bool{false, true} {
		dir := shortDir(t)
		path := filepath.Join(dir, "app.sock")
		s := mustOpen(t, "unix://"+path, Options{Share: share})
		must(t, os.Rename(path, path+".away")) // keeps its inode number taken
		must(t, os.WriteFile(path, []byte("x"), 0o600))
		s.Close()
		if _, err := os.Lstat(path); err != nil {
			t.Errorf("share=%v: another program's file was removed: %v", share, err)
		}
	}
}

func TestStalePath(t *testing.T) {
	for _, network := range []string{"unix", "unixgram"} {
		dir := shortDir(t)
		path := filepath.Join(dir, "app.sock")
		fd, err := newSocket(syscall.AF_UNIX, syscall.SOCK_STREAM, 0)
		must(t, err)
		must(t, syscall.Bind(fd, &syscall.SockaddrUnix{Name: path}))
		must(t, os.Link(path, filepath.Join(dir, ".app.soc"))) // a killed master's
		closeDescriptor(fd)
		s, err := Open(mustParse(t, network+"://"+path), Options{})
		must(t, err)
		s.Close()
		if n := names(t, dir); len(n) != 0 {
			t.Errorf("%s: left behind: %q", network, n)
		}
	}
}

func TestPathInUse(t *testing.T) {
	dir := shortDir(t)
	for name, network := range map[string]string{"a": "unix", "b": "unixgram"} {
		path := filepath.Join(dir, name)
		for _, share := range []bool{false, true} {
			s := mustOpen(t, network+"://"+path, Options{Share: share})
			before, err := os.Lstat(path)
			must(t, err)
			if _, err := Open(mustParse(t, network+"://"+path), Options{Share: share}); !errors.Is(err, syscall.EADDRINUSE) {
				t.Errorf("%s: %v, want EADDRINUSE", network, err)
			}
			if after, err := os.Lstat(path); err != nil || !os.SameFile(before, after) {
				t.Errorf("%s: the path was touched: %v", network, err)
			}
			s.Close()
		}
	}
	file := filepath.Join(dir, "file")
	must(t, os.WriteFile(file, nil, 0o600))
	if _, err := Open(mustParse(t, "unix://"+file), Options{}); err == nil || !strings.Contains(err.Error(), "not a socket") {
		t.Errorf("a plain file: %v", err)
	}
	if _, err := os.Lstat(file); err != nil {
		t.Error("a plain file was removed")
	}
	if n := names(t, dir); len(n) != 1 {
		t.Errorf("left behind: %q", n)
	}
	if _, err := Open(mustParse(t, "unix://"+filepath.Join(dir, "none", "s")), Options{}); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("no directory: %v", err)
	}
}

func TestTwoMastersAtOnePathAtOnce(t *testing.T) {
	dir := shortDir(t)
	path := filepath.Join(dir, "app.sock")
	a := mustParse(t, "unix://"+path)
	for i := range 200 {
		if i%2 == 0 { // a dead one's file is in the way of all
			fd, err := newSocket(syscall.AF_UNIX, syscall.SOCK_STREAM, 0)
			must(t, err)
			must(t, syscall.Bind(fd, &syscall.SockaddrUnix{Name: path}))
			closeDescriptor(fd)
		}
		var wg sync.WaitGroup
		var sockets [3]*Socket
		for i := range sockets {
			wg.Add(1)
			go func() {
				defer wg.Done()
				sockets[i], _ = Open(a, Options{})
			}()
		}
		wg.Wait()
		winners := 0
		for _, s := range sockets {
			if s == nil {
				continue
			}
			winners++
			if !s.showsPath(s.members[0]) {
				t.Fatal("the path of the one that won leads elsewhere")
			}
		}
		if winners != 1 {
			t.Fatalf("%d masters have the path", winners)
		}
		for _, s := range sockets {
			if s != nil {
				s.Close()
			}
		}
		if n := names(t, dir); len(n) != 0 {
			t.Fatalf("left behind: %q", n)
		}
	}
}

func TestModeAndOwner(t *testing.T) {
	for _, network := range []string{"unix", "unixgram"} {
		path := filepath.Join(shortDir(t), "s")
		s := mustOpen(t, network+"://"+path+"?mode=0604", Options{})
		for gen := range 2 {
			must(t, s.Steer([]*Member{mustJoin(t, s, gen)}))
			info, err := os.Lstat(path)
			must(t, err)
			if info.Mode().Perm() != 0o604 {
				t.Errorf("%s, generation %d: mode %v", network, gen, info.Mode())
			}
		}
	}
	if os.Geteuid() != 0 {
		t.Log("only root gives files away")
		return
	}
	path := filepath.Join(shortDir(t), "s")
	a := mustParse(t, "unix://"+path)
	a.UID, a.GID = 65534, 65533
	s, err := Open(a, Options{})
	must(t, err)
	defer s.Close()
	must(t, s.Steer([]*Member{mustJoin(t, s, 1)}))
	info, err := os.Lstat(path)
	must(t, err)
	if st := info.Sys().(*syscall.Stat_t); st.Uid != 65534 || st.Gid != 65533 {
		t.Errorf("it belongs to %d:%d", st.Uid, st.Gid)
	}
}

func TestNamesFitWhereThePathFits(t *testing.T) {
	dir := shortDir(t)
	long := filepath.Join(dir, strings.Repeat("x", MaxUnixPath-len(dir)-1))
	one := filepath.Join(dir, "b")
	for range 200 { // one of 36 names is the path itself
		s, err := Open(mustParse(t, "unix://"+one), Options{})
		must(t, err)
		s.Close()
	}
	for _, path := range []string{long, filepath.Join(dir, "a"), filepath.Join(dir, "ab"), filepath.Join(dir, "abc")} {
		s, err := Open(mustParse(t, "unix://"+path), Options{})
		must(t, err)
		for gen := range 5 {
			m := mustJoin(t, s, gen)
			if len(m.Path()) > len(path) || filepath.Dir(m.Path()) != dir {
				t.Errorf("%s is the name beside %s", m.Path(), path)
			}
			must(t, s.Steer([]*Member{m}))
		}
		s.Close()
	}
	if n := names(t, dir); len(n) != 0 {
		t.Errorf("left behind: %q", n)
	}
}

func TestDirectoryThatMayNotBeWritten(t *testing.T) {
	if os.Geteuid() == 0 {
		t.Skip("root may write everywhere")
	}
	dir := shortDir(t)
	must(t, os.Chmod(dir, 0o555))
	before := openDescriptors(t)
	_, err := Open(mustParse(t, "unix://"+filepath.Join(dir, "s")), Options{})
	if !errors.Is(err, fs.ErrPermission) {
		t.Errorf("%v, want a refusal", err)
	}
	if now := openDescriptors(t); now != before {
		t.Errorf("%d descriptors leaked", now-before)
	}
}
