package worker

import (
	"cmp"
	"context"
	"errors"
	"log/slog"
	"net"
	"net/http"
	"os"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
)

// Config says how a worker behaves. The zero value is a good start: every
// field has a default.
type Config struct {
	// Listen are the addresses of Serve, as "[NAME=]ADDR": "web=:8080",
	// "127.0.0.1:0", "unix:///run/web.sock?mode=660". A socket that the
	// process was started with is found by its name or its address; without
	// any it is opened. Default: the server's Addr.
	Listen []string

	// LameDuck is for how long everything still works after the worker has
	// stopped being ready, so that load balancers take notice. Default 0. It
	// is left out after an upgrade.
	LameDuck time.Duration

	// Drain limits the gentle end of all connections; default 30s. When it
	// has passed, the contexts of the handlers are cancelled, and after
	// Grace, default 5s, what is still open is closed by force.
	Drain, Grace time.Duration

	// Idle is for how long the drain keeps a connection that is between two
	// requests, or new: a client that sends at least this often meets nothing
	// but answers. It also limits the time for a request's header during the
	// drain. Default 5s.
	Idle time.Duration

	// HookTimeout limits each hook that has no limit of its own; default 5s.
	// HookPause lies between two stages of hooks; default 0.
	HookTimeout, HookPause time.Duration

	// Signals begin the drain; a second one ends the worker at once. Default:
	// SIGTERM and SIGINT. An empty slice that is not nil stands for none.
	Signals []os.Signal

	// NoUpgrade leaves SIGHUP alone. Without it SIGHUP upgrades a server that
	// has no master above it. One Worker in a process can do that.
	NoUpgrade bool

	// UpgradeTimeout is how long a new process has to become ready; default
	// one minute.
	UpgradeTimeout time.Duration

	// Logger gets a line per stage, hook and upgrade; nil is silent.
	Logger *slog.Logger

	// OnStage, if set, is called after each change of the stage, which waits
	// for it to return.
	OnStage func(Stage)
}

func (cfg Config) withDefaults() Config {
	cfg.Drain = cmp.Or(cfg.Drain, 30*time.Second)
	cfg.Grace = cmp.Or(cfg.Grace, 5*time.Second)
	cfg.Idle = cmp.Or(cfg.Idle, 5*time.Second)
	cfg.HookTimeout = cmp.Or(cfg.HookTimeout, 5*time.Second)
	cfg.UpgradeTimeout = cmp.Or(cfg.UpgradeTimeout, time.Minute)
	if cfg.Signals == nil {
		cfg.Signals = []os.Signal{syscall.SIGTERM, syscall.SIGINT}
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	return cfg
}

// A Worker is a server process, or a part of one that ends as a whole: its
// sockets, its servers, its connections and the way in which they end. All
// methods may be called from any goroutine.
type Worker struct {
	cfg     Config
	log     *slog.Logger
	sockets *sockets
	watcher *watcher
	signals signals

	stage   atomic.Int32
	entered time.Time // of the stage; belongs to whoever enters it

	readyOnce sync.Once
	ready     chan struct{}
	upgrading sync.Mutex
	successor *os.Process // under upgrading

	beginOnce sync.Once
	triggered chan trigger
	draining  context.Context // done once the drain has been asked for
	drain     context.CancelFunc
	killed    context.Context
	kill      context.CancelFunc
	ended     chan struct{}
	result    Result // once ended is closed

	mu        sync.Mutex
	listeners []*listener
	servers   []*httpServer
	health    []*http.Server
	hooks     []Hook
	failed    []error
	closing   bool
}

// New takes the sockets that the process was started with and begins to
// listen for signals.
func New(cfg Config) (*Worker, error) {
	cfg = cfg.withDefaults()
	s, err := newSockets(cfg)
	if err != nil {
		return nil, err
	}
	w := &Worker{
		cfg:       cfg,
		log:       cfg.Logger,
		sockets:   s,
		watcher:   newWatcher(cfg.Idle),
		entered:   time.Now(),
		ready:     make(chan struct{}),
		triggered: make(chan trigger, 1),
		ended:     make(chan struct{}),
	}
	w.draining, w.drain = context.WithCancel(context.Background())
	w.killed, w.kill = context.WithCancel(context.Background())
	w.startSignals()
	go w.run()
	return w, nil
}

// Serve is the whole life of a server: it takes or opens its sockets, serves
// srv on them, says that it is ready, and drains when it is asked to end. It
// returns nil after an end at which nothing was cut.
//
// With srv.TLSConfig that has a certificate it serves TLS. Where the process
// was started with sockets and none of them is one of cfg.Listen (or
// srv.Addr), it serves on all of those.
func Serve(srv *http.Server, cfg Config) error {
	w, err := New(cfg)
	if err != nil {
		return err
	}
	if err := w.serveAll(srv); err != nil {
		w.Kill()
		w.Wait()
		return err
	}
	return w.Run().Err()
}

func (w *Worker) serveAll(srv *http.Server) error {
	addrs := w.cfg.Listen
	if len(addrs) == 0 && srv.Addr != "" {
		addrs = []string{srv.Addr}
	}
	lns, err := w.sockets.all(addrs)
	if err != nil {
		return err
	}
	for _, ln := range lns {
		if hasCertificate(srv) {
			w.HTTPS(ln, srv, "", "")
		} else {
			w.HTTP(ln, srv)
		}
	}
	return nil
}

func hasCertificate(srv *http.Server) bool {
	c := srv.TLSConfig
	return c != nil && (len(c.Certificates) > 0 || c.GetCertificate != nil || c.GetConfigForClient != nil)
}

// Listen returns a listener for addr, as Config.Listen has them: the inherited
// socket of that name or address, or one that it opens. The worker closes it
// when the drain begins.
func (w *Worker) Listen(addr string) (net.Listener, error) { return w.sockets.listen(addr) }

// ListenPacket is the same for datagram sockets: "dns=udp://:53". The caller
// closes it, at the time of its choice.
func (w *Worker) ListenPacket(addr string) (net.PacketConn, error) {
	return w.sockets.listenPacket(addr)
}

// Inherited names the sockets that the process was started with and that have
// not been taken yet.
func (w *Worker) Inherited() []string { return w.sockets.names() }

// HTTP serves srv on ln and returns at once. srv and its handler stay the
// caller's; the worker wraps Handler, ConnState, ConnContext and BaseContext,
// so srv must be complete and must not be serving yet. It may be served on
// several listeners. Nobody else should call srv.Shutdown: the worker does,
// when it can do no harm any more.
func (w *Worker) HTTP(ln net.Listener, srv *http.Server) {
	w.instrument(srv)
	l := w.watch(ln, stateNew)
	w.serve(func() error { return srv.Serve(l) })
}

// HTTPS is HTTP with TLS; the files may be empty as in http.Server.ServeTLS.
func (w *Worker) HTTPS(ln net.Listener, srv *http.Server, certFile, keyFile string) {
	w.instrument(srv)
	l := w.watch(ln, stateNew)
	w.serve(func() error { return srv.ServeTLS(l, certFile, keyFile) })
}

func (w *Worker) instrument(srv *http.Server) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, h := range w.servers {
		if h.Server == srv {
			return
		}
	}
	w.servers = append(w.servers, instrument(srv, w.watcher))
}

func (w *Worker) watch(ln net.Listener, first connState) *listener {
	l := newListener(ln, w.watcher, first)
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.closing {
		_ = l.Close()
		return l
	}
	w.listeners = append(w.listeners, l)
	return l
}

// serve runs an accept loop. If it ends by itself, everything does.
func (w *Worker) serve(loop func() error) {
	go func() {
		err := loop()
		if err == nil || errors.Is(err, http.ErrServerClosed) {
			return
		}
		if errors.Is(err, net.ErrClosed) && w.draining.Err() != nil {
			return
		}
		w.mu.Lock()
		w.failed = append(w.failed, err)
		w.mu.Unlock()
		w.Drain("a server failed: " + err.Error())
	}()
}

// Hold makes the drain wait for a piece of work that is no connection: a job
// from a queue, a file that is being written. release may be called more than
// once.
func (w *Worker) Hold(name string) (release func()) { return w.watcher.hold(name) }

// Counts says how many connections there are, and what they do.
func (w *Worker) Counts() Counts { return w.watcher.counts() }

// Ready says, once, that the worker serves: to the parent that started it for
// an upgrade, and to the service manager or master that set NOTIFY_SOCKET.
func (w *Worker) Ready() error {
	var err error
	w.readyOnce.Do(func() {
		err = w.sayReady()
		w.enter(StageServing)
		close(w.ready)
	})
	return err
}

// Run says that the worker is ready and waits for its end.
func (w *Worker) Run() Result {
	if err := w.Ready(); err != nil {
		w.log.Warn("cannot say that the worker is ready", "reason", err)
	}
	return w.Wait()
}

// Wait returns when all is over: connections ended or cut, hooks run.
func (w *Worker) Wait() Result {
	<-w.ended
	return w.result
}

// Draining returns a context that is done once the drain has been asked for.
func (w *Worker) Draining() context.Context { return w.draining }

// Drain begins the end. Calls after the first change nothing.
func (w *Worker) Drain(reason string) { w.begin(trigger{reason: reason}) }

// DrainOn begins the end when ctx is done.
func (w *Worker) DrainOn(ctx context.Context) {
	context.AfterFunc(ctx, func() { w.Drain(context.Cause(ctx).Error()) })
}

// begin returns whether t is what begins the end.
func (w *Worker) begin(t trigger) (first bool) {
	w.beginOnce.Do(func() {
		first = true
		w.drain()
		w.triggered <- t
	})
	return first
}

// Kill ends the worker at once: what is open is cut, hooks that have not begun
// do not run, those that run are told through their contexts.
func (w *Worker) Kill() {
	w.kill()
	w.Drain("kill")
}
