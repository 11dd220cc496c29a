//go:build !linux

package supervisor

// pathWatch: the paths are looked at when a worker is.
type pathWatch struct{}

func (s *sockets) watchPaths(bool) {}
func (p *pathWatch) close()        {}
