//go:build !linux

package supervisor

// pathWatch: the paths are looked at when a worker is.
type pathWatch struct{}

func (s *Supervisor) watchPaths() {}
func (p *pathWatch) close()       {}
