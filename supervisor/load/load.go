// Package load stands where the load generator was, for imports that have not
// moved yet to supervisor/cli/demo/load.
package load

import "github.com/moult/moult/supervisor/cli/demo/load"

type (
	Config  = load.Config
	Mode    = load.Mode
	Report  = load.Report
	Traffic = load.Traffic
)

const (
	PerRequest, KeepAlive = load.PerRequest, load.KeepAlive
	AtRest, Upgrading     = load.AtRest, load.Upgrading
	GenerationHeader      = load.GenerationHeader

	Refused, Reset, Short, Wrong, TimedOut, Other = load.Refused, load.Reset, load.Short, load.Wrong, load.TimedOut, load.Other
)

var Start = load.Start
