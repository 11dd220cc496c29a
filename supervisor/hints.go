package supervisor

import (
	"os"
	"strings"

	"github.com/moult/moult/fdpass"
)

// Hints says what would make these sockets safer, and can only be set from
// outside.
func Hints(sockets []*fdpass.Socket) []string {
	steered := false
	for _, s := range sockets {
		how, _ := s.How()
		steered = steered || how == fdpass.Steered
	}
	migrate, err := os.ReadFile("/proc/sys/net/ipv4/tcp_migrate_req")
	if !steered || err != nil || strings.TrimSpace(string(migrate)) != "0" {
		return nil
	}
	return []string{"with sysctl net.ipv4.tcp_migrate_req=1 the kernel itself moves what waits for a worker that was killed to another one"}
}
