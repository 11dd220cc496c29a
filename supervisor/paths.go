package supervisor

// mendPaths puts unix paths back that a leaving worker has removed.
func (s *Supervisor) mendPaths() {
	for _, sock := range s.sockets {
		mended, err := sock.Mend()
		if err != nil {
			s.log.Error().Err(err).Msg("cannot mend a path")
		}
		if mended {
			s.log.Info().Str("socket", sock.Name()).Str("address", sock.Bound()).Msg("path put back: a leaving worker had removed it")
		}
	}
}
