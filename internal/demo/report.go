package demo

import (
	"fmt"
	"io"
	"strings"
	"text/tabwriter"
	"time"
)

// report prints the demo's account and keeps count of its promises.
type report struct {
	w      io.Writer
	kept   int
	broken int
	shown  bool // the verdict is out
}

func (r *report) title(format string, args ...any) {
	fmt.Fprintf(r.w, "\n"+format+"\n", args...)
}

func (r *report) line(format string, args ...any) {
	fmt.Fprintf(r.w, "  "+format+"\n", args...)
}

// promise prints one promise and whether it was kept.
func (r *report) promise(kept bool, format string, args ...any) {
	mark := "ok    "
	if kept {
		r.kept++
	} else {
		r.broken++
		mark = "BROKEN"
	}
	r.line("%s  "+format, append([]any{mark}, args...)...)
}

// table prints rows in aligned columns.
func (r *report) table(rows [][]string) {
	tw := tabwriter.NewWriter(r.w, 0, 0, 2, ' ', 0)
	for _, row := range rows {
		fmt.Fprintln(tw, "  "+strings.TrimRight(strings.Join(row, "\t"), "\t"))
	}
	_ = tw.Flush() // its errors are the writer's, as those of every other line
}

func (r *report) verdict() {
	r.shown = true
	if r.broken == 0 {
		r.title("All %d promises were kept.", r.kept)
		return
	}
	r.title("%d of %d promises were BROKEN.", r.broken, r.kept+r.broken)
}

// round shortens a duration to two or three digits.
func round(d time.Duration) time.Duration {
	for unit := time.Microsecond; unit < time.Second; unit *= 10 {
		if d < 100*unit {
			return d.Round(unit)
		}
	}
	return d.Round(100 * time.Millisecond)
}
