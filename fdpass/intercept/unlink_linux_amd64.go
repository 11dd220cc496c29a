package intercept

import "golang.org/x/sys/unix"

// oldUnlink is unlink(2), where it exists beside unlinkat(2).
var oldUnlink int64 = unix.SYS_UNLINK
