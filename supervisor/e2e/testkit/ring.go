//go:build linux

package testkit

import (
	"fmt"
	"sync/atomic"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// As little of io_uring as it takes to do one operation after the other; the
// layout is that of linux/io_uring.h.

// Operations of Linux 6.11 and later.
const (
	ringBind   = 56
	ringListen = 57
)

// ringEntry is struct io_uring_sqe, as far as it is used here.
type ringEntry struct {
	opcode  uint8
	_       [3]byte
	fd      int32
	offset  uint64
	address uint64
	length  uint32
	_       [36]byte
}

// ringResult is struct io_uring_cqe.
type ringResult struct {
	_      uint64
	result int32
	_      uint32
}

type ringOffsets struct {
	head, tail, mask, entries, flags, dropped, array, _ uint32
	_                                                   uint64
}

// ringParams is struct io_uring_params; the completion queue has the same
// shape but for its entries, which stand where array does not.
type ringParams struct {
	submissions, completions, flags, _, _, features, _ uint32
	_                                                  [3]uint32
	submission                                         ringOffsets
	completion                                         struct {
		head, tail, mask, entries, overflow, results, flags, _ uint32
		_                                                      uint64
	}
}

type ring struct {
	fd               int
	params           ringParams
	submitted, queue []byte
	entries          []byte
}

func newRing() (*ring, error) {
	r := new(ring)
	fd, _, errno := unix.Syscall(unix.SYS_IO_URING_SETUP, 1, uintptr(unsafe.Pointer(&r.params)), 0)
	if errno != 0 {
		return nil, fmt.Errorf("io_uring_setup: %w", errno)
	}
	r.fd = int(fd)
	const submissions, completions, entries = 0, 0x8000000, 0x10000000
	var err error
	for _, area := range []struct {
		to     *[]byte
		offset int64
		length uint32
	}{
		{&r.submitted, submissions, r.params.submission.array + 4*r.params.submissions},
		{&r.queue, completions, r.params.completion.results + uint32(unsafe.Sizeof(ringResult{}))*r.params.completions},
		{&r.entries, entries, uint32(unsafe.Sizeof(ringEntry{})) * r.params.submissions},
	} {
		*area.to, err = unix.Mmap(r.fd, area.offset, int(area.length), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED|unix.MAP_POPULATE)
		if err != nil {
			r.close()
			return nil, fmt.Errorf("mmap: %w", err)
		}
	}
	return r, nil
}

func (r *ring) close() {
	for _, area := range [][]byte{r.submitted, r.queue, r.entries} {
		if area != nil {
			unix.Munmap(area)
		}
	}
	unix.Close(r.fd)
}

// do submits one entry and waits for its result.
func (r *ring) do(entry ringEntry) error {
	const getEvents = 1
	*(*ringEntry)(unsafe.Pointer(&r.entries[0])) = entry
	atomic.StoreUint32(number(r.submitted, r.params.submission.array), 0)
	atomic.AddUint32(number(r.submitted, r.params.submission.tail), 1)
	if _, _, errno := unix.Syscall6(unix.SYS_IO_URING_ENTER, uintptr(r.fd), 1, 1, getEvents, 0, 0); errno != 0 {
		return fmt.Errorf("io_uring_enter: %w", errno)
	}
	head := number(r.queue, r.params.completion.head)
	at := atomic.LoadUint32(head) & (r.params.completions - 1)
	result := (*ringResult)(unsafe.Pointer(&r.queue[r.params.completion.results+at*uint32(unsafe.Sizeof(ringResult{}))]))
	failed := result.result
	atomic.AddUint32(head, 1)
	if failed < 0 {
		return syscall.Errno(-failed)
	}
	return nil
}

func number(area []byte, offset uint32) *uint32 { return (*uint32)(unsafe.Pointer(&area[offset])) }

// TryRing tells whether a socket can be bound by io_uring here.
func TryRing(address string) error {
	fd, err := ringSocket(address)
	if err == nil {
		unix.Close(fd)
	}
	return err
}
