package upstream

import (
	"fmt"
	"os"
	"runtime"
	"strings"
	"testing"
	"time"
)

// TestMain checks that no goroutine outlives the tests.
func TestMain(m *testing.M) {
	code := m.Run()
	if left := goroutinesLeft(); left != "" && code == 0 {
		fmt.Fprintf(os.Stderr, "goroutines are left behind, the first:\n%s\n", left)
		code = 1
	}
	os.Exit(code)
}

// goroutinesLeft waits for the goroutines of this package to end and returns the stack of one that
// does not.
func goroutinesLeft() (stack string) {
	buffer := make([]byte, 4<<20)
	for range 250 {
		stack = ""
		for s := range strings.SplitSeq(string(buffer[:runtime.Stack(buffer, true)]), "\n\n") {
			if strings.Contains(s, "internal/upstream.") && !strings.Contains(s, "goroutinesLeft") {
				stack = s
			}
		}
		if stack == "" {
			return ""
		}
		time.Sleep(20 * time.Millisecond)
	}
	return stack
}
