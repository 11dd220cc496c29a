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
			write(c.App.Writer, c.App.VisibleCommands())
			return nil
		},
	}
}

func namesOf(commands []*cli.Command) string {
	var names []string
	for _, c := range commands {
		names = append(names, c.Name)
	}
	return strings.Join(names, " ")
}

// argumentsOf are the arguments of commands that have only a few.
func argumentsOf(c *cli.Command, all []*cli.Command) string {
	switch c.Name {
	case "help":
		return namesOf(all) + " " + strings.Join(topicNames(), " ")
	case "completion":
		return "bash zsh fish"
	}
	return ""
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
		var all, valued []string
		for _, f := range flagTexts(c) {
			all = append(all, f.spelled...)
			if f.value {
				valued = append(valued, f.spelled...)
			}
		}
		fmt.Fprintf(w, "    %s) flags=\"%s\" values=\"%s\" words=\"%s\" ;;\n", pattern, strings.Join(all, " "), strings.Join(valued, " "), argumentsOf(c, commands))
	}
	fmt.Fprint(w, "    esac\n    if [[ \" $values \" == *\" $prev \"* ]]; then\n        case $prev in\n")
	for _, f := range flagTexts(commands[0]) { // run has all that have choices
		if words := strings.Join(choices[f.name], " "); words != "" {
			fmt.Fprintf(w, "        %s) COMPREPLY=($(compgen -W \"%s\" -- \"$cur\")) ;;\n", strings.Join(f.spelled, " | "), words)
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

// brief is the first sentence of a text, without what shells would take for
// their own.
func brief(text string) string {
	for _, end := range []string{". ", "; ", ": "} {
		text, _, _ = strings.Cut(text, end)
	}
	return strings.NewReplacer("'", "", "`", "", "[", "(", "]", ")", ":", "", `\`, "", `"`, "").Replace(text)
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
		for _, f := range flagTexts(c) {
			for _, spelled := range f.spelled {
				fmt.Fprintf(w, " \\\n            '*%s[%s]%s'", spelled, brief(f.usage), zshValue(f))
			}
		}
		if words := argumentsOf(c, commands); words != "" {
			fmt.Fprintf(w, " \\\n            '1:argument:(%s)'", words)
		} else if strings.Contains(c.ArgsUsage, "COMMAND [ARG") {
			fmt.Fprint(w, " \\\n            '*::command:_normal'")
		}
		fmt.Fprint(w, "\n        ;;\n")
	}
	fmt.Fprint(w, "    esac\n}\n[[ $funcstack[1] == _moult ]] && _moult \"$@\" || compdef _moult moult\n")
}

// zshValue says what may follow a flag.
func zshValue(f flagText) string {
	switch words := strings.Join(choices[f.name], " "); {
	case words != "":
		return ":value:(" + words + ")"
	case f.value:
		return ":value:_files"
	}
	return ""
}

func completeFish(w io.Writer, commands []*cli.Command) {
	const bare = "test (count (commandline -opc)) -eq 1"
	for _, c := range commands {
		fmt.Fprintf(w, "complete -c moult -n '%s' -f -a %s -d '%s'\n", bare, c.Name, brief(c.Usage))
		used := "__fish_seen_subcommand_from " + c.Name
		if c.Name == "run" {
			used = "not __fish_seen_subcommand_from " + strings.TrimPrefix(namesOf(commands), "run ")
		}
		for _, f := range flagTexts(c) {
			fmt.Fprintf(w, "complete -c moult -n '%s'%s -d '%s'\n", used, fishFlag(f), brief(f.usage))
		}
		if words := argumentsOf(c, commands); words != "" {
			fmt.Fprintf(w, "complete -c moult -n '%s' -f -a '%s'\n", used, words)
		}
	}
}

func fishFlag(f flagText) (options string) {
	for _, spelled := range f.spelled {
		if name, long := strings.CutPrefix(spelled, "--"); long {
			options += " -l " + name
		} else {
			options += " -s " + strings.TrimPrefix(spelled, "-")
		}
	}
	if words := strings.Join(choices[f.name], " "); words != "" {
		return options + " -x -a '" + words + "'"
	} else if f.value {
		return options + " -r"
	}
	return options
}
