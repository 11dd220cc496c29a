// Package fdpass carries listening sockets from a flag to a worker's
// descriptor, and knows both ends of every wire on the way.
//
// An Address is what a person asks for ("web=tcp://:8080?backlog=512"), a
// Binding what the kernel is asked for, and OpenSocket goes from one to the
// other; what a master does with a socket while it lives is told by package
// fdpass/group. A Passed is the socket as one worker finds it: a descriptor
// number and the address it is bound to. A Handoff puts the sockets of one
// worker together with the protocols by which the worker learns of them, and
// yields the environment variables and the arguments to start it with.
//
// Each protocol has a file of its own, protocol_NAME.go, and one line in the
// table of handoff.go: that is all there is to add for the next one.
//
// The package returns errors and never logs. Unless a function says otherwise,
// a descriptor that it is given stays the caller's to close, and a descriptor
// that it returns is the caller's from then on.
package fdpass
