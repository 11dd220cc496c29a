package cli

import (
	"slices"
	"strings"
	"testing"

	"github.com/urfave/cli/v2"

	"github.com/moult/moult/fdpass"
)

// What completion offers, run takes.
func TestEveryChoiceIsTaken(t *testing.T) {
	ownRuntimeDirectory(t)
	for flag, values := range choices {
		for _, value := range values {
			if strings.HasSuffix(value, "=") {
				value += "1s"
			}
			if code, _, stderr := command("check", "-l", "127.0.0.1:0", "--"+flag, value, "--", "true"); code != 0 {
				t.Errorf("--%s %s: exit code %d, %s", flag, value, code, stderr)
			}
		}
	}
}

// And every protocol that there is, it offers.
func TestEveryProtocolIsOffered(t *testing.T) {
	_, err := fdpass.ParseProtocols([]string{"?"})
	if err == nil || !strings.Contains(err.Error(), "(there are: "+strings.Join(protocolNames(), ", ")+")") {
		t.Errorf("offered are %v; fdpass says: %v", protocolNames(), err)
	}
}

func TestWrongFlagsAreUsage(t *testing.T) {
	ownRuntimeDirectory(t)
	for args, says := range map[string]string{
		"-- true --intercept=false":  "",
		"--intercept=false -- true":  "--listen",
		"-l :0 --intercept-unlink":   "without --intercept",
		"-l :0 --handover both":      "choose auto, steer or share",
		"--protocol tableflip":       "unknown",
		"--workers 0":                "choose 1 to",
		"--env A":                    "want K=V",
		"--umask 8":                  "octal",
		"--user nobody-of-that-name": "nobody-of-that-name",
		"--ready soon":               "choose auto, notify, accept or alive=D",
		"--ready alive":              "alive=D",
		"--ready alive=x":            "such as alive=2s",
		"--ready alive=2m":           "is over before",
		"--ready-timeout 0s":         "longer than nothing",
		"--quiesce -1s":              "negative",
		"--max-draining 0":           "at least 1",
		"--drain-signal KILL":        "TERM or QUIT",
		"--drain-signal 65":          "TERM or QUIT",
		"--end-idle 0s":              "auto, off or a duration",
		"--restart often":            "choose always, on-failure or never",
		"--restart-delay 1s":         "MIN..MAX",
		"--restart-delay 2s..1s":     "MIN..MAX",
		"--restart-limit 5":          "such as 5/1m",
		"--name a/b":                 "letters, digits",
		"--log-level loud":           "choose debug",
		"--log-format xml":           "choose auto",
		"--env A={fd:none}":          "none",
		"--chdir /no/such/place":     "/no/such/place",
		"--env-file /no/such/file":   "--env-file",
		"--admin 0.0.0.0:0":          "--admin-public",
	} {
		line := strings.Fields(args)
		if !slices.Contains(line, "--") {
			line = append(line, "--", "true")
		}
		code, _, stderr := command(append([]string{"check"}, line...)...)
		if want := map[bool]int{true: 0, false: exitUsage}[says == ""]; code != want || !strings.Contains(stderr, says) {
			t.Errorf("moult check %s: exit code %d, %s", args, code, stderr)
		}
	}
}

func TestNameOfTheCommand(t *testing.T) {
	for command, want := range map[string]string{"./server": "server", "/bin/my server!": "my_server_", "büro": "b_ro", "a.b-c_9": "a.b-c_9"} {
		app := newApp("v1")
		app.Command("run").Action = func(c *cli.Context) error {
			cfg, err := readConfig(c)
			if err != nil || cfg.Name != want {
				t.Errorf("%s is named %q, %v, want %q", command, cfg.Name, err, want)
			}
			return nil
		}
		if err := app.Run([]string{"moult", "run", "--control", "off", "--", command}); err != nil {
			t.Error(err)
		}
	}
}

func TestVariablesStandForFlags(t *testing.T) {
	ownRuntimeDirectory(t)
	t.Setenv("MOULT_LISTEN", "a=127.0.0.1:0,b=127.0.0.1:0")
	t.Setenv("MOULT_QUIESCE", "3s")
	t.Setenv("MOULT_WORKERS", "4")
	code, stdout, stderr := command("check", "--workers", "2", "--", "true")
	for _, want := range []string{"  a  ", "  b  ", "up to 3s", "2 per generation"} {
		if code != 0 || !strings.Contains(stdout, want) {
			t.Errorf("exit code %d, no %q in\n%s%s", code, want, stdout, stderr)
		}
	}
	t.Setenv("MOULT_QUIESCE", "soon")
	if code, _, stderr := command("check", "--", "true"); code != exitUsage || !strings.Contains(stderr, "MOULT_QUIESCE") {
		t.Errorf("exit code %d, %s", code, stderr)
	}
}
