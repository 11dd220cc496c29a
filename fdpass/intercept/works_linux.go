package intercept

import (
	"errors"
	"fmt"
	"os"
	"runtime"
	"sync"

	"golang.org/x/sys/unix"
)

// Works tries the whole mechanism, once per process, on a thread of its own
// that ends afterwards: a filter is installed, stops a bind of 127.0.0.1 with
// port 0, the address is read from memory, another socket is put in place, the
// call is answered. The error is an *Unsupported wherever the kernel told why;
// an earlier process that carries the filter of another is among the reasons.
func Works() error { return works() }

var works = sync.OnceValue(try)

func try() error {
	type installed struct {
		fd  int
		err error
	}
	filter, bound := make(chan installed), make(chan error, 1)
	go onThrowAwayThread(func() {
		fd, _, err := Install(Traps{})
		filter <- installed{fd, err}
		if err == nil {
			bound <- bindLoopback()
		}
	})
	is := <-filter
	if is.err != nil {
		return is.err
	}
	answered := answerOnce(is.fd)
	if err := <-bound; answered == nil && err != nil {
		answered = fmt.Errorf("an intercepted bind failed: %w", err)
	}
	if answered != nil {
		return &Unsupported{Reason: "interception does not work here", Err: answered}
	}
	return nil
}

// Duplicates tells whether pidfd_getfd(2) is allowed here at all, which a
// container's seccomp profile decides. A program that hides from us, or is not
// of our user, may still refuse.
func Duplicates() bool { return duplicates() }

var duplicates = sync.OnceValue(func() bool {
	self, err := unix.PidfdOpen(os.Getpid(), 0)
	if err != nil {
		return false
	}
	defer unix.Close(self)
	fd, err := unix.PidfdGetfd(self, self, 0)
	if err == nil {
		unix.Close(fd)
	}
	return err == nil
})

// onThrowAwayThread runs f on a thread that ends with it, and its filter too.
// The runtime makes no other thread out of a locked one. The first thread
// cannot end before the process does: where the scheduler has chosen it, it is
// kept busy until f has found another.
func onThrowAwayThread(f func()) {
	runtime.LockOSThread() // and never unlocked
	if unix.Gettid() != os.Getpid() {
		f()
		return
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		runtime.LockOSThread()
		f()
	}()
	<-done
	runtime.UnlockOSThread()
}

// bindLoopback checks that its socket is bound afterwards: that is what
// answerOnce puts in place.
func bindLoopback() error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return os.NewSyscallError("socket", err)
	}
	defer unix.Close(fd)
	if err := unix.Bind(fd, loopback()); err != nil {
		return os.NewSyscallError("bind", err)
	}
	bound, err := unix.Getsockname(fd)
	if err != nil {
		return os.NewSyscallError("getsockname", err)
	}
	if inet, ok := bound.(*unix.SockaddrInet4); !ok || inet.Port == 0 || inet.Addr != loopback().Addr {
		return errors.New("the socket has no address")
	}
	return nil
}

// loopback is a new one each time: unix.Bind writes to it.
func loopback() *unix.SockaddrInet4 {
	return &unix.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}}
}

// answerOnce closes fd, so that nobody waits for an answer if it has none.
func answerOnce(fd int) error {
	l, err := listenOn(fd)
	if err != nil {
		return err
	}
	defer l.Close()
	c, err := l.Next()
	if err != nil {
		return err
	}
	if c.Err != nil {
		return c.Err
	}
	own, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return os.NewSyscallError("socket", err)
	}
	defer unix.Close(own)
	if err := unix.Bind(own, loopback()); err != nil {
		return os.NewSyscallError("bind", err)
	}
	if err := c.Replace(own, true); err != nil {
		return fmt.Errorf("cannot put a socket in place: %w", err)
	}
	return c.Answer(0)
}
