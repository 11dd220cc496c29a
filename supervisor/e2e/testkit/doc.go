// Package testkit is what the end-to-end tests share. They start moult as a
// process of its own and look at it from outside only: what its server's
// clients see, what it logs, how it exits, and what /proc says.
package testkit
