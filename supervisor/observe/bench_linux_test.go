package observe

import (
	"testing"

	"golang.org/x/sys/unix"
)

const manyConnections = 10_000

func BenchmarkAccepting(b *testing.B) {
	for _, name := range []string{"epoll", "accept", "poll"} {
		b.Run(name, func(b *testing.B) {
			fd, _ := listenTCP(b)
			w := start(b, name, fd)
			pids, inodes := []int{w.pid}, []uint64{inodeOf(b, fd)}
			eventually(b, "the worker accepts", func() bool { return acceptsOn(w.pid, inodes[0]) == Yes })
			for b.Loop() {
				Accepting(pids, inodes)
			}
		})
	}
}

// BenchmarkAcceptingMany looks at one process with 500 sockets: all of them in
// one epoll instance, in one poll, or with a thread asleep in accept on each.
func BenchmarkAcceptingMany(b *testing.B) {
	for _, name := range []string{"epoll-many", "poll-many", "accept-many"} {
		b.Run(name, func(b *testing.B) {
			fds, inodes := listenMany(b, 500)
			w := startWith(b, name, fds)
			eventually(b, "the worker accepts on all", func() bool { return allAre(Yes, Accepting([]int{w.pid}, inodes)) })
			for b.Loop() {
				if !allAre(Yes, Accepting([]int{w.pid}, inodes)) {
					b.Fatal("not on all")
				}
			}
		})
	}
}

func BenchmarkTree(b *testing.B) {
	w := start(b, "idle", -1)
	for b.Loop() {
		if len(Tree(w.pid)) != 1 {
			b.Fatal("not one process")
		}
	}
}

func BenchmarkAcceptQueue(b *testing.B) {
	tcp, _ := listenTCP(b)
	path := listen(b, &unix.SockaddrUnix{Name: b.TempDir() + "/s"}, unix.SOCK_STREAM)
	for name, fd := range map[string]int{"tcp": tcp, "unix": path} {
		b.Run(name, func(b *testing.B) {
			for b.Loop() {
				queue(b, fd)
			}
		})
	}
}

// BenchmarkCount counts 10 000 connections of one worker: at the first look,
// which reads its descriptors, and at later ones.
func BenchmarkCount(b *testing.B) {
	fd, port := listenTCP(b)
	w := start(b, "epoll", fd)
	needDescriptors(b, manyConnections+100)
	for range manyConnections {
		dial(b, "tcp", onPort(port))
	}
	eventually(b, "all are accepted", func() bool { return queue(b, fd) == 0 })
	pids, ports := []int{w.pid}, []uint16{port}
	held, _ := Inodes(pids)
	b.Run("first", func(b *testing.B) {
		for b.Loop() {
			inodes, _ := Inodes(pids)
			count(b, inodes, ports, false)
		}
	})
	b.Run("later", func(b *testing.B) {
		for b.Loop() {
			count(b, held, ports, false)
		}
	})
	b.Run("later with times", func(b *testing.B) {
		for b.Loop() {
			count(b, held, ports, true)
		}
	})
}

func count(b *testing.B, inodes map[uint64]struct{}, ports []uint16, info bool) {
	n := 0
	for _, c := range connectionsOn(b, info, ports...) {
		if _, ok := inodes[c.Inode]; ok {
			n++
		}
	}
	if n != manyConnections {
		b.Fatalf("%d connections, want %d", n, manyConnections)
	}
}

func needDescriptors(b *testing.B, n uint64) {
	var limit unix.Rlimit
	check(b, unix.Getrlimit(unix.RLIMIT_NOFILE, &limit))
	if limit.Cur < n {
		b.Skipf("needs %d descriptors, may have %d", n, limit.Cur)
	}
}
