package cli

import (
	"embed"
	"fmt"
	"io"
	"os"
	"slices"
	"strconv"
	"strings"

	"github.com/urfave/cli/v2"

	"github.com/moult/moult/supervisor/cli/terminal"
)

// topics are files of text, no line of it wider than 80 columns. The first line
// of each is its title; the name of the file is what moult help is asked for.
//
//go:embed topics/*.txt
var topics embed.FS

func topicNames() (names []string) {
	files, _ := topics.ReadDir("topics")
	for _, file := range files {
		names = append(names, strings.TrimSuffix(file.Name(), ".txt"))
	}
	return names
}

// topic returns nothing where there is none of that name.
func topic(name string) (title, body string) {
	text, _ := topics.ReadFile("topics/" + name + ".txt")
	title, body, _ = strings.Cut(string(text), "\n\n")
	return title, strings.TrimRight(body, "\n")
}

const intro = `moult keeps a server's sockets while the processes behind them come and go.

    moult -- ./server                  start ./server and keep the sockets that it
                                       opens itself; nothing of it has to change
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

// showHelp prints the help of a command, of a topic, or of moult as such.
func showHelp(w io.Writer, app *cli.App, name string) error {
	c := app.Command(name)
	title, body := topic(name)
	switch {
	case name == "":
		return showOverview(w, app)
	case title != "":
		_, err := fmt.Fprintf(w, "%s\n\n%s\n", title, body)
		return err
	case c == nil || c.Hidden:
		return usage("moult has no command or topic %q; see moult help", name)
	}
	fmt.Fprintf(w, "moult %s: %s\n\nUsage:\n    moult %s %s\n", c.Name, c.Usage, c.Name, c.ArgsUsage)
	if c.Description != "" {
		fmt.Fprintf(w, "\n%s\n", c.Description)
	}
	showFlags(w, c)
	if c.Name == "run" {
		fmt.Fprint(w, outro)
	}
	return nil
}

func showOverview(w io.Writer, app *cli.App) error {
	fmt.Fprint(w, intro+"\nCommands:\n")
	for _, c := range app.VisibleCommands() {
		fmt.Fprintf(w, "    %-10s %s\n", c.Name, c.Usage)
	}
	fmt.Fprint(w, "\nTopics:\n")
	for _, name := range topicNames() {
		title, _ := topic(name)
		fmt.Fprintf(w, "    %-10s %s\n", name, title)
	}
	_, err := fmt.Fprint(w, "\n`moult help run` lists the flags, `moult help intercept` explains a topic.\n")
	return err
}

func showFlags(w io.Writer, c *cli.Command) {
	category := ""
	for _, f := range flagTexts(c) {
		if f.name == "help" {
			continue
		}
		if f.category != category {
			category = f.category
			fmt.Fprintf(w, "\n%s:\n", category)
		}
		const indent = "        "
		fmt.Fprintln(w, "    "+f.head())
		for _, line := range terminal.Wrap(f.text(), helpWidth()-len(indent)) {
			fmt.Fprintln(w, indent+line)
		}
	}
}

// flagText is what help, man page and completion have to say of a flag.
type flagText struct {
	name     string
	spelled  []string // on the command line: --listen, -l
	category string
	holder   string // what stands for the value
	value    bool   // it takes one
	usage    string
	deflt    string
}

func flagTexts(c *cli.Command) (all []flagText) {
	for _, f := range c.Flags {
		doc := f.(cli.DocGenerationFlag)
		t := flagText{name: f.Names()[0], category: f.(cli.CategorizableFlag).GetCategory(), value: doc.TakesValue()}
		for _, name := range f.Names() {
			dashes := "--"
			if len(name) == 1 {
				dashes = "-"
			}
			t.spelled = append(t.spelled, dashes+name)
		}
		if t.value {
			t.deflt = shortened(strings.Trim(doc.GetDefaultText(), `"`))
		}
		t.holder, t.usage = splitUsage(doc.GetUsage())
		all = append(all, t)
	}
	return all
}

// head is the flag as it is written: -l, --listen ADDR.
func (f flagText) head() string {
	short := slices.Clone(f.spelled)
	slices.Reverse(short)
	return strings.TrimRight(strings.Join(short, ", ")+" "+f.holder, " ")
}

func (f flagText) text() string {
	if f.deflt == "" {
		return f.usage
	}
	return f.usage + " [" + f.deflt + "]"
}

// splitUsage takes the placeholder out of a usage text: "`D` between the two"
// is D and "between the two".
func splitUsage(usage string) (holder, text string) {
	_, rest, ok := strings.Cut(usage, "`")
	if !ok {
		return "", usage
	}
	holder, text, _ = strings.Cut(rest, "`")
	return holder, strings.TrimLeft(text, ":, ")
}

func helpWidth() int {
	const narrow, wide = 60, 100
	if n, err := strconv.Atoi(os.Getenv("COLUMNS")); err == nil {
		return min(max(n, narrow), wide)
	}
	return 80
}
