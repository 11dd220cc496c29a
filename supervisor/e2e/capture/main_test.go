//go:build linux

package capture

import (
	"testing"

	"github.com/moult/moult/supervisor/e2e/testkit"
)

func TestMain(m *testing.M) { testkit.Main(m) }
