package supervisor

import "crypto/rand"

// WorkerVariable is in the environment of everything that a worker starts, so
// that what it orphans is known as its own.
const WorkerVariable = "MOULT_WORKER"

func newMark() string { return rand.Text() }
