//go:build !linux

package cli

// monotonic: there is no systemd here to compare it.
func monotonic() (int64, bool) { return 0, false }
