package start

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"strconv"
	"syscall"
)

// The shim is moult's own binary, started in the worker's place to do what only
// the worker's own process can. Master and shim are always the same build (see
// ownExecutable), so the wire between them needs no versions:
//
//	argv          shimName, the file to execute, the command, its arguments
//	shimVariable  JSON of order
//	status pipe   descriptor order.Status, after the sockets: closed by
//	              execve, or JSON of StartError and then closed
const (
	shimName     = "moult-shim"
	shimVariable = "MOULT_SHIM"
)

type order struct {
	Status     int         `json:"status"`
	Kept       bool        `json:"kept,omitempty"` // run the descriptor after Status
	ListenPID  bool        `json:"listen_pid,omitempty"`
	Umask      *int        `json:"umask,omitempty"`
	Dir        []byte      `json:"dir,omitempty"` // as bytes: a name need not be UTF-8
	Credential *Credential `json:"credential,omitempty"`
}

// RunShimIfAsked does the shim's work, and does not return, where this process
// was started as one. It comes first in main, before any flag is parsed, and in
// TestMain of tests that start programs.
func RunShimIfAsked() {
	text, asked := os.LookupEnv(shimVariable)
	if os.Args[0] != shimName || len(os.Args) < 3 || !asked {
		return
	}
	var o order
	if err := json.Unmarshal([]byte(text), &o); err != nil || o.Status < firstSocket {
		fmt.Fprintln(os.Stderr, "moult: cannot read the order of the master:", text)
		os.Exit(1)
	}
	var failed *StartError
	errors.As(o.become(os.Args[1], os.Args[2:]), &failed)
	_ = json.NewEncoder(os.NewFile(uintptr(o.Status), "status")).Encode(failed)
	os.Exit(failed.ExitCode())
}

// become turns this process into the worker; it returns only what stopped it.
func (o order) become(path string, argv []string) error {
	syscall.CloseOnExec(o.Status)
	env := without(os.Environ(), shimVariable)
	if o.ListenPID {
		env = append(without(env, "LISTEN_PID"), "LISTEN_PID="+strconv.Itoa(os.Getpid()))
	}
	if o.Umask != nil {
		syscall.Umask(*o.Umask)
	}
	if err := o.Credential.change(syscall.Setgroups, syscall.Setgid, syscall.Setuid); err != nil {
		return err
	}
	if len(o.Dir) > 0 {
		if err := syscall.Chdir(string(o.Dir)); err != nil {
			return &StartError{Step: stepEnter, What: string(o.Dir), Err: errnoOf(err)}
		}
	}
	if o.Kept {
		syscall.CloseOnExec(o.Status + 1)
		path = descriptorPath(o.Status + 1)
	}
	return &StartError{Step: stepExecute, What: path, Err: errnoOf(syscall.Exec(path, argv, env))}
}
