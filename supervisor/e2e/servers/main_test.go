//go:build linux

package servers

import (
	"testing"

	"github.com/moult/moult/supervisor/e2e/testkit"
)

func TestMain(m *testing.M) { testkit.Main(m) }
