package fdpass

import (
	"errors"
	"io"
	"math"
	"os"
	"strconv"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// kernelSigaction is struct sigaction as rt_sigaction(2) takes it.
type kernelSigaction struct {
	handler  uintptr
	flags    uintptr
	restorer uintptr
	mask     uint64
}

// resetSignals gives the worker the state that programs expect: nothing
// blocked, nothing ignored. Handlers need no help, execve resets them; what is
// ignored stays ignored across execve, and a shell's background job begins
// with SIGINT ignored. Under nohup SIGHUP is ignored on purpose.
func resetSignals(keepHUP bool) {
	const sigIgn, signals, setSize = 1, 64, 8
	for sig := uintptr(1); sig <= signals; sig++ {
		if keepHUP && sig == uintptr(unix.SIGHUP) {
			continue
		}
		var now, deflt kernelSigaction
		_, _, e := unix.RawSyscall6(unix.SYS_RT_SIGACTION, sig, 0, uintptr(unsafe.Pointer(&now)), setSize, 0, 0)
		if e == 0 && now.handler == sigIgn {
			unix.RawSyscall6(unix.SYS_RT_SIGACTION, sig, uintptr(unsafe.Pointer(&deflt)), 0, setSize, 0, 0)
		}
	}
	var none unix.Sigset_t
	_ = unix.PthreadSigmask(unix.SIG_SETMASK, &none, nil)
}

// closeFrom marks the descriptors from first on close-on-exec: the status pipe,
// and what the master's starter left open in it, which no worker was meant to
// get.
func closeFrom(first int) {
	err := unix.CloseRange(uint(first), math.MaxUint32, unix.CLOSE_RANGE_CLOEXEC)
	if err == nil {
		return
	}
	unix.CloseOnExec(first) // before Linux 5.11
	entries, _ := os.ReadDir("/proc/self/fd")
	for _, e := range entries {
		if fd, err := strconv.Atoi(e.Name()); err == nil && fd > first {
			unix.CloseOnExec(fd)
		}
	}
}

func makeDumpable() { _ = unix.Prctl(unix.PR_SET_DUMPABLE, 1, 0, 0, 0) }

// openStatusPair makes what is a pipe without interception a socket, which
// carries descriptors too. r is non-blocking, for the runtime's poller.
func openStatusPair() (r, w *os.File, err error) {
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, nil, os.NewSyscallError("socketpair", err)
	}
	w = os.NewFile(uintptr(pair[1]), "status")
	if err := unix.SetNonblock(pair[0], true); err != nil {
		closeDescriptor(pair[0])
		w.Close()
		return nil, nil, os.NewSyscallError("fcntl", err)
	}
	return os.NewFile(uintptr(pair[0]), "status"), w, nil
}

// sendDescriptor goes along with a byte, as it has to, that means nothing to
// the JSON that may follow.
func sendDescriptor(socket, fd int) error {
	for {
		err := unix.Sendmsg(socket, []byte("\n"), unix.UnixRights(fd), nil, unix.MSG_NOSIGNAL)
		if err != unix.EINTR {
			return err
		}
	}
}

// statusReader reads the text of a status socket and keeps the descriptor that
// comes with it.
type statusReader struct {
	file       *os.File
	descriptor *os.File      // the reader's owner closes it; nil if none came
	lost       syscall.Errno // why one that was sent did not arrive
}

func (r *statusReader) Read(p []byte) (int, error) {
	raw, err := r.file.SyscallConn()
	if err != nil {
		return 0, err
	}
	oob := make([]byte, unix.CmsgSpace(4))
	var n, rights, flags int
	var failed error
	err = raw.Read(func(fd uintptr) bool {
		failed = unix.EINTR
		for failed == unix.EINTR {
			n, rights, flags, _, failed = unix.Recvmsg(int(fd), p, oob, unix.MSG_CMSG_CLOEXEC)
		}
		return failed != unix.EAGAIN
	})
	if err = errors.Join(err, failed); err != nil {
		return 0, err
	}
	if n == 0 {
		return 0, io.EOF
	}
	return n, r.take(oob[:rights], flags)
}

// take is told by MSG_CTRUNC of a descriptor that there was no room for.
func (r *statusReader) take(oob []byte, flags int) error {
	if flags&unix.MSG_CTRUNC != 0 {
		r.lost = unix.EMFILE
	}
	messages, err := unix.ParseSocketControlMessage(oob)
	if err != nil || len(messages) == 0 {
		return err
	}
	fds, err := unix.ParseUnixRights(&messages[0])
	if err == nil && len(fds) == 1 {
		r.descriptor = os.NewFile(uintptr(fds[0]), "seccomp notify")
	}
	return err
}
