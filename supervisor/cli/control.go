package cli

import (
	"errors"
	"net"

	"github.com/urfave/cli/v2"

	"github.com/moult/moult/supervisor"
	"github.com/moult/moult/supervisor/control"
)

// controls is what a master can be seen and steered by: the control socket,
// and the admin address where one was asked for.
type controls struct {
	socket  *control.Listener // nil: none
	admin   net.Listener      // nil: none
	metrics *control.Metrics
	servers []*control.Server
}

// openControls opens both before the master starts anything, so that what is
// wrong with them ends `run` at once, and has the metrics hear of the master's
// transitions. Close it in the end, whatever happened.
func openControls(c *cli.Context, cfg *supervisor.Config) (*controls, error) {
	s := &controls{metrics: control.NewMetrics()}
	if err := s.listen(c, cfg); err != nil {
		return nil, err
	}
	if address := c.String("admin"); address != "" {
		var err error
		if s.admin, err = control.ListenAdmin(address, c.Bool("admin-public")); err != nil {
			s.close()
			var wrong *control.BadAddress
			if errors.As(err, &wrong) {
				err = usage("%w", err)
			}
			return nil, err
		}
	}
	s.hear(cfg)
	return s, nil
}

// listen opens the control socket. A default place that cannot be used is no
// reason not to serve.
func (s *controls) listen(c *cli.Context, cfg *supervisor.Config) (err error) {
	switch path := c.String("control"); path {
	case "off":
	case "":
		s.socket, err = control.ListenDefault(cfg.Name, c.String("name") != "")
		var used *control.InUse
		if err != nil && !errors.As(err, &used) {
			cfg.Log.Warn().Str("reason", err.Error()).Msg("no control socket: moult status, upgrade and the like cannot reach this master; --control names another place, or is off")
			return nil
		}
	default:
		s.socket, err = control.Listen(path)
	}
	return err
}

// path is that of the control socket, for MOULT_CONTROL; empty if there is
// none.
func (s *controls) path() string {
	if s.socket == nil {
		return ""
	}
	return s.socket.Path()
}

// hear adds the metrics to those who hear of transitions.
func (s *controls) hear(cfg *supervisor.Config) {
	if s.socket == nil && s.admin == nil {
		return
	}
	also := cfg.OnTransition
	cfg.OnTransition = func(t supervisor.Transition) {
		s.metrics.Observe(control.Change{Generation: t.Generation, PID: t.PID, From: t.From, To: t.To, Took: t.Took, Trouble: t.Trouble})
		if also != nil {
			also(t)
		}
	}
}

// serve answers from now on.
func (s *controls) serve(m control.Master) {
	if s.socket != nil {
		s.servers = append(s.servers, control.Serve(s.socket, m, s.metrics))
	}
	if s.admin != nil {
		s.servers = append(s.servers, control.ServeAdmin(s.admin, m, s.metrics))
	}
}

// close ends all of it, with the last words that clients wait for.
func (s *controls) close() {
	for _, server := range s.servers {
		server.Close()
	}
	if s.servers != nil {
		return
	}
	if s.socket != nil {
		s.socket.Close()
	}
	if s.admin != nil {
		s.admin.Close()
	}
}
