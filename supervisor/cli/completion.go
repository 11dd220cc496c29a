package cli

import (
	"fmt"
	"io"
	"strings"

	"github.com/urfave/cli/v2"
)

func completionCommand() *cli.Command {
	return &cli.Command{
		Name: "completion", Usage: "print what bash, zsh or fish needs to complete moult's command line",
		ArgsUsage: "SHELL",
		Description: "    bash   source <(moult completion bash)\n" +
			"    zsh    moult completion zsh > \"${fpath[1]}/_moult\"\n" +
			"    fish   moult completion fish > ~/.config/fish/completions/moult.fish",
		Action: func(c *cli.Context) error {
			write := map[string]func(io.Writer, []*cli.Command){"bash": completeBash, "zsh": completeZsh, "fish": completeFish}[c.Args().First()]
			if write == nil || c.NArg() != 1 {
				return usage("want one shell: moult completion bash, zsh or fish")
			}
			var shown []*cli.Command
			for _, command := range c.App.Commands {
				if !command.Hidden {
					shown = append(shown, command)
				}
			}
			write(c.App.Writer, shown)
			return nil
		},
	}
}

// choices are the values of flags that have only a few.
var choices = map[string]string{
	"protocol": "auto listen-fds server-starter einhorn tableflip nginx php-fpm stdin none", "handover": "auto steer share",
	"ready": "auto notify accept alive=", "end-idle": "auto off", "drain-signal": "TERM QUIT INT USR1 USR2 WINCH",
	"restart": "always on-failure never", "log-level": "debug info warn error", "log-format": "auto json text",
}

// arguments are those of commands that have only a few.
var arguments = map[string]string{"completion": "bash zsh fish"}

func takesValue(f cli.Flag) bool {
	_, is := f.(*cli.BoolFlag)
	return !is
}

func namesOf(commands []*cli.Command) string {
	var names []string
	for _, c := range commands {
		names = append(names, c.Name)
	}
	return strings.Join(names, " ")
}

func argumentsOf(c *cli.Command, all []*cli.Command) string {
	if c.Name == "help" {
		return namesOf(all)
	}
	return arguments[c.Name]
}

// spellings are the forms of a flag on the command line.
func spellings(f cli.Flag) []string {
	var all []string
	for _, name := range f.Names() {
		dashes := "--"
		if len(name) == 1 {
			dashes = "-"
		}
		all = append(all, dashes+name)
	}
	return all
}

// completeBash: after the flags of run comes a program, which is completed
// like one.
func completeBash(w io.Writer, commands []*cli.Command) {
	fmt.Fprintf(w, `_moult() {
    local cur=${COMP_WORDS[COMP_CWORD]} prev=${COMP_WORDS[COMP_CWORD-1]} command= flags= values= words= i
    COMPREPLY=()
    for ((i = 1; i < COMP_CWORD; i++)); do
        if [[ ${COMP_WORDS[i]} == -- ]]; then
            declare -F _command_offset >/dev/null && _command_offset $((i + 1))
            return
        fi
    done
    if ((COMP_CWORD == 1)) && [[ $cur != -* ]]; then
        COMPREPLY=($(compgen -W "%s" -- "$cur"))
        return
    fi
    command=${COMP_WORDS[1]}
    case $command in
`, namesOf(commands))
	for _, c := range commands {
		pattern := c.Name
		if c.Name == "run" {
			pattern = "run | -*"
		}
		fmt.Fprintf(w, "    %s) flags=\"%s\" values=\"%s\" words=\"%s\" ;;\n", pattern, flagWords(c, func(cli.Flag) bool { return true }), flagWords(c, takesValue), argumentsOf(c, commands))
	}
	fmt.Fprint(w, "    esac\n    if [[ \" $values \" == *\" $prev \"* ]]; then\n        case $prev in\n")
	for _, c := range commands[:1] {
		for _, f := range c.Flags {
			if words := choices[f.Names()[0]]; words != "" {
				fmt.Fprintf(w, "        %s) COMPREPLY=($(compgen -W \"%s\" -- \"$cur\")) ;;\n", strings.Join(spellings(f), " | "), words)
			}
		}
	}
	fmt.Fprint(w, `        *) COMPREPLY=($(compgen -f -- "$cur")) ;;
        esac
    elif [[ $cur == -* ]]; then
        COMPREPLY=($(compgen -W "$flags" -- "$cur"))
    else
        COMPREPLY=($(compgen -W "$words" -- "$cur"))
    fi
}
complete -o default -F _moult moult
`)
}

func flagWords(c *cli.Command, wanted func(cli.Flag) bool) string {
	var words []string
	for _, f := range c.Flags {
		if wanted(f) {
			words = append(words, spellings(f)...)
		}
	}
	return strings.Join(words, " ")
}

// brief is the first sentence of a usage text, without what shells would take
// for their own.
func brief(usage string) string {
	_, text := splitUsage(usage)
	for _, end := range []string{". ", "; ", ": "} {
		text, _, _ = strings.Cut(text, end)
	}
	return strings.NewReplacer("'", "", "`", "", "[", "(", "]", ")", ":", "", `\`, "", `"`, "").Replace(text)
}

func briefOf(f cli.Flag) string {
	if doc, ok := f.(cli.DocGenerationFlag); ok {
		return brief(doc.GetUsage())
	}
	return ""
}

func completeZsh(w io.Writer, commands []*cli.Command) {
	fmt.Fprint(w, "#compdef moult\n_moult() {\n    if ((CURRENT == 2)) && [[ $words[2] != -* ]]; then\n        local -a commands=(\n")
	for _, c := range commands {
		fmt.Fprintf(w, "            '%s:%s'\n", c.Name, brief(c.Usage))
	}
	fmt.Fprint(w, "        )\n        _describe command commands\n        return\n    fi\n    local command=$words[2]\n"+
		"    [[ $command == -* ]] && command=run || { shift words; ((CURRENT--)) }\n    case $command in\n")
	for _, c := range commands {
		fmt.Fprintf(w, "    %s)\n        _arguments -S", c.Name)
		for _, f := range c.Flags {
			zshFlag(w, f)
		}
		zshRest(w, c, commands)
		fmt.Fprint(w, "\n        ;;\n")
	}
	fmt.Fprint(w, "    esac\n}\n[[ $funcstack[1] == _moult ]] && _moult \"$@\" || compdef _moult moult\n")
}

// zshFlag writes the flag's spellings, each with its description and what its
// value may be.
func zshFlag(w io.Writer, f cli.Flag) {
	value := ""
	if takesValue(f) {
		value = ":value:_files"
		if words := choices[f.Names()[0]]; words != "" {
			value = ":value:(" + words + ")"
		}
	}
	for _, name := range spellings(f) {
		fmt.Fprintf(w, " \\\n            '*%s[%s]%s'", name, briefOf(f), value)
	}
}

func zshRest(w io.Writer, c *cli.Command, all []*cli.Command) {
	switch words := argumentsOf(c, all); {
	case words != "":
		fmt.Fprintf(w, " \\\n            '1:argument:(%s)'", words)
	case strings.Contains(c.ArgsUsage, "COMMAND [ARG"):
		fmt.Fprint(w, " \\\n            '*::command:_normal'")
	}
}

func completeFish(w io.Writer, commands []*cli.Command) {
	const bare = "test (count (commandline -opc)) -eq 1"
	for _, c := range commands {
		fmt.Fprintf(w, "complete -c moult -n '%s' -f -a %s -d '%s'\n", bare, c.Name, brief(c.Usage))
		used := "__fish_seen_subcommand_from " + c.Name
		if c.Name == "run" {
			used = "not __fish_seen_subcommand_from " + strings.TrimPrefix(namesOf(commands), "run ")
		}
		for _, f := range c.Flags {
			fishFlag(w, used, f)
		}
		if words := argumentsOf(c, commands); words != "" {
			fmt.Fprintf(w, "complete -c moult -n '%s' -f -a '%s'\n", used, words)
		}
	}
}

func fishFlag(w io.Writer, used string, f cli.Flag) {
	line := "complete -c moult -n '" + used + "'"
	for _, name := range f.Names() {
		if len(name) == 1 {
			line += " -s " + name
		} else {
			line += " -l " + name
		}
	}
	if words := choices[f.Names()[0]]; words != "" {
		line += " -x -a '" + words + "'"
	} else if takesValue(f) {
		line += " -r"
	}
	fmt.Fprintf(w, "%s -d '%s'\n", line, briefOf(f))
}
