// Moult keeps a server's sockets while the processes behind them come and go.
// README.md says what for and how; supervisor is where to begin reading.
package main

import (
	"os"

	"github.com/moult/moult/fdpass/start"
	"github.com/moult/moult/supervisor/cli"
)

// version is set by the linker: -X main.version=v1.2.3.
var version = ""

func main() {
	start.RunShimIfAsked()
	os.Exit(cli.Main(os.Args, version))
}
