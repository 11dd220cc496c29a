package supervisor

import "crypto/rand"

// markVariable is in the environment of everything that a worker starts, so
// that what it orphans is known as its own.
const markVariable = "MOULT_WORKER"

func newMark() string { return rand.Text() }
