//go:build !linux

package worker

func (w *Worker) notifyReloading() {}
