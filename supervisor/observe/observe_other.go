//go:build !linux

package observe

import (
	"errors"
	"syscall"
)

func readProc(int) (Proc, error)                 { return Proc{}, errors.ErrUnsupported }
func processes() ([]Proc, error)                 { return nil, errors.ErrUnsupported }
func childrenOf(int) (list []int, ok bool)       { return nil, false }
func handles(int, syscall.Signal) Verdict        { return Unknown }
func memory(int) (rss, pss uint64, err error)    { return 0, 0, errors.ErrUnsupported }
func holders(uint64) []int                       { return nil }
func acceptQueue(int) (int, error)               { return 0, errors.ErrUnsupported }
func connections([]uint16, bool) ([]Conn, error) { return nil, errors.ErrUnsupported }
func handshakes([]uint16) ([]Peer, error)        { return nil, errors.ErrUnsupported }
func listeners(uint16) ([]Listener, error)       { return nil, errors.ErrUnsupported }
func listenersAmong(map[uint64]struct{}) ([]Listener, error) {
	return nil, errors.ErrUnsupported
}
func firstDatagram(int) int                      { return 0 }
func unixConnections(string) (int, error)        { return 0, errors.ErrUnsupported }
func inodesOf([]int) (map[uint64]struct{}, bool) { return nil, false }

func accepts(_ int, open map[uint64]Verdict) {
	for inode := range open {
		open[inode] = Unknown
	}
}
