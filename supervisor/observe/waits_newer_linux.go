//go:build arm64 || riscv64 || loong64

package observe

var olderWaits map[int]wait
