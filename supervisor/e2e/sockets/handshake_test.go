//go:build linux

package sockets

import (
	"net"
	"os"
	"testing"
	"time"

	"github.com/moult/moult/supervisor/e2e/testkit"
)

// Handshakes under way at the switch: clients that are 80 ms away. On loopback
// a handshake is over before anything else can happen, so client and server
// get a network namespace each, and every packet between them is carried by
// this process, late.

func TestHandshakesUnderWayAtTheSwitch(t *testing.T) {
	testkit.RequireRoot(t, "make a network namespace")
	for name, args := range map[string][]string{
		"declared":    append([]string{"run", "-l", serverAddress, "--"}, testkit.Worker("plain")...),
		"intercepted": append([]string{"run", "--"}, testkit.Worker("binds", "tcp="+serverAddress)...),
	} {
		t.Run(name, func(t *testing.T) {
			serverSide, clientSide := testkit.FarApart(t, 40*time.Millisecond)
			var m *testkit.Master
			serverSide.Enter(t, func() { m = testkit.Launch{}.Start(t, args...) })
			m.WaitServing(1)
			clients := testkit.StartFarClients(t, clientSide, serverAddress, 24)
			clients.Flow()
			for range testkit.Times(8, 3, 100) {
				m.Upgrade()
				clients.Flow()
			}
			m.Retire()
			clients.Lossless()
		})
	}
}

const serverAddress = testkit.ServerHost + ":8080"

// A client that never finishes its handshake holds an upgrade up for a few
// seconds at most.
func TestHandshakeThatNeverEnds(t *testing.T) {
	testkit.RequireRoot(t, "make a network namespace")
	t.Parallel()
	side := testkit.NewNamespace(t, testkit.ServerHost, testkit.ClientHost)
	var m *testkit.Master
	side.Enter(t, func() { m = testkit.Run(t, []string{"-l", serverAddress}, testkit.Worker("graceful")) })
	m.WaitServing(1)
	answered := make(chan struct{}, 1)
	go readSynAcks(side.Wire, answered)
	_, err := side.Wire.Write(syn(40000, 8080))
	testkit.OK(t, err)
	select {
	case <-answered:
	case <-time.After(20 * time.Second):
		t.Fatal("the SYN was not answered")
	}
	began := time.Now()
	m.Upgrade()
	m.Retire()
	if took := time.Since(began); took > 8*time.Second {
		t.Errorf("the old generation left after %v only", took)
	}
}

// readSynAcks reads packets until the wire is closed, and tells of the first
// SYN+ACK.
func readSynAcks(wire *os.File, answered chan<- struct{}) {
	buffer := make([]byte, 65536)
	for {
		n, err := wire.Read(buffer)
		if err != nil {
			return
		}
		const tcp, flags, synAck = 6, 20 + 13, 0x12
		if n > flags && buffer[0] == 0x45 && buffer[9] == tcp && buffer[flags]&0x3f == synAck {
			select {
			case answered <- struct{}{}:
			default:
			}
		}
	}
}

// syn is an IPv4 packet with the first segment of a handshake, from the
// client's host to the server's.
func syn(from, to uint16) []byte {
	source, destination := [4]byte(net.ParseIP(testkit.ClientHost).To4()), [4]byte(net.ParseIP(testkit.ServerHost).To4())
	ip := append([]byte{0x45, 0, 0, 40, 0, 1, 0, 0, 64, 6, 0, 0}, append(source[:], destination[:]...)...)
	put16(ip[10:], checksum(ip))
	tcp := []byte{0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 5 << 4, 2, 0xff, 0xff, 0, 0, 0, 0}
	put16(tcp, from)
	put16(tcp[2:], to)
	pseudo := append(append(source[:], destination[:]...), 0, 6, 0, 20)
	put16(tcp[16:], checksum(append(pseudo, tcp...)))
	return append(ip, tcp...)
}

func put16(b []byte, v uint16) { b[0], b[1] = byte(v>>8), byte(v) }

// checksum is the internet checksum of RFC 1071, of an even number of bytes.
func checksum(b []byte) uint16 {
	var sum uint32
	for i := 0; i+1 < len(b); i += 2 {
		sum += uint32(b[i])<<8 | uint32(b[i+1])
	}
	for sum>>16 != 0 {
		sum = sum&0xffff + sum>>16
	}
	return ^uint16(sum)
}
