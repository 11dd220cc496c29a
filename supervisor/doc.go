// Package supervisor is the master: it holds the sockets, runs the workers, and
// moves connections from one generation to the next.
//
// # The map
//
// What the master knows and decides is a value, machine.Machine: events go in,
// orders come out. This package is the shell around it. Its loop (supervisor.go)
// takes one event at a time, lets the machine decide, and performs the orders
// (perform.go); it decides nothing itself. Nothing in the loop sleeps, waits for
// another process, or touches a file that a worker has chosen: that happens
// beside it and comes back as an event.
//
//	machine/            what is known and decided: states and tables, the book of addresses
//	machine: ready/     what was seen of a starting worker → is it ready?
//	addresses.go        the groups of sockets, each used by one goroutine at a time
//	  fdpass/group/     one address in the kernel: tcp, udp, path, shared
//	workers.go          starting, ending, collecting
//	  fdpass/start/     from a program to a running process
//	  process/          one child and its tree: signals, orphans, its words (sd_notify)
//	looks.go            one look at one worker
//	  observe/          all reads of /proc and sock_diag
//	  drain/            what was seen of connections → in use, or idle
//	calls_linux.go      system calls of workers that wait for an answer
//	  capture/          a call → a question; a verdict → what the kernel is told
//	  fdpass/intercept/ the seccomp filter and its listener
//	clients.go          operations and status
//	  control/, cli/    the socket, the commands
//	e2e/                the promises, tried with real processes
//
// Imports run down this list; machine imports nothing but ready and control/api,
// and the rooms below know neither it nor this package. A test holds that
// (machine/rules_test.go).
//
// # Words
//
//	master      this process
//	generation  one start of the program: a slot for each worker
//	slot        a worker's place in its generation; it keeps the sockets when the worker dies
//	worker      one process, from the order to start it until nothing of its tree is left
//	address     what clients connect to, in one exact form
//	member      one socket of an address; a worker has one of its own where that works
//	the book    who has which member, and whom the kernel is told to steer to
//	look        asking the kernel about a worker, beside the loop
//	ready       a worker accepts on all that it is to serve; a generation, all its workers
//	steer       to name the members that get new connections
//	settle      to serve what is in the queue, when nothing new comes
//	quiesce     to leave connections to end by themselves
//	drain       to finish and leave, after the drain signal
//
// A socket is detached, a descriptor closed, a process ended, a generation
// retired.
//
// # One SIGHUP
//
// The signal arrives in Signals.hangup; the loop takes Hangup, and the master's
// table says: from serving to upgrading, start. The machine makes a generation
// and orders Furnish: a member on each address that the master has opened, for
// each slot. Furnished comes back, and for each slot a Start. A goroutine looks
// for the program, installs the filter on its thread, forks, and becomes nothing:
// the thread dies with it. Forked comes back with the pid.
//
// The worker binds and listens. Each of these calls stops at the master, which
// permits it to share the address, and has the socket as a member from its
// listen on (see below). Looks ask /proc whether somebody accepts on each member.
// When all workers accept, on every address that the serving generation listened
// on when it became ready, the generation is switching: Steer, for each address.
// The kernel's answers come back as Steered, and with the last one new
// connections go to the new generation everywhere. That is the one moment of
// commitment; everything before it can be taken back, and is, if an order fails.
//
// The old generation is retired. Each of its workers settles: a look waits until
// the switch has reached every CPU, follows the handshakes of that moment and
// the queue until both are empty. It quiesces: its connections may end by
// themselves for up to --quiesce. It drains: the drain signal, with
// --drain-timeout to go; then TERM, then KILL. SIGCHLD says that its main process
// has ended; the zombie is kept until a look has found what it left behind, and
// when that is gone as well the worker is. Its members leave the groups, and the
// generation is gone.
//
// # Five walks
//
// A flag's address to a worker's descriptor: cli reads --listen into
// Config.Addresses (cli/flags.go); New opens each (sockets.open, group.Open);
// Run tells the machine by Begin; Furnish joins a member for a slot
// (address.furnish, Group.Join); Start lists it in Handed; startProgram
// duplicates it (handed.duplicate) into Program.Sockets, and start puts it at 3,
// 4, … of the child.
//
// A SIGHUP: told above.
//
// An intercepted listen: the thread stops; intercept.Listener.Next reads the
// call; capture.Worker.Take inspects the socket by a duplicate and asks
// (calls.ask); the machine gets ListenAsked, finds the address in the book or
// writes it there, and orders Reply{Adopt}; address.give has capture call
// listen(2) within the group, whose mirror of the kernel's array grows by one;
// Listening goes back, the member enters the slot, and Asked.End lets the thread
// go on.
//
// A look at readiness: the machine's Due says when; Tick; Look{LookReady}; a
// goroutine reads /proc (looker.ready, observe.Accepting), and where that does not
// tell, connects to this one member (group.Probe); Looked comes back, and
// ready.Worker.Verdict says yes or no.
//
// A status request: control's server calls Supervisor.Status; the loop copies
// what the machine knows (Machine.Status); beside it, the groups count their
// queues and observe counts connections and memory.
package supervisor
