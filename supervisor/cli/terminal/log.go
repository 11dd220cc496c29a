package terminal

import (
	"fmt"
	"io"
	"os"
	"time"

	"github.com/rs/zerolog"
)

// NewLogger writes to w: one JSON object a line, or text for a person. Level
// and format are as the flags of run have them.
func NewLogger(w io.Writer, level, format, name string) (zerolog.Logger, error) {
	lv, err := zerolog.ParseLevel(level)
	if err != nil || level == "" {
		return zerolog.Nop(), fmt.Errorf("cannot use --log-level %q: choose debug, info, warn or error", level)
	}
	zerolog.TimeFieldFormat = "2006-01-02T15:04:05.000Z07:00"
	seen := IsTerminal(w)
	switch {
	case format == "text" || format == "auto" && seen:
		w = zerolog.ConsoleWriter{Out: w, NoColor: !seen || os.Getenv("NO_COLOR") != "", TimeFormat: time.TimeOnly,
			FieldsExclude: []string{"name"}}
	case format != "json" && format != "auto":
		return zerolog.Nop(), fmt.Errorf("cannot use --log-format %q: choose auto, json or text", format)
	}
	return zerolog.New(w).Level(lv).With().Timestamp().Str("name", name).Logger(), nil
}
