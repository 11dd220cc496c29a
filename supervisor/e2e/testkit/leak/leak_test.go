package leak

import (
	"strings"
	"testing"
)

func TestLeftFindsWhatIsLeft(t *testing.T) {
	known := Left(nil)
	if len(known) != 0 {
		t.Fatalf("before anything was started:\n%s", known)
	}
	end := make(chan struct{})
	go func() { <-end }()
	left := Left(nil)
	if len(left) != 1 || !strings.Contains(left[0], "TestLeftFindsWhatIsLeft") {
		t.Errorf("left is %q", left)
	}
	if more := Left(left); len(more) != 0 {
		t.Errorf("beside what is known: %q", more)
	}
	close(end)
	if left := Left(nil); len(left) != 0 {
		t.Errorf("at the end: %q", left)
	}
}
