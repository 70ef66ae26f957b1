package diag

import (
	"strings"
	"testing"
)

func TestSumColumn(t *testing.T) {
	const head = "entries  clashres found new invalid ignore delete chainlength insert insert_failed drop early_drop\n"
	const line = "0000000a  00000001 00000000 00000000 0000002a 00000000 00000000 00000003 00000000 0000001f 00000001 00000000\n"
	for _, c := range []struct {
		text string
		want uint64
		ok   bool
	}{
		{head + line + line, 62, true},
		{head, 0, true},
		{head + strings.Replace(line, "0000001f", "ffffffff", 1) + line, 1<<32 - 1 + 31, true},
		{"", 0, false},
		{"entries found\n1 2\n", 0, false},
		{head + "1 2 3\n", 0, false},
		{head + strings.Replace(line, "0000001f", "0x1f", 1), 0, false},
	} {
		if got, err := sumColumn(strings.NewReader(c.text), "insert_failed"); got != c.want || (err == nil) != c.ok {
			t.Errorf("%q: %d, %v", c.text, got, err)
		}
	}
}
