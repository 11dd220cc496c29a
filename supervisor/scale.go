package supervisor

// fitToSize adds or takes away the workers that were asked for while the
// generation started.
func (s *Supervisor) fitToSize(g *generation) {
	for s.serving == g && len(g.slots) < s.wanted && s.addWorker(g) {
	}
	for range len(g.slots) - s.wanted {
		s.removeWorker(g)
	}
}

// scale adds a worker to each generation or takes one away.
func (s *Supervisor) scale(by int) {
	if s.phase >= phaseStopping {
		return
	}
	if s.wanted+by < 1 {
		s.log.Warn().Int("workers", s.wanted).Msg("cannot have fewer workers than one; SIGTERM stops")
		return
	}
	s.wanted += by
	s.log.Info().Int("workers", s.wanted).Msg("scaled")
	switch g := s.serving; {
	case g == nil: // the first generation is made to fit when it serves
	case by > 0:
		s.addWorker(g)
	default:
		s.removeWorker(g)
	}
}

func (s *Supervisor) addWorker(g *generation) bool {
	sl := &slot{gen: g, backoff: backoff{min: s.cfg.RestartMin, max: s.cfg.RestartMax}}
	err := s.refuseForeign()
	if err == nil {
		err = s.join(sl)
	}
	if err != nil {
		s.log.Error().Err(err).Msg("cannot add a worker")
		s.release(sl)
		s.wanted--
		return false
	}
	g.slots = append(g.slots, sl)
	s.startWorker(sl)
	return true
}

// removeWorker lets the last worker drain: first it gets nothing new.
func (s *Supervisor) removeWorker(g *generation) {
	for i := len(g.slots) - 1; i > 0; i-- {
		if sl := g.slots[i]; !sl.leaving {
			sl.leaving = true
			s.watchPaths()
			s.resteer()
			s.retireSlot(sl)
			return
		}
	}
}
