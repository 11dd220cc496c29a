package worker

import (
	"bufio"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/cloudflare/tableflip"
	"github.com/moult/moult/fdpass"
	"golang.org/x/sys/unix"
)

// tableflipVariable is how tableflip's child knows that it is one.
const tableflipVariable = "TABLEFLIP_HAS_PARENT_7DIU3"

// pidFile is the name under which the child finds a pipe for its pid. The
// parent needs it, for systemd takes MAINPID= only from the process that is the
// main one so far (NotifyAccess=main), and tableflip does not tell.
const pidFile = "pid"

// newUpgrader calls tableflip, which allows it once in a process.
func newUpgrader(cfg Config) (*tableflip.Upgrader, error) {
	if os.Getenv(tableflipVariable) != "" {
		// tableflip leaves its two pipes and its variable to our children.
		syscall.CloseOnExec(3)
		syscall.CloseOnExec(4)
		defer os.Unsetenv(tableflipVariable)
	}
	upgrader, err := tableflip.New(tableflip.Options{UpgradeTimeout: cfg.UpgradeTimeout})
	if err != nil {
		return nil, fmt.Errorf("cannot prepare for upgrades: %w; set NoUpgrade if there is more than one worker in the process", err)
	}
	return upgrader, nil
}

// mayUpgrade tells why this process does not upgrade itself.
func (s *sockets) mayUpgrade(cfg Config) error {
	switch {
	case cfg.NoUpgrade:
		return errors.New("upgrades are switched off")
	case s.underMoult:
		return errors.New("moult upgrades this worker: send SIGHUP to moult, or run moult upgrade")
	case os.Getpid() == 1:
		return errors.New("this is process 1, and when it ends everything in the container does: run the server under moult")
	}
	return nil
}

// upgradable tells whether this process may have a child of its kind.
func (s *sockets) upgradable() bool { return s.mayUpgrade(Config{}) == nil }

// holdOn gives tableflip a duplicate of a socket that came from outside, if a
// process of our own may come after us.
func (s *sockets) holdOn(i fdpass.Inherited) error {
	if s.upgrader == nil || !s.upgradable() {
		return nil
	}
	fd, err := dupCloexec(i.FD)
	if err != nil {
		return fmt.Errorf("cannot keep the socket %q for an upgrade: %w", i.Name, err)
	}
	f := os.NewFile(uintptr(fd), i.Name)
	defer f.Close()
	return s.upgrader.AddFile(heldPrefix+i.Name, f)
}

func dupCloexec(fd int) (int, error) { return unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 0) }

// duplicate takes the descriptor out of a File, which would close it.
func duplicate(f *os.File) (fd int, err error) {
	raw, err := f.SyscallConn()
	if err != nil {
		return -1, err
	}
	ctlErr := raw.Control(func(d uintptr) { fd, err = dupCloexec(int(d)) })
	return fd, errors.Join(ctlErr, err)
}

// Upgrade starts the program anew, waits until the new process is ready, hands
// over to it and begins the drain of this one; SIGHUP does the same. With an
// error nothing has changed. An upgrade waits for the end of the one before:
// until then the previous process may still be draining.
func (w *Worker) Upgrade() error {
	if err := w.sockets.mayUpgrade(w.cfg); err != nil {
		return fmt.Errorf("cannot upgrade: %w", err)
	}
	w.upgrading.Lock()
	defer w.upgrading.Unlock()
	if err := w.upgrade(); err != nil {
		return fmt.Errorf("cannot upgrade: %w", err)
	}
	return nil
}

// upgradeOrPassOn hands a SIGHUP that came too late for this process to the
// one that it was meant for.
func (w *Worker) upgradeOrPassOn() error {
	w.upgrading.Lock()
	successor := w.successor
	w.upgrading.Unlock()
	if successor != nil {
		return successor.Signal(syscall.SIGHUP)
	}
	return w.Upgrade()
}

// upgrade needs the lock.
func (w *Worker) upgrade() error {
	started := time.Now()
	if err := w.waitUntilReady(); err != nil {
		return err
	}
	w.notifyReloading()
	pid, err := w.startSuccessor()
	if err != nil {
		w.notify("READY=1\nSTATUS=upgrade failed: " + strings.ReplaceAll(err.Error(), "\n", " "))
		return err
	}
	w.log.Info("upgraded", "to", pid, "took", time.Since(started))
	w.notify(handedOver(pid))
	if pid != 0 {
		w.successor, _ = os.FindProcess(pid)
	}
	if !w.begin(trigger{reason: "upgrade", upgraded: true}) && w.successor != nil {
		// We were asked to stop meanwhile, and so the new process is.
		_ = w.successor.Signal(syscall.SIGTERM)
	}
	return nil
}

func handedOver(pid int) string {
	if pid == 0 {
		return "READY=1"
	}
	return "MAINPID=" + strconv.Itoa(pid) + "\nREADY=1"
}

// waitUntilReady waits for our own readiness and for the end of the previous
// process.
func (w *Worker) waitUntilReady() error {
	select {
	case <-w.ready:
	case <-w.draining.Done():
	}
	err := w.sockets.upgrader.WaitForParent(w.draining)
	if w.draining.Err() != nil {
		return errors.New("the drain has begun")
	}
	return err
}

// startSuccessor returns the pid of the new process, once it is ready.
func (w *Worker) startSuccessor() (pid int, err error) {
	r, child, err := os.Pipe()
	if err != nil {
		return 0, err
	}
	defer r.Close()
	err = w.sockets.upgrader.AddFile(pidFile, child)
	_ = child.Close()
	if err != nil {
		return 0, err
	}
	if err := w.sockets.flip(); err != nil {
		return 0, err
	}
	// It has written before it said that it was ready; another program, which
	// knows nothing of the pipe, has not.
	if err := r.SetReadDeadline(time.Now().Add(time.Second)); err != nil {
		return 0, nil
	}
	line, err := bufio.NewReader(r).ReadString('\n')
	if err != nil {
		w.log.Warn("the new process did not tell its pid", "reason", err)
		return 0, nil
	}
	return strconv.Atoi(strings.TrimSpace(line))
}

// parentLate is what tableflip answers for an instant after WaitForParent has
// returned, until its own goroutine has heard the news as well.
const parentLate = "parent hasn't exited"

// flip needs WaitForParent to have returned.
func (s *sockets) flip() error {
	late := time.After(time.Second)
	for {
		err := s.upgrader.Upgrade()
		if err == nil || err.Error() != parentLate {
			return err
		}
		select {
		case <-late:
			return err
		case <-time.After(time.Millisecond):
		}
	}
}

// sayReady tells everybody who listens.
func (w *Worker) sayReady() error {
	var errs []error
	if state := w.sockets.readyState(); state != "" {
		_, err := fdpass.Notify(state)
		errs = append(errs, err)
	}
	if w.sockets.upgrader != nil {
		errs = append(errs, w.sockets.tellPid(), w.sockets.upgrader.Ready())
	}
	return errors.Join(errs...)
}

// readyState is what the service manager is told by the process that became
// ready. After an upgrade the parent speaks for us, being the one that is
// believed, unless it is another program: then we claim to be the main process
// ourselves, which takes NotifyAccess=all.
func (s *sockets) readyState() string {
	switch {
	case s.pidPipe != nil:
		return ""
	case s.upgrader != nil && s.upgrader.HasParent() && !s.underMoult:
		return handedOver(os.Getpid())
	}
	return "READY=1"
}

// tellPid answers the parent's pipe.
func (s *sockets) tellPid() error {
	if s.pidPipe == nil {
		return nil
	}
	_, err := fmt.Fprintln(s.pidPipe, os.Getpid())
	return errors.Join(err, s.pidPipe.Close())
}
