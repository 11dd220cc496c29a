package cli

import (
	"os"
	"os/exec"
	"regexp"
	"strings"
	"testing"
	"unicode/utf8"
)

// eachFlag calls f for all that a user can write.
func eachFlag(f func(command, flag string)) {
	for _, c := range newApp("v1").VisibleCommands() {
		for _, flag := range flagTexts(c) {
			f(c.Name, flag.name)
		}
	}
}

func TestManPageHasEverything(t *testing.T) {
	code, page, _ := command("man")
	if code != 0 {
		t.Fatalf("exit code %d", code)
	}
	eachFlag(func(command, flag string) {
		if flag != "help" && !strings.Contains(page, strings.ReplaceAll(".B --"+flag, "-", `\-`)) && !strings.Contains(page, strings.ReplaceAll(", --"+flag, "-", `\-`)) {
			t.Errorf("%s --%s is missing", command, flag)
		}
		if !strings.Contains(page, `.SH "MOULT `+strings.ToUpper(command)) {
			t.Errorf("%s is missing", command)
		}
	})
	for _, name := range topicNames() {
		if !strings.Contains(page, `.SH "`+strings.ToUpper(name)+`"`) {
			t.Errorf("topic %s is missing", name)
		}
	}
	macro := regexp.MustCompile(`^\.(TH|SH|SS|TP|PP|B|nf|fi)\b`)
	for _, line := range strings.Split(page, "\n") {
		if strings.HasPrefix(line, "'") || strings.HasPrefix(line, ".") && !macro.MatchString(line) {
			t.Errorf("a line would be taken for a macro: %q", line)
		}
	}
}

func TestManPageIsAccepted(t *testing.T) {
	groff, err := exec.LookPath("groff")
	if err != nil {
		t.Skip("no groff")
	}
	_, page, _ := command("man")
	cmd := exec.Command(groff, "-man", "-Tutf8", "-ww", "-z")
	cmd.Stdin = strings.NewReader(page)
	if out, err := cmd.CombinedOutput(); err != nil || strings.Contains(string(out), "error") || strings.Contains(string(out), "macro") {
		t.Errorf("%v\n%s", err, out)
	}
}

func TestCompletionKnowsEveryFlag(t *testing.T) {
	for _, shell := range []string{"bash", "zsh", "fish"} {
		code, script, _ := command("completion", shell)
		if code != 0 {
			t.Fatalf("%s: exit code %d", shell, code)
		}
		eachFlag(func(command, flag string) {
			word := "--" + flag
			if shell == "fish" {
				word = "-l " + flag
			}
			if !strings.Contains(script, word) || !strings.Contains(script, command) {
				t.Errorf("%s: %s --%s is missing", shell, command, flag)
			}
		})
	}
	if code, _, stderr := command("completion", "tcsh"); code != 2 || !strings.Contains(stderr, "bash, zsh or fish") {
		t.Errorf("another shell: exit code %d, %q", code, stderr)
	}
}

// bashCompletes returns what bash offers for the last word of a line.
func bashCompletes(t *testing.T, words ...string) string {
	t.Helper()
	bash, err := exec.LookPath("bash")
	if err != nil {
		t.Skip("no bash")
	}
	_, script, _ := command("completion", "bash")
	script += `COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); _moult; echo "${COMPREPLY[@]}"`
	out, err := exec.Command(bash, append([]string{"-c", script, "bash"}, words...)...).CombinedOutput()
	if err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	return strings.TrimSpace(string(out))
}

func TestBashCompletes(t *testing.T) {
	for line, want := range map[string]string{
		"moult up":                     "upgrade",
		"moult upgrade --ti":           "--timeout",
		"moult run --restart on":       "on-failure",
		"moult --handov":               "--handover",
		"moult completion f":           "fish",
		"moult help rollb":             "rollback",
		"moult help inter":             "intercept",
		"moult --protocol e":           "",
		"moult --protocol l":           "listen-fds",
		"moult run -- server --handov": "",
		"moult status --watc":          "--watch",
	} {
		if got := bashCompletes(t, strings.Fields(line)...); got != want {
			t.Errorf("%s: %q, want %q", line, got, want)
		}
	}
}

func TestOtherShellsAcceptTheirScripts(t *testing.T) {
	for _, shell := range []string{"zsh", "fish"} {
		path, err := exec.LookPath(shell)
		if err != nil && os.Getenv("CI") == "true" {
			t.Errorf("install %s", shell)
		}
		if err != nil {
			t.Logf("not tried: install %s", shell)
			continue
		}
		_, script, _ := command("completion", shell)
		cmd := exec.Command(path, "-n")
		cmd.Stdin = strings.NewReader(script)
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Errorf("%s: %v\n%s", shell, err, out)
		}
	}
}

func TestHelp(t *testing.T) {
	for _, test := range []struct {
		args  string
		code  int
		wants []string
	}{
		{"help", 0, []string{"\n\n    moult -- ./server ", "    upgrade ", "    intercept "}},
		{"--help", 0, []string{"    moult -- ./server "}},
		{"", 0, []string{"    moult -- ./server "}},
		{"help run", 0, []string{"-l, --listen [NAME=]ADDR\n", "Exit codes:"}},
		{"upgrade -h", 0, []string{"moult upgrade: ", "--timeout D\n"}},
		{"help intercept", 0, []string{"WHAT IS KEPT", "WHEN A NEW GENERATION IS READY", "CRASHES", "UNIX PATHS", "RIGHTS", "CONTAINERS",
			"WHERE IT CANNOT WORK", "no_new_privs", "CAP_NET_BIND_SERVICE", "port 0", "has failed"}},
		{"help ready", 0, []string{"READY=1"}},
		{"help drain", 0, []string{"--quiesce"}},
		{"help demo-worker", exitUsage, []string{`no command or topic "demo-worker"`}},
		{"help nothing", exitUsage, []string{"moult help"}},
	} {
		code, stdout, stderr := command(strings.Fields(test.args)...)
		if code != test.code {
			t.Errorf("moult %s: exit code %d", test.args, code)
		}
		for _, want := range test.wants {
			if !strings.Contains(stdout+stderr, want) {
				t.Errorf("moult %s: %q is missing in\n%s%s", test.args, want, stdout, stderr)
			}
		}
	}
}

func TestTopicsFit(t *testing.T) {
	app := newApp("v1")
	for _, name := range topicNames() {
		if app.Command(name) != nil {
			t.Errorf("%s is a command as well", name)
		}
		title, body := topic(name)
		if title == "" || body == "" || strings.Contains(title, "\n") {
			t.Errorf("%s: title %q, %d bytes below it", name, title, len(body))
		}
		for _, line := range strings.Split(title+"\n"+body, "\n") {
			if n := utf8.RuneCountInString(line); n > 80 {
				t.Errorf("%s: %d columns: %s", name, n, line)
			}
		}
	}
}
