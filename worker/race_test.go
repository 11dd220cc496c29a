//go:build race

package worker

func init() { slowed = true }
