package render

import (
	"fmt"
	"io"
	"os"
	"strings"
	"time"
	"unicode/utf8"

	"golang.org/x/sys/unix"
)

// Table is columns of text as kubectl prints them.
type Table struct {
	Header []string
	rows   [][]string
	marked map[int]bool // rows that report a problem
}

// Add adds a row; marked says that it reports a problem.
func (t *Table) Add(marked bool, cells ...string) {
	if marked {
		if t.marked == nil {
			t.marked = map[int]bool{}
		}
		t.marked[len(t.rows)] = true
	}
	t.rows = append(t.rows, cells)
}

// Print writes the table, with rows that report a problem in colour if w supports it. Text from the network cannot
// control the terminal.
func (t *Table) Print(w io.Writer, colour bool) {
	widths := make([]int, len(t.Header))
	for _, row := range append([][]string{t.Header}, t.rows...) {
		for i, cell := range row {
			row[i] = Printable(cell)
			widths[i] = max(widths[i], utf8.RuneCountInString(row[i]))
		}
	}
	line := func(row []string) string {
		var b strings.Builder
		for i, cell := range row {
			b.WriteString(cell)
			if i < len(row)-1 {
				b.WriteString(strings.Repeat(" ", widths[i]-utf8.RuneCountInString(cell)+3))
			}
		}
		return strings.TrimRight(b.String(), " ")
	}
	fmt.Fprintln(w, line(t.Header))
	for i, row := range t.rows {
		if colour && t.marked[i] {
			fmt.Fprintf(w, "\x1b[31m%s\x1b[0m\n", line(row))
		} else {
			fmt.Fprintln(w, line(row))
		}
	}
}

// Printable returns s with control characters escaped.
func Printable(s string) string {
	return strings.Map(func(r rune) rune {
		if r < ' ' || r >= 0x7f && r < 0xa0 || r == utf8.RuneError {
			return '?'
		}
		return r
	}, s)
}

// Terminal reports whether w is a terminal.
func Terminal(w io.Writer) bool {
	f, ok := w.(*os.File)
	if !ok {
		return false
	}
	_, err := unix.IoctlGetTermios(int(f.Fd()), unix.TCGETS)
	return err == nil
}

// Coloured reports whether colours are wanted (https://no-color.org).
func Coloured(w io.Writer) bool {
	return os.Getenv("NO_COLOR") == "" && os.Getenv("TERM") != "dumb" && Terminal(w)
}

// Short returns a duration in seconds as text of three digits.
func Short(seconds float64) string {
	d := time.Duration(seconds * 1e9)
	switch {
	case d <= 0:
		return "-"
	case d < time.Millisecond:
		return fmt.Sprintf("%dµs", d.Microseconds())
	case d < 10*time.Millisecond:
		return fmt.Sprintf("%.1fms", seconds*1e3)
	case d < time.Second:
		return fmt.Sprintf("%dms", d.Milliseconds())
	case d < time.Minute:
		return fmt.Sprintf("%.1fs", seconds)
	}
	return Age(d)
}

// Age returns a duration as text, in one unit.
func Age(d time.Duration) string {
	switch {
	case d < 0:
		return "0s"
	case d < 2*time.Minute:
		return fmt.Sprintf("%ds", int(d.Seconds()))
	case d < 2*time.Hour:
		return fmt.Sprintf("%dm", int(d.Minutes()))
	case d < 48*time.Hour:
		return fmt.Sprintf("%dh", int(d.Hours()))
	}
	return fmt.Sprintf("%dd", int(d.Hours()/24))
}

// Percent returns part in percent of whole.
func Percent(part, whole uint64) string {
	if whole == 0 {
		return "-"
	}
	return fmt.Sprintf("%.1f%%", 100*float64(part)/float64(whole))
}

// OrDash returns s, or a dash if it is empty.
func OrDash(s string) string {
	if s == "" {
		return "-"
	}
	return s
}
