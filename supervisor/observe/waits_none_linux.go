//go:build !amd64 && !arm64 && !riscv64 && !loong64

package observe

// waits is nil: the system calls of this architecture are not known here, so a
// sleeping thread says nothing.
var waits map[int]wait
