package fdpass

import (
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"
)

func unixSocket(t testing.TB) int {
	t.Helper()
	fd, err := newSocket(syscall.AF_UNIX, syscall.SOCK_STREAM, 0)
	must(t, err)
	return fd
}

// learn has a first worker bind path and listen.
func learn(t testing.TB, path string, id Identity) (*Socket, *Member) {
	t.Helper()
	fd := unixSocket(t)
	must(t, id.do(func() error { return syscall.Bind(fd, &syscall.SockaddrUnix{Name: path}) }))
	s := LearnPath(path, Options{})
	t.Cleanup(s.Close)
	m, err := s.AdoptPath(fd, 0, 5, id)
	must(t, err)
	must(t, s.Steer([]*Member{m}))
	return s, m
}

// follow has a worker of a later generation bind the path and listen.
func follow(t testing.TB, s *Socket, gen int, id Identity) *Member {
	t.Helper()
	fd := unixSocket(t)
	must(t, s.BindPath(fd, id))
	m, err := s.AdoptPath(fd, gen, 5, id)
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

func TestLearnedPathMovesWithoutAGap(t *testing.T) {
	id := ourselves(t)
	path := filepath.Join(shortDir(t), "app.sock")
	s, first := learn(t, path, id)
	wantNames(t, filepath.Dir(path), 1)
	serveUnix(t, first, "0")
	if how, _ := s.How(); how != Renamed || !s.Learned() || !s.IsUnix() || !first.Own() || s.Backlog() != DefaultBacklog {
		t.Errorf("it is %+v", s)
	}
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
	old := []*Member{first}
	for gen := 1; gen <= 50; gen++ {
		from := asked.Load()
		next := follow(t, s, gen, id)
		word := string(rune('0' + gen%10))
		serveUnix(t, next, word)
		wantAnswer(t, path, string(rune('0'+(gen-1)%10)))
		must(t, s.Steer([]*Member{next}))
		wantAnswer(t, path, word)
		old = append(old, next)
		eventually(t, "a request in between", func() bool { return asked.Load() > from || t.Failed() })
	}
	for i := range 2000 { // in the very moment of a switch
		must(t, s.Steer([]*Member{old[i%51]}))
	}
	must(t, s.Steer(old[50:]))
	eventually(t, "thousands of requests", func() bool { return asked.Load() > 3000 || t.Failed() })
	for _, m := range old[:50] {
		s.Leave(m)
	}
	close(stop)
	wg.Wait()
	t.Logf("%d requests", asked.Load())
	wantNames(t, filepath.Dir(path), 2)
	wantAnswer(t, path, "0")
	s.Close()
	wantNames(t, filepath.Dir(path), 0)
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
	must(t, s.BindPath(fd, id))
	inode, err := inodeOf(fd)
	must(t, err)
	for _, name := range names(t, dir) {
		info, err := os.Lstat(filepath.Join(dir, name))
		if err != nil || !s.Shows(info) {
			t.Errorf("%s is not known: %v", name, err)
		}
	}
	if err := s.BindPath(fd, id); !errors.Is(err, syscall.EINVAL) {
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
	must(t, s.BindPath(fd, id))
	s.Close()
	wantNames(t, dir, 0)
}

func TestLearnedPathIsShared(t *testing.T) {
	path := filepath.Join(shortDir(t), "app.sock")
	fd := unixSocket(t)
	must(t, syscall.Bind(fd, &syscall.SockaddrUnix{Name: path}))
	s := LearnPath(path, Options{Share: true})
	m, err := s.AdoptPath(fd, 0, 5, ourselves(t))
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
	if _, err := s.AdoptPath(unixSocket(t), 0, 5, ourselves(t)); !errors.Is(err, syscall.EINVAL) {
		t.Errorf("a socket that is not bound: %v", err)
	}
	if now := openDescriptors(t); now != before {
		t.Errorf("%d descriptors leaked", now-before)
	}
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
	if err := s.BindPath(fd, id); err != syscall.EACCES {
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
	must(t, s.BindPath(idle, id))
	for _, name := range names(t, dir) { // the same files, so that only the way there differs
		must(t, os.Link(filepath.Join(dir, name), filepath.Join(outside, name)))
	}
	before := names(t, outside)
	must(t, os.Rename(dir, moved))
	must(t, os.Symlink(outside, dir))
	fd := unixSocket(t)
	defer closeDescriptor(fd)
	if err := s.BindPath(fd, id); err == nil {
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
		if err := s.BindPath(fd, id); err != nil {
			closeDescriptor(fd)
			refused++
			continue
		}
		bound++
		m, err := s.AdoptPath(fd, gen, 5, id)
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
	longest := filepath.Join(dir, strings.Repeat("x", MaxUnixPath-len(dir)-1))
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
		first, err := s.AdoptPath(fd, 0, 5, id)
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
	s := LearnPath(os.Args[1], Options{})
	for _, umask := range []int{0o077, 0} {
		id.umask = umask
		fd, err := newSocket(syscall.AF_UNIX, syscall.SOCK_STREAM, 0)
		if err == nil {
			err = s.BindPath(fd, id)
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
	cmd := exec.Command("/proc/self/exe", filepath.Join(dir, "app.sock"))
	cmd.Env = append(os.Environ(), roleVariable+"=confined", "GORACE=atexit_sleep_ms=0")
	if out, err := cmd.CombinedOutput(); err != nil || len(out) > 0 {
		t.Errorf("%s%v", out, err)
	}
	wantNames(t, dir, 0)
}
