package cli

import (
	"io"
	"strings"

	"github.com/urfave/cli/v2"
)

func manCommand() *cli.Command {
	return &cli.Command{
		Name: "man", Usage: "print the man page: moult man | man -l -",
		Action: func(c *cli.Context) error { return writeMan(c.App.Writer, c.App) },
	}
}

// writeMan writes the page in the macros of man(7), from what the help is made
// of.
func writeMan(w io.Writer, app *cli.App) error {
	page := &roff{}
	page.macro(".TH", "MOULT", "1", "", "moult "+app.Version)
	page.macro(".SH", "NAME")
	page.text("moult - " + app.Usage)
	page.macro(".SH", "SYNOPSIS")
	page.literal("moult [flags] [--] COMMAND [ARG...]\n" + synopsis(app))
	page.macro(".SH", "DESCRIPTION")
	_, description, _ := strings.Cut(intro, "\n\n")
	description, _, _ = strings.Cut(description, "\n\nUsage:")
	page.text("Moult holds the listening sockets, starts COMMAND with them, and upgrades it without losing a request.")
	page.literal(description)
	for _, c := range app.VisibleCommands() {
		page.command(c)
	}
	for _, name := range topicNames() {
		title, body := topic(name)
		page.macro(".SH", strings.ToUpper(name))
		page.line(title)
		page.WriteString(".PP\n")
		page.literal(body)
	}
	for _, section := range strings.Split(strings.TrimSpace(outro), "\n\n") {
		page.section(section)
	}
	page.macro(".SH", "ENVIRONMENT")
	page.text("Every flag of run has a variable: MOULT_ and its name in capitals, such as MOULT_READY_TIMEOUT. " +
		"A flag on the command line beats its variable; lists are split at commas.")
	_, err := io.WriteString(w, page.String())
	return err
}

func synopsis(app *cli.App) string {
	var b strings.Builder
	for _, c := range app.VisibleCommands() {
		b.WriteString(strings.TrimSpace("moult "+c.Name+" "+c.ArgsUsage) + "\n")
	}
	return b.String()
}

// roff is a page as it is written.
type roff struct{ strings.Builder }

var roffEscape = strings.NewReplacer(`\`, `\e`, "-", `\-`, "'", `\(aq`, "`", `\(ga`)

// line writes text that no reader takes for a macro.
func (r *roff) line(text string) {
	if strings.HasPrefix(text, ".") {
		r.WriteString(`\&`)
	}
	r.WriteString(roffEscape.Replace(text) + "\n")
}

func (r *roff) macro(name string, args ...string) {
	for _, arg := range args {
		name += ` "` + strings.ReplaceAll(roffEscape.Replace(arg), `"`, `\(dq`) + `"`
	}
	r.WriteString(name + "\n")
}

func (r *roff) text(text string) {
	for _, line := range strings.Split(text, "\n") {
		r.line(line)
	}
}

// literal keeps lines as they are.
func (r *roff) literal(text string) {
	r.WriteString(".nf\n")
	r.text(strings.TrimRight(text, "\n"))
	r.WriteString(".fi\n")
}

func (r *roff) command(c *cli.Command) {
	r.macro(".SH", strings.ToUpper("moult "+c.Name))
	r.line(c.Usage)
	if c.Description != "" {
		r.WriteString(".PP\n")
		r.text(c.Description)
	}
	category := ""
	for _, f := range flagTexts(c) {
		if f.name == "help" {
			continue
		}
		if f.category != category {
			category = f.category
			r.macro(".SS", category)
		}
		r.WriteString(".TP\n.B " + roffEscape.Replace(f.head()) + "\n")
		r.line(f.text())
	}
}

// section writes a part of the help whose first line is its heading.
func (r *roff) section(text string) {
	heading, body, _ := strings.Cut(text, "\n")
	if !strings.HasSuffix(heading, ":") {
		r.macro(".SH", "PLACEHOLDERS")
		r.text(text)
		return
	}
	r.macro(".SH", strings.ToUpper(strings.TrimSuffix(heading, ":")))
	r.literal(body)
}
