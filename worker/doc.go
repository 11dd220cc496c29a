// Package worker makes a Go server that can be replaced, and stopped, without
// losing a request: under moult, under systemd, in a container, or with nothing
// above it.
//
// The simple case is one call:
//
//	err := worker.Serve(&http.Server{Addr: ":8080", Handler: mux}, worker.Config{})
//
// Serve takes the sockets that the process was started with, or opens its own;
// says that it is ready to whoever asked to be told; serves; and on SIGTERM
// lets everything come to its end. SIGHUP upgrades the server: the program is
// started anew with the same sockets, and this process drains once the new one
// is ready. Under moult SIGHUP goes to moult, which does that and more.
//
// For all others there are the parts of a [Worker]: listeners by name, HTTP
// servers, connections of any protocol, servers with a loop of their own,
// hooks, health handlers, and the triggers.
//
// # How the end goes
//
// The stages follow each other; each is logged, shown by the health handlers
// and reported to Config.OnStage.
//
//  1. The worker is not ready any more, and works on for Config.LameDuck.
//  2. The listeners close. What the kernel had accepted is served, where it
//     would be lost otherwise.
//  3. HTTP connections end: the next answer on each says so ("Connection:
//     close", or GOAWAY with HTTP/2), and one on which no request comes for
//     Config.Idle is closed. No connection is closed while a request is being
//     read, and none with a reset. Hooks of negative stages begin.
//  4. When the HTTP requests are over, or after half of Config.Drain, hijacked
//     connections (WebSockets) and those of other protocols are told through
//     [Ending], and waited for.
//  5. Config.Drain has passed and something is still open: the contexts of all
//     handlers are cancelled, and after Config.Grace it is closed by force. The
//     [Result] names each connection that was.
//  6. The hooks run.
//
// Whoever kills the process from above must leave it the time for this:
// LameDuck + Drain + Grace and what the hooks need. The limits in question are
// moult's --drain-timeout and --kill-grace, systemd's TimeoutStopSec=,
// Kubernetes' terminationGracePeriodSeconds and docker's --stop-timeout.
//
// One thing no server can do: a client that has been silent for longer than
// Config.Idle may send a request in the very moment in which its connection is
// closed, and HTTP/1 has no word for "not processed". Such a client sees a
// clean end of the connection and no answer.
package worker
