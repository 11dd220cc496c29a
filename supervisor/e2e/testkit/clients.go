//go:build linux

package testkit

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/moult/moult/supervisor/cli/demo/load"
	"github.com/moult/moult/supervisor/control/api"
)

// Get asks once, over a new connection.
func Get(network, address, path string) (*http.Response, string, error) {
	conn, err := net.DialTimeout(network, address, 5*time.Second)
	if err != nil {
		return nil, "", err
	}
	defer conn.Close()
	conn.SetDeadline(time.Now().Add(10 * time.Second))
	return exchange(conn, path)
}

func request(path string) string {
	return "GET " + path + " HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
}

func exchange(conn net.Conn, path string) (*http.Response, string, error) {
	if _, err := io.WriteString(conn, request(path)); err != nil {
		return nil, "", err
	}
	response, err := http.ReadResponse(bufio.NewReader(conn), nil)
	if err != nil {
		return nil, "", err
	}
	defer response.Body.Close()
	body, err := io.ReadAll(response.Body)
	return response, string(body), err
}

// MustGet returns the body of an answer.
func MustGet(t testing.TB, address, path string) string {
	t.Helper()
	response, body, err := Get("tcp", address, path)
	if err == nil && response.StatusCode != http.StatusOK {
		err = errors.New(response.Status)
	}
	if err != nil {
		t.Fatalf("GET %s: %v %s", path, err, body)
	}
	return body
}

// networkOf tells the path of a unix socket, or an abstract name, from host:port.
func networkOf(address string) string {
	if strings.HasPrefix(address, "/") || strings.HasPrefix(address, "@") {
		return "unix"
	}
	return "tcp"
}

// GenerationAt returns which generation answers, 0 if none does.
func GenerationAt(address string) int {
	response, _, err := Get(networkOf(address), address, "/")
	if err != nil {
		return 0
	}
	generation, _ := strconv.Atoi(response.Header.Get(load.GenerationHeader))
	return generation
}

func AnsweredBy(t testing.TB, address string, generation int) {
	t.Helper()
	if got := GenerationAt(address); got != generation {
		t.Errorf("generation %d answers at %s, want %d", got, address, generation)
	}
}

// AnsweredBy checks which generation answers at the master's address.
func (m *Master) AnsweredBy(generation int) {
	m.t.Helper()
	AnsweredBy(m.t, m.Address, generation)
}

// Answers waits until somebody does.
func Answers(t testing.TB, address string) {
	t.Helper()
	Until(t, address+" answers", func() error {
		_, _, err := Get(networkOf(address), address, "/")
		return err
	})
}

// Refused waits until nobody listens on an address.
func Refused(t testing.TB, address string) {
	t.Helper()
	Until(t, address+" is refused", func() error {
		conn, err := net.Dial("tcp", address)
		if err != nil {
			return nil
		}
		conn.Close()
		return errors.New("somebody listens")
	})
}

// Clients are traffic; what it has counted is checked by one of the methods
// that stop it.
type Clients struct {
	*load.Traffic
	t testing.TB
}

// Ask starts 16 clients where the number is not given.
func Ask(t testing.TB, config load.Config) *Clients {
	t.Helper()
	if config.Clients == 0 {
		config.Clients = 16
	}
	if config.Network == "" {
		config.Network = networkOf(config.Address)
	}
	ctx, cancel := context.WithCancel(context.Background())
	c := &Clients{load.Start(ctx, config), t}
	t.Cleanup(func() { cancel(); c.Stop() })
	return c
}

// Ask starts so many clients of the master's address that a test beside others
// has its share of the processor: in a soak run they ask without a pause.
func (m *Master) Ask(clients int) *Clients {
	m.t.Helper()
	return AskAt(m.t, m.Address, clients)
}

// AskAt is Master.Ask for any address.
func AskAt(t testing.TB, address string, clients int) *Clients {
	t.Helper()
	return Ask(t, load.Config{Address: address, Clients: clients, Pause: politely(5 * time.Millisecond)})
}

// politely is a pause of clients, which there is not in a soak run.
func politely(pause time.Duration) time.Duration {
	if Soak() {
		return 0
	}
	return pause
}

// Requests is the number that have ended so far, well or not.
func (c *Clients) Requests() int {
	now := c.Snapshot()
	return now.Requests()
}

// Answer waits for some more answers.
func (c *Clients) Answer(more int) {
	c.t.Helper()
	before := c.Requests()
	Until(c.t, "traffic flows", func() error {
		if now := c.Snapshot(); now.Requests() < before+more {
			return errors.New(now.String())
		}
		return nil
	})
}

// Flow waits until the traffic has got some more answers.
func (c *Clients) Flow() {
	c.t.Helper()
	c.Answer(32)
}

// Lossless stops the traffic and checks that nothing was lost.
func (c *Clients) Lossless() load.Report {
	c.t.Helper()
	report := c.Stop()
	if report.Failures() != 0 || report.Requests() == 0 {
		c.t.Errorf("lost requests: %v", report)
	}
	return report
}

// OnlyInHand stops the traffic and checks that crashes have cost no more than
// what was in hand.
func (c *Clients) OnlyInHand(most int) {
	c.t.Helper()
	report := c.Stop()
	total := report.Total()
	cut := total.Failed[load.Reset] + total.Failed[load.Short]
	if total.Failures() != cut || cut > most {
		c.t.Errorf("more was lost than was in hand (%d at most): %v", most, report)
	}
}

// ShutdownLosses stops the traffic and checks what a shared socket can promise:
// net/http drops the requests that it has just read when Shutdown begins
// (golang/go#75591), and nothing else is lost: at most one request of each of
// the 16 clients.
func (c *Clients) ShutdownLosses(upgrades int) {
	c.t.Helper()
	c.OnlyInHand(16 * upgrades)
}

// UpgradeUnderLoad upgrades while clients ask all of the addresses, by default
// the master's.
func (m *Master) UpgradeUnderLoad(times int, addresses ...string) {
	m.t.Helper()
	if len(addresses) == 0 {
		addresses = []string{m.Address}
	}
	var all []*Clients
	for _, address := range addresses {
		all = append(all, AskAt(m.t, m.Fill(address), max(4, 16/len(addresses))))
	}
	flow := func() {
		for _, clients := range all {
			clients.Flow()
		}
	}
	flow()
	for range times {
		m.Upgrade()
		flow()
	}
	m.Retire()
	for i, clients := range all {
		report := clients.Lossless()
		if report.Generations[strconv.Itoa(m.Generation())] == 0 {
			m.t.Errorf("%s was never answered by the last generation: %v", addresses[i], report)
		}
	}
}

// Loop is clients that do something again and again, and whose failures count.
type Loop struct {
	t       testing.TB
	quit    func()
	running sync.WaitGroup

	mu       sync.Mutex
	ended    int
	failures []error
}

// Repeat starts clients. Each calls start once, and what it returns until the
// loop is stopped, all on a goroutine of its own.
func Repeat(t testing.TB, clients int, pause time.Duration, start func() (once func() error, err error)) *Loop {
	quit := make(chan struct{})
	l := &Loop{t: t, quit: sync.OnceFunc(func() { close(quit) })}
	for range clients {
		l.running.Go(func() {
			once, err := start()
			for err == nil {
				l.count(once())
				select {
				case <-quit:
					return
				case <-time.After(pause):
				}
			}
			l.count(err)
		})
	}
	t.Cleanup(func() { l.Stop() })
	return l
}

func (l *Loop) count(err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.ended++
	if err != nil {
		l.failures = append(l.failures, err)
	}
}

// Requests is the number that have ended so far, well or not.
func (l *Loop) Requests() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.ended
}

// Flow waits for some more requests.
func (l *Loop) Flow() {
	l.t.Helper()
	before := l.Requests()
	Until(l.t, "requests are answered", func() error { return AtLeast(l.Requests()-before, 32) })
}

// Stop lets each client finish, and returns an error if any request failed.
func (l *Loop) Stop() error {
	l.quit()
	l.running.Wait()
	if len(l.failures) > 0 || l.ended == 0 {
		return fmt.Errorf("%d requests, %d failures, the first: %v", l.ended, len(l.failures), l.failures[:min(3, len(l.failures))])
	}
	return nil
}

// Lossless stops the clients and checks that no request failed.
func (l *Loop) Lossless() {
	l.t.Helper()
	if err := l.Stop(); err != nil {
		l.t.Error(err)
	}
}

// AskByDatagrams starts clients that wait for each echo.
func AskByDatagrams(t testing.TB, address string, clients int) *Loop {
	t.Helper()
	return Repeat(t, clients, politely(time.Millisecond), func() (func() error, error) {
		conn, err := net.Dial("udp", address)
		n := 0
		return func() error {
			n++
			_, err := Echoed(conn, strconv.Itoa(n))
			return err
		}, err
	})
}

// Echoed sends words and returns the generation that sent them back.
func Echoed(conn net.Conn, words string) (generation string, err error) {
	conn.SetDeadline(time.Now().Add(2 * time.Second))
	if _, err := io.WriteString(conn, words); err != nil {
		return "", err
	}
	buffer := make([]byte, 100)
	n, err := conn.Read(buffer)
	if err != nil {
		return "", err
	}
	generation, same, _ := strings.Cut(string(buffer[:n]), " ")
	if same != words {
		return "", fmt.Errorf("got %q, want %q", same, words)
	}
	return generation, nil
}

// HeldRequest is a request whose answer has not been read.
type HeldRequest struct {
	t    testing.TB
	conn net.Conn
}

// Send sends a request that nobody has to accept yet.
func Send(t testing.TB, address, path string) HeldRequest {
	t.Helper()
	conn, err := net.DialTimeout("tcp", address, 5*time.Second)
	OK(t, err)
	t.Cleanup(func() { conn.Close() })
	_, err = io.WriteString(conn, request(path))
	OK(t, err)
	return HeldRequest{t, conn}
}

// Queue is requests that nobody has to accept yet.
func Queue(t testing.TB, address string, n int) (all []HeldRequest) {
	t.Helper()
	for range n {
		all = append(all, Send(t, address, "/"))
	}
	return all
}

// Finish checks that the requests are answered; what says which they are.
func Finish(t testing.TB, what string, all ...HeldRequest) {
	t.Helper()
	for i, h := range all {
		h.conn.SetReadDeadline(time.Now().Add(patience))
		response, err := http.ReadResponse(bufio.NewReader(h.conn), nil)
		if err == nil {
			_, err = io.Copy(io.Discard, response.Body)
		}
		if err != nil {
			t.Errorf("%s (request %d): %v", what, i, err)
		}
	}
}

// Hold sends a request for a slow answer and returns once a worker has it in
// hand.
func Hold(t testing.TB, address, path string) HeldRequest {
	t.Helper()
	before := Busy(t, address)
	held := Send(t, address, path)
	Until(t, "the request is in hand", func() error { return AtLeast(Busy(t, address), before+1) })
	return held
}

// Hold is the function of this name for the master's address.
func (m *Master) Hold(path string) HeldRequest {
	m.t.Helper()
	return Hold(m.t, m.Address, path)
}

// Busy is the number of slow requests that the serving worker has in hand.
func Busy(t testing.TB, address string) int {
	t.Helper()
	n, err := strconv.Atoi(MustGet(t, address, "/busy"))
	OK(t, err)
	return n
}

// Dial opens a connection for as long as the test lasts.
func Dial(t testing.TB, address string) net.Conn {
	t.Helper()
	return DialFor(t, 5*time.Second, address)
}

// DialFor is Dial with a limit.
func DialFor(t testing.TB, limit time.Duration, address string) net.Conn {
	t.Helper()
	conn, err := net.DialTimeout(networkOf(address), address, limit)
	OK(t, err)
	t.Cleanup(func() { conn.Close() })
	return conn
}

// AskSelf returns what the worker that serves found when it began.
func AskSelf(t testing.TB, address string) (s Self) {
	t.Helper()
	OK(t, json.Unmarshal([]byte(MustGet(t, address, "/self")), &s))
	return s
}

// Self is AskSelf for the master's address.
func (m *Master) Self() Self {
	m.t.Helper()
	return AskSelf(m.t, m.Address)
}

func (s Self) Variable(name string) string {
	value, _ := s.Lookup(name)
	return value
}

func (s Self) Lookup(name string) (string, bool) {
	for _, kv := range s.Env {
		if value, found := strings.CutPrefix(kv, name+"="); found {
			return value, true
		}
	}
	return "", false
}

// Client runs a client command for this master, and returns its exit code and
// what it said.
func (m *Master) Client(words ...string) (int, string) {
	m.t.Helper()
	cmd := exec.Command(Executable(), words...)
	cmd.Env = append(os.Environ(), tokenVariable+"="+newToken(), "MOULT_CONTROL="+m.control())
	out, err := cmd.CombinedOutput()
	if cmd.ProcessState == nil {
		m.t.Fatal(err)
	}
	return cmd.ProcessState.ExitCode(), string(out)
}

// Control dials the master's control socket.
func (m *Master) Control() net.Conn {
	m.t.Helper()
	return Dial(m.t, m.control())
}

// Succeeds runs a client command that must.
func (m *Master) Succeeds(words ...string) string {
	m.t.Helper()
	code, out := m.Client(words...)
	if code != 0 {
		m.t.Fatalf("%v: exit code %d: %s", words, code, out)
	}
	return out
}

// Status asks the master as a script does.
func (m *Master) Status() (status api.Status) {
	m.t.Helper()
	OK(m.t, json.Unmarshal([]byte(m.Succeeds("status", "--json")), &status))
	return status
}

// TCPSocket is a line of /proc/net/tcp. The peer is as it stands there.
type TCPSocket struct{ Local, Peer, State, Inode string }

// TCPSockets reads the kernel's table, as this thread sees it: the first thread
// of the process may be in a namespace that some test has made. A line may come
// twice where the table changes meanwhile.
func TCPSockets(t testing.TB) map[TCPSocket]bool {
	t.Helper()
	table, err := os.ReadFile("/proc/thread-self/net/tcp")
	OK(t, err)
	all := map[TCPSocket]bool{}
	for line := range strings.Lines(string(table)) {
		fields := strings.Fields(line)
		var ip, port uint32
		if len(fields) < 10 {
			continue
		}
		if _, err := fmt.Sscanf(fields[1], "%X:%X", &ip, &port); err != nil {
			continue
		}
		local := fmt.Sprintf("%d.%d.%d.%d:%d", byte(ip), byte(ip>>8), byte(ip>>16), byte(ip>>24), port)
		all[TCPSocket{local, fields[2], fields[3], fields[9]}] = true
	}
	return all
}

// Queued counts established connections that nobody has accepted.
func Queued(t testing.TB, address string) (n int) {
	t.Helper()
	for s := range TCPSockets(t) {
		if s.Local == address && s.State == "01" && s.Inode == "0" {
			n++
		}
	}
	return n
}

// Listening is a socket of the test's own, blocking, for others to inherit.
func Listening(t testing.TB, network, address string) *os.File {
	t.Helper()
	config := new(net.ListenConfig)
	config.SetMultipathTCP(false) // plain TCP, as systemd opens it
	listener, err := config.Listen(t.Context(), network, address)
	OK(t, err)
	if l, isUnix := listener.(*net.UnixListener); isUnix {
		l.SetUnlinkOnClose(false)
	}
	file, err := listener.(interface{ File() (*os.File, error) }).File()
	OK(t, errors.Join(err, listener.Close()))
	t.Cleanup(func() { file.Close() })
	return file
}

// Stranger listens on an address in the group of others, if it can.
func Stranger(t testing.TB, address string) net.Listener {
	t.Helper()
	config := net.ListenConfig{Control: reusePort}
	config.SetMultipathTCP(false)
	stranger, err := config.Listen(t.Context(), "tcp", address)
	if err != nil {
		return nil
	}
	t.Cleanup(func() { stranger.Close() })
	return stranger
}

// MustBeFree checks that another program may have the address.
func MustBeFree(t testing.TB, address string) {
	t.Helper()
	listener, err := net.Listen("tcp", address)
	if err != nil {
		t.Fatalf("the port is not free: %v", err)
	}
	listener.Close()
}

// StartAlone starts a command with no master above it, with sockets from 3 on.
// end kills it with its descendants.
func StartAlone(t testing.TB, generation int, files []*os.File, stdout *os.File, command []string, env ...string) (pid int, end func()) {
	t.Helper()
	cmd := exec.Command(command[0], command[1:]...)
	cmd.Env = append(append(os.Environ(), tokenVariable+"="+newToken(), fmt.Sprintf("MOULT_GENERATION=%d", generation)), env...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	said := new(strings.Builder)
	cmd.Stderr, cmd.WaitDelay, cmd.ExtraFiles = said, patience, files
	if len(files) > 0 {
		cmd.Env = append(cmd.Env, fmt.Sprintf("LISTEN_FDS=%d", len(files)))
	}
	if stdout != nil {
		cmd.Stdout = stdout
	}
	OK(t, cmd.Start())
	end = sync.OnceFunc(func() {
		for _, pid := range Family(cmd.Process.Pid) {
			KillProcess(pid)
		}
		cmd.Wait()
		if t.Failed() {
			t.Logf("%s alone said:\n%s", command[0], said)
		}
	})
	t.Cleanup(end)
	return cmd.Process.Pid, end
}

// OnlyTheSocket checks that no temporary name stays beside the path.
func OnlyTheSocket(t testing.TB, path string) {
	t.Helper()
	files, err := os.ReadDir(filepath.Dir(path))
	OK(t, err)
	for _, file := range files {
		if file.Name() != filepath.Base(path) {
			t.Errorf("left behind: %s", file.Name())
		}
	}
}
