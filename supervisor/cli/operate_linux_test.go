package cli

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/moult/moult/supervisor/control"
	"github.com/moult/moult/supervisor/control/api"
)

// deployment is a real master over a program that the test replaces.
type deployment struct {
	dir     string
	program string
	url     string
	master  *moult
	client  *control.Client
}

// Programs that a deploy may bring. %s is the test binary.
const (
	goodProgram   = "#!/bin/sh\nexec %s demo-worker\n"
	crashProgram  = "#!/bin/sh\nexit 3\n"
	hangProgram   = "#!/bin/sh\nexec sleep 1000\n"
	noInterpreter = "#!/no/such/interpreter\n"
	wrongMachine  = "\x7fELF\x02\x01\x01\x00\x00\x00\x00\x00\x00\x00\x00\x00\x02\x00\xf3\x00\x01\x00\x00\x00"
)

// deploy replaces the program as deploys do, by rename; nothing removes it.
func (d *deployment) deploy(t *testing.T, text string, mode os.FileMode) {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	if strings.Contains(text, "%s") {
		text = fmt.Sprintf(text, self)
	}
	if text == "" {
		if err := os.Remove(d.program); err != nil {
			t.Fatal(err)
		}
		return
	}
	fresh := d.program + ".new"
	if err := os.WriteFile(fresh, []byte(text), mode); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(fresh, d.program); err != nil {
		t.Fatal(err)
	}
}

// startDeployment starts a master whose first generation serves.
func startDeployment(t *testing.T, flags ...string) *deployment {
	t.Helper()
	dir := ownRuntimeDirectory(t)
	t.Setenv("MOULT_NAME", "")
	d := &deployment{dir: dir, program: filepath.Join(dir, "server")}
	d.deploy(t, goodProgram, 0o755)
	args := append([]string{"run", "--name", "web", "-l", "127.0.0.1:0", "--ready-timeout", "1s", "--quiesce", "0s", "--kill-grace", "1s"}, flags...)
	d.master = newMoult(t, append(args, "--", d.program)...)
	if err := d.master.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { d.end(t) })
	d.await(t, func(s api.Status) bool { return s.State == api.Serving })
	return d
}

func (d *deployment) end(t *testing.T) {
	if d.client != nil {
		d.client.Close()
	}
	if d.master.cmd.ProcessState == nil {
		_ = d.master.cmd.Process.Signal(syscall.SIGQUIT)
		_ = d.master.cmd.Wait()
	}
	if t.Failed() {
		t.Logf("the master's log:\n%s", &d.master.stderr)
	}
}

// await waits until the master's status is as wanted.
func (d *deployment) await(t *testing.T, wanted func(api.Status) bool) (s api.Status) {
	t.Helper()
	for limit := time.Now().Add(patience); time.Now().Before(limit); time.Sleep(10 * time.Millisecond) {
		if d.client == nil {
			if d.client, _ = control.Dial("web"); d.client == nil {
				continue
			}
		}
		var err error
		if s, err = d.client.Status(t.Context()); err == nil && wanted(s) {
			if d.url == "" {
				d.url = "http://" + s.Sockets[0].Address
			}
			return s
		}
	}
	t.Fatalf("not so after %s; status %+v", patience, s)
	return s
}

// get fetches a path and tells which generation answered.
func (d *deployment) get(t *testing.T, path string) string {
	t.Helper()
	client := http.Client{Transport: &http.Transport{DisableKeepAlives: true}, Timeout: patience}
	resp, err := client.Get(d.url + path)
	if err != nil {
		t.Error(err)
		return ""
	}
	defer resp.Body.Close()
	_, _ = io.Copy(io.Discard, resp.Body)
	return resp.Header.Get("Moult-Pid")
}

// script runs what a deploy script would.
func (d *deployment) script(t *testing.T, text string) (output string) {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 2*patience)
	defer cancel()
	cmd := exec.CommandContext(ctx, "/bin/sh", "-c", "moult() { "+self+` "$@" --name web; }; `+text)
	cmd.Env = append(os.Environ(), playVariable+"=1")
	out, _ := cmd.CombinedOutput()
	return string(out)
}

// begin runs a script in the background; what it has said comes in the end.
func (d *deployment) begin(t *testing.T, text string) <-chan string {
	said := make(chan string, 1)
	go func() { said <- d.script(t, text) }()
	return said
}

// deployGated brings a good program that does not become ready before open.
func (d *deployment) deployGated(t *testing.T) {
	t.Helper()
	d.deploy(t, "#!/bin/sh\nuntil [ -e "+d.gate()+" ]; do sleep 0.02; done\nexec %s demo-worker\n", 0o755)
}

func (d *deployment) gate() string { return filepath.Join(d.dir, "open") }

func (d *deployment) open(t *testing.T) {
	t.Helper()
	if err := os.WriteFile(d.gate(), nil, 0o600); err != nil {
		t.Fatal(err)
	}
}

func isUpgrading(s api.Status) bool { return s.State == api.Upgrading }

func TestUpgradeInAShellScript(t *testing.T) {
	for _, test := range []struct {
		name, program string
		mode          os.FileMode
		reason        string // empty: it is right
	}{
		{"good", goodProgram, 0o755, ""},
		{"crash at start", crashProgram, 0o755, "exit status 3"},
		{"never ready", hangProgram, 0o755, "--ready-timeout"},
		{"not executable", goodProgram, 0o644, "permission denied"},
		{"no interpreter", noInterpreter, 0o755, "no such file"},
		{"wrong architecture", wrongMachine, 0o755, "exec format error"},
		{"missing", "", 0, "no such file"},
	} {
		t.Run(test.name, func(t *testing.T) {
			d := startDeployment(t)
			before := d.get(t, "/")
			d.deploy(t, test.program, test.mode)
			out := d.script(t, "moult upgrade && echo ok")
			if ok := strings.HasSuffix(out, "ok\n"); ok != (test.reason == "") || !strings.Contains(out, test.reason) {
				t.Errorf("the script said:\n%s", out)
			}
			after := d.get(t, "/")
			if same := after == before; same != (test.reason != "") || after == "" {
				t.Errorf("answered by %q before, %q after", before, after)
			}
			if s := d.await(t, func(api.Status) bool { return true }); test.reason != "" && (s.Upgrades.Failed != 1 || s.Generation != 1 || !strings.Contains(s.Upgrades.Last.Reason, test.reason)) {
				t.Errorf("status tells %+v, last %+v", s.Upgrades, s.Upgrades.Last)
			}
		})
	}
}

func TestNoClientCancelsAnUpgrade(t *testing.T) {
	for name, leave := range map[string]func(*testing.T, *deployment){
		"time-out": func(t *testing.T, d *deployment) {
			if out := d.script(t, "moult upgrade --timeout 50ms && echo ok"); strings.Contains(out, "ok\n") || !strings.Contains(out, "it goes on") {
				t.Errorf("the script said:\n%s", out)
			}
		},
		"killed": func(t *testing.T, d *deployment) {
			caller := newMoult(t, "upgrade", "--name", "web")
			if err := caller.cmd.Start(); err != nil {
				t.Fatal(err)
			}
			d.await(t, isUpgrading)
			if err := caller.cmd.Process.Kill(); err != nil {
				t.Fatal(err)
			}
			caller.wait(t)
		},
	} {
		t.Run(name, func(t *testing.T) {
			d := startDeployment(t, "--ready-timeout", "1m")
			d.deployGated(t)
			leave(t, d)
			d.open(t)
			d.await(t, func(s api.Status) bool { return s.Generation == 2 && s.Upgrades.Succeeded == 1 })
		})
	}
}

// awaitCallers waits until so many connections to the control socket stand
// beside the test's own, by /proc/net/unix: a line for the listener and one for
// each connection bear its path.
func (d *deployment) awaitCallers(t *testing.T, n int) {
	t.Helper()
	const own = 2
	for limit := time.Now().Add(patience); time.Now().Before(limit); time.Sleep(10 * time.Millisecond) {
		table, err := os.ReadFile("/proc/net/unix")
		if err != nil {
			t.Fatal(err)
		}
		if _, err := d.client.Status(t.Context()); err != nil {
			t.Fatal(err)
		}
		if strings.Count(string(table), d.client.Path()+"\n") >= own+n {
			return
		}
	}
	t.Fatalf("no %d callers after %s", n, patience)
}

func TestTwoCallersAtOnce(t *testing.T) {
	d := startDeployment(t, "--ready-timeout", "1m")
	d.deployGated(t)
	first := d.begin(t, "moult upgrade && echo ok")
	d.await(t, isUpgrading)
	second := d.begin(t, "moult upgrade && echo ok")
	d.awaitCallers(t, 2)
	d.open(t)
	for serves, said := range map[string]<-chan string{"generation 2 serves": first, "generation 3 serves": second} {
		if out := <-said; !strings.Contains(out, serves) || !strings.HasSuffix(out, "ok\n") {
			t.Errorf("want %s and ok, it said:\n%s", serves, out)
		}
	}
	d.await(t, func(s api.Status) bool { return s.Generation == 3 && s.Upgrades.Succeeded == 2 })
}

func TestUpgradeWhileTheMasterStops(t *testing.T) {
	d := startDeployment(t, "--ready-timeout", "1m")
	d.deployGated(t)
	upgraded := d.begin(t, "moult upgrade && echo ok")
	d.await(t, isUpgrading)
	if out := d.script(t, "moult stop && echo left well"); !strings.HasSuffix(out, "left well\n") {
		t.Errorf("stop said:\n%s", out)
	}
	if out := <-upgraded; strings.Contains(out, "ok\n") || !strings.Contains(out, "asked to stop") {
		t.Errorf("upgrade said:\n%s", out)
	}
	if code := d.master.wait(t); code != 0 {
		t.Errorf("the master's exit code is %d", code)
	}
	if out := d.script(t, "moult upgrade; echo $?"); !strings.HasSuffix(out, "3\n") {
		t.Errorf("without a master:\n%s", out)
	}
}

func TestWaitOutlastsTheOldGeneration(t *testing.T) {
	d := startDeployment(t, "--quiesce", "20s")
	answered := make(chan string, 1)
	go func() { answered <- d.get(t, "/slow?d=3s") }()
	d.await(t, func(s api.Status) bool { return *s.Workers[0].Connections == 1 })
	out := d.script(t, "moult upgrade --wait && echo gone")
	if !strings.HasSuffix(out, "gone\n") || !strings.Contains(out, "generation 1 draining") {
		t.Errorf("the script said:\n%s", out)
	}
	select {
	case pid := <-answered:
		if pid == "" {
			t.Error("the slow answer was lost")
		}
	default:
		t.Error("--wait returned before the slow answer was through")
	}
	if s := d.await(t, func(api.Status) bool { return true }); len(s.Workers) != 1 || s.Upgrades.Last.DrainMS == nil {
		t.Errorf("status tells %+v", s)
	}
}

func TestStopNow(t *testing.T) {
	d := startDeployment(t, "--quiesce", "30s")
	go func() {
		client := http.Client{Timeout: patience}
		if resp, err := client.Get(d.url + "/slow?d=15s"); err == nil {
			resp.Body.Close()
		}
	}()
	d.await(t, func(s api.Status) bool { return *s.Workers[0].Connections == 1 })
	began := time.Now()
	if out := d.script(t, "moult stop --now && echo gone"); !strings.HasSuffix(out, "gone\n") {
		t.Errorf("the script said:\n%s", out)
	}
	if took := time.Since(began); took > 10*time.Second {
		t.Errorf("it took %s", took)
	}
	d.master.wait(t)
}

func TestAWorkerFindsItsMaster(t *testing.T) {
	d := startDeployment(t)
	s := d.await(t, func(api.Status) bool { return true })
	environment, err := os.ReadFile(fmt.Sprintf("/proc/%d/environ", s.Workers[0].PID))
	if err != nil {
		t.Fatal(err)
	}
	if want := "MOULT_CONTROL=" + d.client.Path(); !strings.Contains(string(environment), want+"\x00") {
		t.Errorf("%q is not in the worker's environment", want)
	}
}

func TestAdminOfARealMaster(t *testing.T) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	address := ln.Addr().String()
	ln.Close()
	startDeployment(t, "--admin", address)
	client := http.Client{Transport: &http.Transport{DisableKeepAlives: true}, Timeout: patience}
	for path, want := range map[string]string{"/livez": "ok", "/readyz": "serving", "/metrics": "moult_worker_ready_seconds_count 1\n", "/status": `"name":"web"`} {
		resp, err := client.Get("http://" + address + path)
		if err != nil {
			t.Fatal(err)
		}
		body, _ := io.ReadAll(resp.Body)
		resp.Body.Close()
		if resp.StatusCode != http.StatusOK || !strings.Contains(string(body), want) {
			t.Errorf("%s: %s\n%s", path, resp.Status, body)
		}
	}
}
