package group

import (
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/moult/moult/fdpass"
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
	f := duplicate(t, m)
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
	id := ourselves(t)
	for _, learned := range []bool{false, true} {
		t.Run(fmt.Sprintf("learned=%v", learned), func(t *testing.T) {
			path := filepath.Join(shortDir(t), "app.sock")
			var s *pathGroup
			join := func(gen int) *Member {
				if learned {
					return follow(t, s, gen, id)
				}
				return mustJoin(t, s, gen)
			}
			var first *Member
			if learned {
				s, first = learn(t, path, id)
				wantNames(t, filepath.Dir(path), 1)
			} else {
				s = mustOpen(t, "unix://"+path, Options{}).(*pathGroup)
				first = join(0)
			}
			d := s.Describe()
			if d.How != Renamed || d.Learned != learned || first.Own() != learned || !d.Stream || d.Backlog != fdpass.DefaultBacklog {
				t.Errorf("it is %+v", d)
			}
			serveUnix(t, first, "0")
			must(t, s.Steer([]*Member{first}))
			moveUnderLoad(t, s, path, first, join)
			wantNames(t, filepath.Dir(path), 2)
			s.Close()
			wantNames(t, filepath.Dir(path), 0)
		})
	}
}

// moveUnderLoad goes through fifty generations, and then back and forth in the
// very moment of a switch, while a client asks all the time.
func moveUnderLoad(t *testing.T, s *pathGroup, path string, first *Member, join func(gen int) *Member) {
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
	word := func(gen int) string { return string(rune('0' + gen%10)) }
	all := []*Member{first}
	for gen := 1; gen <= 50; gen++ {
		from := asked.Load()
		next := join(gen)
		serveUnix(t, next, word(gen))
		wantAnswer(t, path, word(gen-1))
		must(t, s.Steer([]*Member{next}))
		wantAnswer(t, path, word(gen))
		all = append(all, next)
		eventually(t, "a request in between", func() bool { return asked.Load() > from || t.Failed() })
	}
	for i := range 2000 {
		must(t, s.Steer([]*Member{all[i%51]}))
	}
	must(t, s.Steer(all[50:]))
	for _, m := range all[:50] {
		s.Leave(m)
	}
	close(stop)
	wg.Wait()
	wantAnswer(t, path, word(50))
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

// TestLeavesBeforeTheNextServes: a crashed generation's member is given back
// before the path leads elsewhere, or before there is another.
func TestLeavesBeforeTheNextServes(t *testing.T) {
	dir := shortDir(t)
	path := filepath.Join(dir, "app.sock")
	s := mustOpen(t, "unix://"+path, Options{})
	first := mustJoin(t, s, 1)
	must(t, s.Steer([]*Member{first}))
	second := mustJoin(t, s, 2)
	serveUnix(t, second, "2")
	s.Leave(first)
	must(t, s.Steer([]*Member{second}))
	wantAnswer(t, path, "2")
	s.Leave(second)
	wantNames(t, dir, 0)
	third := mustJoin(t, s, 3)
	serveUnix(t, third, "3")
	must(t, s.Steer([]*Member{third}))
	wantAnswer(t, path, "3")
	mustJoin(t, s, 4)
	s.Leave(third)
	s.Close()
	wantNames(t, dir, 0)
}

func TestMend(t *testing.T) {
	path := filepath.Join(shortDir(t), "app.sock")
	s := mustOpen(t, "unix://"+path, Options{})
	m := mustJoin(t, s, 1)
	serveUnix(t, m, "1")
	must(t, s.Steer([]*Member{m}))
	if mended, err := s.(Mender).Mend(); mended || err != nil {
		t.Fatalf("nothing was broken: %v, %v", mended, err)
	}
	must(t, os.Remove(path))
	if mended, err := s.(Mender).Mend(); !mended || err != nil {
		t.Fatalf("%v, %v", mended, err)
	}
	if word, err := ask(path); word != "1" {
		t.Errorf("%q answers, %v", word, err)
	}
	must(t, s.Refuse())
	if _, err := os.Lstat(path); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("new clients still find the path: %v", err)
	}
	if mended, _ := s.(Mender).Mend(); mended {
		t.Error("put back after the end")
	}
	must(t, s.Steer([]*Member{m}))
	if _, err := os.Lstat(path); !errors.Is(err, fs.ErrNotExist) {
		t.Error("steered to after the end")
	}
}

// TestNeverOverOthersFiles: what another program has put at a declared path is
// neither replaced nor removed, whatever it is.
func TestNeverOverOthersFiles(t *testing.T) {
	for what, put := range map[string]func(t testing.TB, path string){
		"a file": func(t testing.TB, path string) { must(t, os.WriteFile(path, []byte("x"), 0o600)) },
		"a link": func(t testing.TB, path string) { must(t, os.Symlink("nowhere", path)) },
		"a socket": func(t testing.TB, path string) {
			ln, err := net.Listen("unix", path)
			must(t, err)
			t.Cleanup(func() { ln.Close() })
		},
		"a dead socket": func(t testing.TB, path string) {
			ln, err := net.Listen("unix", path)
			must(t, err)
			ln.(*net.UnixListener).SetUnlinkOnClose(false)
			ln.Close()
		},
	} {
		t.Run(what, func(t *testing.T) {
			dir := shortDir(t)
			path := filepath.Join(dir, "app.sock")
			s := mustOpen(t, "unix://"+path, Options{}).(*pathGroup)
			first := mustJoin(t, s, 1)
			serveUnix(t, first, "1")
			must(t, s.Steer([]*Member{first}))
			must(t, os.Rename(path, path+".away"))
			put(t, path)
			before, err := os.Lstat(path)
			must(t, err)
			next := mustJoin(t, s, 2)
			if err := s.Steer([]*Member{next}); !errors.Is(err, fs.ErrExist) || !strings.Contains(err.Error(), "another program's file") {
				t.Errorf("steered: %v", err)
			}
			if mended, err := s.Mend(); mended || !errors.Is(err, fs.ErrExist) {
				t.Errorf("mended: %v, %v", mended, err)
			}
			if s.Reachable() {
				t.Error("it is said to be reachable")
			}
			s.Leave(next)
			must(t, s.Refuse())
			s.Close()
			if after, err := os.Lstat(path); err != nil || !os.SameFile(before, after) {
				t.Errorf("it was touched: %v", err)
			}
		})
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
		fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
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
			fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
			must(t, err)
			must(t, syscall.Bind(fd, &syscall.SockaddrUnix{Name: path}))
			closeDescriptor(fd)
		}
		var wg sync.WaitGroup
		var sockets [3]Group
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
			if !s.(*pathGroup).shows(s.Members()[0]) {
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

// TestModeFollowsNoLink: who owns the directory puts a link to another file in
// the place of each name that appears.
func TestModeFollowsNoLink(t *testing.T) {
	for _, options := range []string{"?mode=0666", "?owner=65534:65533"} {
		if os.Geteuid() != 0 && options != "?mode=0666" {
			continue
		}
		dir, safe := shortDir(t), filepath.Join(shortDir(t), "safe")
		must(t, os.WriteFile(safe, nil, 0o600))
		stop := make(chan struct{})
		var wg sync.WaitGroup
		for range 2 {
			wg.Add(1)
			go func() {
				defer wg.Done()
				for n := 0; ; n++ {
					select {
					case <-stop:
						return
					default:
					}
					link := filepath.Join(dir, fmt.Sprintf("link%d", n))
					_ = os.Symlink(safe, link)
					entries, _ := os.ReadDir(dir)
					for _, e := range entries {
						if !strings.HasPrefix(e.Name(), "link") {
							_ = os.Rename(link, filepath.Join(dir, e.Name()))
						}
					}
					_ = os.Remove(link)
				}
			}()
		}
		for range 300 {
			if s, err := Open(mustParse(t, "unix://"+filepath.Join(dir, "app.sock")+options), Options{}); err == nil {
				_, _ = s.Join(1)
				_, _ = s.Join(2)
				s.Close()
			}
			os.Remove(filepath.Join(dir, "app.sock"))
		}
		close(stop)
		wg.Wait()
		if st := statOf(t, safe); st.Mode&0o777 != 0o600 || int(st.Uid) != os.Geteuid() {
			t.Errorf("%s: another file has mode %o and belongs to %d", options, st.Mode, st.Uid)
		}
	}
}

func TestNamesFitWhereThePathFits(t *testing.T) {
	dir := shortDir(t)
	long := filepath.Join(dir, strings.Repeat("x", fdpass.MaxUnixPath-len(dir)-1))
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
	wantDescriptors(t, before)
}

func unixSocket(t testing.TB) int {
	t.Helper()
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	must(t, err)
	return fd
}

// learn has a first worker bind path and listen.
func learn(t testing.TB, path string, id Identity) (*pathGroup, *Member) {
	t.Helper()
	fd := unixSocket(t)
	must(t, id.do(func() error { return syscall.Bind(fd, &syscall.SockaddrUnix{Name: path}) }))
	s := LearnPath(path, Options{}).(*pathGroup)
	t.Cleanup(s.Close)
	m, err := s.Adopt(fd, 0, 5, id)
	must(t, err)
	must(t, s.Steer([]*Member{m}))
	return s, m
}

// follow has a worker of a later generation bind the path and listen.
func follow(t testing.TB, s Path, gen int, id Identity) *Member {
	t.Helper()
	fd := unixSocket(t)
	must(t, s.Bind(fd, id))
	m, err := s.Adopt(fd, gen, 5, id)
	must(t, err)
	return m
}

func wantNames(t testing.TB, dir string, n int) {
	t.Helper()
	if have := names(t, dir); len(have) != n {
		t.Errorf("there are %q, want %d", have, n)
	}
}

func wantAnswer(t testing.TB, path, want string) {
	t.Helper()
	if word, err := ask(path); word != want {
		t.Errorf("%q answers, want %q: %v", word, want, err)
	}
}

func TestRollbackOfALearnedPath(t *testing.T) {
	id := ourselves(t)
	path := filepath.Join(shortDir(t), "app.sock")
	s, first := learn(t, path, id)
	serveUnix(t, first, "0")
	second := follow(t, s, 1, id)
	serveUnix(t, second, "1")
	must(t, s.Steer([]*Member{second}))
	wantAnswer(t, path, "1")
	must(t, s.Steer([]*Member{first}))
	wantAnswer(t, path, "0")
	s.Leave(second)
	wantAnswer(t, path, "0")
	if !s.Reachable() {
		t.Error("the path leads to nobody")
	}
	wantNames(t, filepath.Dir(path), 2)
	s.Leave(first) // the last one takes the path along
	wantNames(t, filepath.Dir(path), 0)
}

func TestLeavingTakesNoOthersPath(t *testing.T) {
	id := ourselves(t)
	dir := shortDir(t)
	path := filepath.Join(dir, "app.sock")
	s, first := learn(t, path, id)
	second := follow(t, s, 1, id)
	s.Leave(first) // still shown: the next Steer decides
	if _, err := os.Lstat(path); err != nil {
		t.Errorf("the path is gone before it leads elsewhere: %v", err)
	}
	must(t, s.Steer([]*Member{second}))
	must(t, os.Remove(path))
	must(t, os.WriteFile(path, nil, 0o600))
	must(t, os.Remove(second.Path()))
	must(t, os.WriteFile(second.Path(), nil, 0o600))
	s.Leave(second)
	s.Close()
	wantNames(t, dir, 2) // somebody else's files
}

func TestMendLearnedPath(t *testing.T) {
	id := ourselves(t)
	path := filepath.Join(shortDir(t), "app.sock")
	s, first := learn(t, path, id)
	second := follow(t, s, 1, id)
	serveUnix(t, second, "1")
	must(t, s.Steer([]*Member{second}))
	must(t, os.Remove(path)) // the first one's way out
	if mended, err := s.Mend(); !mended || err != nil {
		t.Fatalf("%v, %v", mended, err)
	}
	wantAnswer(t, path, "1")
	must(t, os.Remove(path))
	must(t, os.WriteFile(path, nil, 0o600))
	if mended, err := s.Mend(); mended || err != nil {
		t.Errorf("in place of somebody else's file: %v, %v", mended, err)
	}
	must(t, os.Remove(path))
	s.Leave(first)
	if mended, err := s.Mend(); mended || err != nil {
		t.Errorf("the only worker has removed its own path: %v, %v", mended, err)
	}
}

// TestRenamedByTheWorker does as haproxy, which binds a name of the moment and
// renames it.
func TestRenamedByTheWorker(t *testing.T) {
	dir := shortDir(t)
	path, away := filepath.Join(dir, "app.sock.1.tmp"), filepath.Join(dir, "app.sock")
	for _, early := range []bool{false, true} {
		s, m := learn(t, path, ourselves(t))
		if early { // before it was ever steered
			must(t, s.Steer(nil))
		}
		must(t, os.Rename(path, away))
		must(t, s.Steer([]*Member{m}))
		if mended, err := s.Mend(); mended || err != nil {
			t.Errorf("%v, %v", mended, err)
		}
		if s.Reachable() {
			t.Error("a path that is gone is reachable")
		}
		if info, err := os.Lstat(away); err != nil || !s.Shows(info) {
			t.Errorf("its new name does not lead to it: %v", err)
		}
		s.Close()
		if n := names(t, dir); len(n) != 1 || n[0] != "app.sock" {
			t.Errorf("there are %q", n)
		}
		must(t, os.Remove(away))
	}
}

func TestForget(t *testing.T) {
	id := ourselves(t)
	dir := shortDir(t)
	path := filepath.Join(dir, "app.sock")
	s, m := learn(t, path, id)
	fd := unixSocket(t)
	must(t, s.Bind(fd, id))
	inode := inodeOf(t, fd)
	for _, name := range names(t, dir) {
		info, err := os.Lstat(filepath.Join(dir, name))
		if err != nil || !s.Shows(info) {
			t.Errorf("%s is not known: %v", name, err)
		}
	}
	if err := s.Bind(fd, id); !errors.Is(err, syscall.EINVAL) {
		t.Errorf("bound twice: %v", err)
	}
	wantNames(t, dir, 2)
	closeDescriptor(fd)
	s.Forget(inode)
	s.Forget(inode)
	s.Forget(m.Inode())
	wantNames(t, dir, 1)
	fd = unixSocket(t)
	defer closeDescriptor(fd)
	must(t, s.Bind(fd, id))
	s.Close()
	wantNames(t, dir, 0)
}

func TestLearnedPathIsShared(t *testing.T) {
	path := filepath.Join(shortDir(t), "app.sock")
	fd := unixSocket(t)
	must(t, syscall.Bind(fd, &syscall.SockaddrUnix{Name: path}))
	s := LearnPath(path, Options{Share: true})
	m, err := s.Adopt(fd, 0, 5, ourselves(t))
	must(t, err)
	if again, err := s.Join(1); again != m || err != nil {
		t.Errorf("another generation gets another socket, %v", err)
	}
	s.Close()
	wantNames(t, filepath.Dir(path), 0)
}

func TestAdoptPathTellsWhyNot(t *testing.T) {
	before := openDescriptors(t)
	s := LearnPath(filepath.Join(shortDir(t), "s"), Options{})
	if _, err := s.Adopt(unixSocket(t), 0, 5, ourselves(t)); !errors.Is(err, syscall.EINVAL) {
		t.Errorf("a socket that is not bound: %v", err)
	}
	wantDescriptors(t, before)
}

// TestPermissionsGoWithThePath: chmod and chown after bind reach the old file.
func TestPermissionsGoWithThePath(t *testing.T) {
	id := ourselves(t)
	path := filepath.Join(shortDir(t), "app.sock")
	s, _ := learn(t, path, id)
	id.umask = 0
	next := follow(t, s, 1, id)
	if mode := statOf(t, next.Path()).Mode & 0o7777; mode != 0o777 {
		t.Errorf("mode %o with umask 0", mode)
	}
	must(t, os.Chmod(path, 0o642))
	want := statOf(t, path)
	if os.Geteuid() == 0 {
		must(t, os.Chown(path, otherUID, otherGID))
		want = statOf(t, path)
	}
	must(t, s.Steer([]*Member{next}))
	if have := statOf(t, path); have.Mode != want.Mode || have.Uid != want.Uid || have.Gid != want.Gid {
		t.Errorf("it belongs to %d:%d and has mode %o", have.Uid, have.Gid, have.Mode)
	}
}

func TestLearnedPathOfAnotherUser(t *testing.T) {
	dir := openDir(t)
	path := filepath.Join(dir, "app.sock")
	id := other(t)
	must(t, os.Chown(dir, otherUID, otherGID))
	s, first := learn(t, path, id)
	next := follow(t, s, 1, id)
	must(t, s.Steer([]*Member{next}))
	if st := statOf(t, path); st.Uid != otherUID || st.Gid != otherGID {
		t.Errorf("the path belongs to %d:%d", st.Uid, st.Gid)
	}
	conn, err := net.Dial("unix", path)
	must(t, err)
	defer conn.Close()
	if peer := peerOf(t, conn.(*net.UnixConn)); peer.Uid != otherUID || peer.Gid != otherGID {
		t.Errorf("clients see %+v", peer)
	}
	must(t, s.Steer([]*Member{first}))
	s.Leave(next)
	must(t, os.Chown(dir, 0, 0)) // from here on nobody else may change it
	fd := unixSocket(t)
	defer closeDescriptor(fd)
	if err := s.Bind(fd, id); err != syscall.EACCES {
		t.Errorf("%v, want EACCES", err)
	}
	s.Leave(first)
	wantNames(t, dir, 2) // the worker could not have removed them either
}

func peerOf(t testing.TB, conn *net.UnixConn) *unix.Ucred {
	t.Helper()
	raw, err := conn.SyscallConn()
	must(t, err)
	var peer *unix.Ucred
	must(t, raw.Control(func(fd uintptr) {
		peer, err = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED)
	}))
	must(t, err)
	return peer
}

// TestDirectoryBecomesALink: what a worker puts in the directory's place does
// not lead the master elsewhere, though the master might write there.
func TestDirectoryBecomesALink(t *testing.T) {
	id := ourselves(t)
	top := shortDir(t)
	dir, moved, outside := filepath.Join(top, "d"), filepath.Join(top, "e"), filepath.Join(top, "o")
	must(t, os.Mkdir(dir, 0o755))
	must(t, os.Mkdir(outside, 0o755))
	s, first := learn(t, filepath.Join(dir, "app.sock"), id)
	next := follow(t, s, 1, id)
	idle := unixSocket(t)
	defer closeDescriptor(idle)
	must(t, s.Bind(idle, id))
	for _, name := range names(t, dir) { // the same files, so that only the way there differs
		must(t, os.Link(filepath.Join(dir, name), filepath.Join(outside, name)))
	}
	before := names(t, outside)
	must(t, os.Rename(dir, moved))
	must(t, os.Symlink(outside, dir))
	fd := unixSocket(t)
	defer closeDescriptor(fd)
	if err := s.Bind(fd, id); err == nil {
		t.Error("bound by way of a link")
	}
	must(t, os.Remove(filepath.Join(outside, "app.sock")))
	must(t, os.Link(filepath.Join(moved, "app.sock"), filepath.Join(outside, "app.sock")))
	if err := s.Steer([]*Member{next}); err == nil {
		t.Error("steered by way of a link")
	}
	s.Leave(first)
	s.Leave(next)
	s.Close()
	if after := names(t, outside); strings.Join(after, " ") != strings.Join(before, " ") {
		t.Errorf("outside there are %q, were %q", after, before)
	}
	wantNames(t, moved, len(before))
}

// TestDirectorySwappedInARace: a worker that swaps the directory all the time
// gets no name where it may not make one.
func TestDirectorySwappedInARace(t *testing.T) {
	id := other(t)
	top, outside := openDir(t), openDir(t)
	must(t, os.Chown(top, otherUID, otherGID))
	dir, spare := filepath.Join(top, "d"), filepath.Join(top, "l")
	must(t, os.Mkdir(dir, 0o755))
	must(t, os.Chown(dir, otherUID, otherGID))
	must(t, os.Symlink(outside, spare))
	s, _ := learn(t, filepath.Join(dir, "app.sock"), id)
	stop := make(chan struct{})
	var wg sync.WaitGroup
	wg.Add(1)
	go func() {
		defer wg.Done()
		for {
			select {
			case <-stop:
				return
			default:
				_ = unix.Renameat2(unix.AT_FDCWD, dir, unix.AT_FDCWD, spare, unix.RENAME_EXCHANGE)
			}
		}
	}()
	bound, refused := 0, 0
	for gen := 1; bound < 20 || refused < 20; gen++ {
		fd := unixSocket(t)
		if err := s.Bind(fd, id); err != nil {
			closeDescriptor(fd)
			refused++
			continue
		}
		bound++
		m, err := s.Adopt(fd, gen, 5, id)
		must(t, err)
		_ = s.Steer([]*Member{m})
		s.Leave(m)
	}
	close(stop)
	wg.Wait()
	wantNames(t, outside, 0)
}

func TestLongPaths(t *testing.T) {
	id := ourselves(t)
	dir := shortDir(t)
	deep := filepath.Join(dir, strings.Repeat("d", 120))
	must(t, os.Mkdir(deep, 0o755))
	at, err := openDirectory(deep)
	must(t, err)
	defer closeDescriptor(at)
	longest := filepath.Join(dir, strings.Repeat("x", fdpass.MaxUnixPath-len(dir)-1))
	for path, given := range map[string]string{
		longest:                         longest,
		filepath.Join(dir, "s"):         filepath.Join(dir, "s"),
		filepath.Join(deep, "app.sock"): inDirectory(at, "app.sock"),
	} {
		fd := unixSocket(t)
		must(t, syscall.Bind(fd, &syscall.SockaddrUnix{Name: given}))
		if have, ok := ResolvePath(os.Getpid(), []byte(given)); !ok || have != path {
			t.Fatalf("%s is %s", given, have)
		}
		s := LearnPath(path, Options{})
		first, err := s.Adopt(fd, 0, 5, id)
		must(t, err)
		serveUnix(t, first, "0")
		for gen := range 5 {
			m := follow(t, s, gen, id)
			serveUnix(t, m, "1")
			must(t, s.Steer([]*Member{m}))
			wantAnswer(t, given, "1")
		}
		s.Close()
	}
	wantNames(t, dir, 1)
	wantNames(t, deep, 0)
}

func TestResolvePath(t *testing.T) {
	top, err := filepath.EvalSymlinks(shortDir(t))
	must(t, err)
	cwd, elsewhere := filepath.Join(top, "cwd"), filepath.Join(top, "else", "where")
	must(t, os.Mkdir(cwd, 0o755))
	must(t, os.MkdirAll(elsewhere, 0o755))
	must(t, os.Chmod(top, 0o755))
	must(t, os.Symlink(elsewhere, filepath.Join(cwd, "link")))
	must(t, os.Symlink("nowhere", filepath.Join(cwd, "s")))
	pid := startStanding(t, cwd, nil)
	for name, want := range map[string]string{
		"app.sock":                 cwd + "/app.sock",
		"./app.sock\x00rest":       cwd + "/app.sock",
		"s":                        cwd + "/s", // not followed
		"link/app.sock":            elsewhere + "/app.sock",
		"link/../app.sock":         top + "/else/app.sock",
		"../else//where/app.sock":  elsewhere + "/app.sock",
		cwd + "/link/app.sock":     elsewhere + "/app.sock",
		"/proc/self/cwd/x":         cwd + "/x",
		"/proc/thread-self/cwd/x":  cwd + "/x",
		"/app.sock":                "/app.sock",
		"":                         "",
		"\x00abstract":             "",
		"link/":                    "",
		"link/..":                  "",
		".":                        "",
		"missing/app.sock":         "",
		"s/app.sock":               "",
		cwd + "/missing/../x.sock": "",
	} {
		if have, ok := ResolvePath(pid, []byte(name)); ok != (want != "") || ok && have != want {
			t.Errorf("%q is %q, %v; want %q", name, have, ok, want)
		}
	}
	if have, ok := ResolvePath(1<<30, []byte("x")); ok {
		t.Errorf("nobody's x is %q", have)
	}
}

func TestLeadsTo(t *testing.T) {
	dir := openDir(t)
	path := filepath.Join(dir, "app.sock")
	s, _ := learn(t, path, ourselves(t))
	must(t, os.WriteFile(filepath.Join(dir, "file"), nil, 0o600))
	at, err := openDirectory(dir)
	must(t, err)
	defer closeDescriptor(at)
	pid := startStanding(t, dir, nil)
	for _, c := range []struct {
		pid, dirfd int
		path       string
		ours       bool
		err        error
	}{
		{pid, unix.AT_FDCWD, "app.sock", true, nil},
		{pid, unix.AT_FDCWD, "/proc/self/cwd/app.sock", true, nil},
		{pid, 99, path, true, nil},
		{os.Getpid(), at, "./app.sock", true, nil},
		{os.Getpid(), at, "file", false, nil},
		{os.Getpid(), at, "none", false, fs.ErrNotExist},
		{os.Getpid(), unix.AT_FDCWD, "app.sock", false, fs.ErrNotExist},
		{pid, unix.AT_FDCWD, "", false, fs.ErrNotExist},
		{pid, unix.AT_FDCWD, "app.sock/", false, syscall.ENOTDIR},
	} {
		info, err := LeadsTo(c.pid, c.dirfd, c.path)
		if !errors.Is(err, c.err) || err == nil && s.Shows(info) != c.ours {
			t.Errorf("%+v: %v", c, err)
		}
	}
}

func init() { roles["confined"] = confined }

// confined binds where unshare(2) is forbidden, as it is in many containers.
func confined() {
	filter := []unix.SockFilter{
		{Code: unix.BPF_LD | unix.BPF_W | unix.BPF_ABS},
		{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, Jf: 1, K: unix.SYS_UNSHARE},
		{Code: unix.BPF_RET | unix.BPF_K, K: unix.SECCOMP_RET_ERRNO | uint32(unix.EPERM)},
		{Code: unix.BPF_RET | unix.BPF_K, K: unix.SECCOMP_RET_ALLOW},
	}
	program := unix.SockFprog{Len: uint16(len(filter)), Filter: &filter[0]}
	_ = unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
	const allThreads = unix.SECCOMP_FILTER_FLAG_TSYNC
	if _, _, errno := unix.Syscall(unix.SYS_SECCOMP, unix.SECCOMP_SET_MODE_FILTER, allThreads, uintptr(unsafe.Pointer(&program))); errno != 0 {
		fmt.Println("seccomp:", errno)
		return
	}
	id, err := IdentityOf(os.Getpid())
	if err == nil {
		err = id.Do(func() error { return nil })
	}
	if err != unix.EPERM {
		fmt.Println("unshare is not forbidden:", err)
	}
	s := LearnPath(os.Args[1], Options{}).(*pathGroup)
	for _, umask := range []int{0o077, 0} {
		id.umask = umask
		fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
		if err == nil {
			err = s.Bind(fd, id)
		}
		if err != nil {
			fmt.Println(err)
		}
		for _, p := range s.pending {
			if info, err := os.Lstat(p.path); err != nil || int(info.Mode().Perm()) != 0o777&^umask {
				fmt.Printf("umask %o: %v, %v\n", umask, info, err)
			}
		}
		s.Close()
		s.pending = map[uint64]pendingName{}
	}
}

func TestUmaskWhereUnshareIsForbidden(t *testing.T) {
	dir := shortDir(t)
	playAlone(t, "confined", nil, filepath.Join(dir, "app.sock"))
	wantNames(t, dir, 0)
}
