package cli

import (
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"

	"github.com/urfave/cli/v2"
)

const intro = `moult keeps a server's sockets while the processes behind them come and go.

    moult -l :8080 -- ./server         start ./server with the socket of port 8080
    kill -HUP $(pidof moult)           start it anew; when the new one is ready,
                                       the old one finishes and leaves
    moult demo                         see it happen, under load

Usage:
    moult [flags] [--] COMMAND [ARG...]
`

const outro = `
In COMMAND and --env, {fd:NAME}, {addr:NAME}, {host:NAME}, {port:NAME} and
{generation} are replaced; {fd} alone is the first socket; {{fd:NAME} stays.

Every flag has a variable as well: MOULT_LISTEN=web=:80,admin=:9000 for --listen,
MOULT_READY_TIMEOUT for --ready-timeout; the flag wins.

Signals:
    HUP          upgrade            TERM, INT    stop: drain, then exit; twice: at once
    QUIT         stop at once       TTIN, TTOU   one worker more, one fewer
    USR1, WINCH  passed on to the workers

Exit codes:
    0 stopped as asked · 1 cannot start or go on · 2 wrong usage · 126 the command
    cannot be executed · 127 it does not exist · else the worker's own status,
    128+n for signal n
`

// showHelp prints the help of a command, or of moult as such.
func showHelp(w io.Writer, app *cli.App, name string) error {
	if name == "" {
		fmt.Fprint(w, intro+"\nCommands:\n")
		for _, c := range app.Commands {
			if !c.Hidden {
				fmt.Fprintf(w, "    %-10s %s\n", c.Name, c.Usage)
			}
		}
		_, err := fmt.Fprint(w, "\n`moult help run` lists the flags.\n")
		return err
	}
	c := app.Command(name)
	if c == nil || c.Hidden {
		return usage("moult has no command %q; see moult help", name)
	}
	fmt.Fprintf(w, "moult %s: %s\n\nUsage:\n    moult %s %s\n", c.Name, c.Usage, c.Name, c.ArgsUsage)
	if c.Description != "" {
		fmt.Fprintf(w, "\n%s\n", c.Description)
	}
	showFlags(w, c.Flags)
	if c.Name == "run" {
		fmt.Fprint(w, outro)
	}
	return nil
}

func showFlags(w io.Writer, flags []cli.Flag) {
	category := ""
	for _, f := range flags {
		doc, ok := f.(cli.DocGenerationFlag)
		if !ok || f.Names()[0] == "help" {
			continue
		}
		if in, ok := f.(cli.CategorizableFlag); ok && in.GetCategory() != category {
			category = in.GetCategory()
			fmt.Fprintf(w, "\n%s:\n", category)
		}
		showFlag(w, f, doc)
	}
}

func showFlag(w io.Writer, f cli.Flag, doc cli.DocGenerationFlag) {
	value, text := splitUsage(doc.GetUsage())
	head := "    --" + f.Names()[0]
	if len(f.Names()) > 1 {
		head = "    -" + f.Names()[1] + ", --" + f.Names()[0]
	}
	fmt.Fprintln(w, strings.TrimRight(head+" "+value, " "))
	if deflt := defaultOf(f, doc); deflt != "" {
		text += " [" + deflt + "]"
	}
	for _, line := range wrap(text, helpWidth()-8) {
		fmt.Fprintln(w, "        "+line)
	}
}

// splitUsage takes the placeholder out of a usage text: "`D` between the two"
// is D and "between the two".
func splitUsage(usage string) (value, text string) {
	_, rest, ok := strings.Cut(usage, "`")
	if !ok {
		return "", usage
	}
	value, text, _ = strings.Cut(rest, "`")
	return value, strings.TrimLeft(text, ":, ")
}

func defaultOf(f cli.Flag, doc cli.DocGenerationFlag) string {
	text := strings.Trim(doc.GetDefaultText(), `"`)
	if _, isBool := f.(*cli.BoolFlag); isBool || text == "" {
		return ""
	}
	return shortened(text)
}

func helpWidth() int {
	const narrow, wide = 60, 100
	if n, err := strconv.Atoi(os.Getenv("COLUMNS")); err == nil {
		return min(max(n, narrow), wide)
	}
	return 80
}

func wrap(text string, width int) []string {
	var lines []string
	line := ""
	for _, word := range strings.Fields(text) {
		if line != "" && len([]rune(line))+1+len([]rune(word)) > width {
			lines, line = append(lines, line), ""
		}
		if line != "" {
			line += " "
		}
		line += word
	}
	return append(lines, line)
}
