package cli

import (
	"context"
	"flag"
	"fmt"
	"io"
	"slices"
	"time"
)

// SocketVariable names the diagnostics socket in the environment, for the cache and those that ask it alike.
const SocketVariable = "LOCALCACHE_SOCKET"

// PrintDefaults writes those flags that which wants, as flag.PrintDefaults does but with two dashes, as people write them.
// One is read too.
func PrintDefaults(w io.Writer, flags *flag.FlagSet, which func(*flag.Flag) bool) {
	flags.VisitAll(func(f *flag.Flag) {
		if !which(f) {
			return
		}
		value, text := flag.UnquoteUsage(f)
		line := "  " + Dashed(f.Name)
		if value != "" {
			line += " " + value
		}
		if !slices.Contains([]string{"", "0", "0s", "false"}, f.DefValue) {
			text += fmt.Sprintf(" (default %s)", f.DefValue)
		}
		fmt.Fprintf(w, "%s\n    \t%s\n", line, text)
	})
}

// AllFlags is for printDefaults.
func AllFlags(*flag.Flag) bool { return true }

// Dashed is a flag as it is written.
func Dashed(name string) string {
	if len(name) == 1 {
		return "-" + name
	}
	return "--" + name
}

// WaitFor waits, unless ctx ends.
func WaitFor(ctx context.Context, d time.Duration) bool {
	select {
	case <-ctx.Done():
		return false
	case <-time.After(d):
		return true
	}
}

// FlagNames returns the names of all flags.
func FlagNames(fs *flag.FlagSet) []string {
	var names []string
	fs.VisitAll(func(f *flag.Flag) { names = append(names, "-"+f.Name) })
	return names
}
