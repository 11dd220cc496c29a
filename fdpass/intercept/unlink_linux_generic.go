//go:build linux && !amd64

package intercept

// oldUnlink is no system call of the architectures that began with unlinkat(2).
var oldUnlink int64 = -1
