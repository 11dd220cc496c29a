//go:build !linux

package supervisor

// notifySocket: sd_notify is Linux's, and its senders cannot be told elsewhere.
type notifySocket struct{}

type notification struct {
	pid    int
	uid    int
	fields map[string]string
}

func listenNotify(*worker) (*notifySocket, error) { return nil, nil }

func (n *notifySocket) environ() []string { return nil }
func (n *notifySocket) close()            {}
