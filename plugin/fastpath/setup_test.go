package fastpath

import (
	"strings"
	"testing"

	"github.com/coredns/caddy"
)

func TestParse(t *testing.T) {
	for text, want := range map[string]config{
		"fastpath":                    {where: "Testfile:1", entries: defaultEntries},
		"fastpath 7":                  {where: "Testfile:1", entries: 7},
		"fastpath off":                {where: "Testfile:1", entries: defaultEntries, off: true},
		"fastpath\nfastpath 9":        {where: "Testfile:2", entries: 9},
		"fastpath 9\n\n\nfastpath":    {where: "Testfile:4", entries: defaultEntries},
		"fastpath off\nfastpath 1000": {where: "Testfile:2", entries: 1000},
	} {
		got, err := parse(caddy.NewTestController("dns", text))
		if err != nil || got != want {
			t.Errorf("%q: %+v, %v", text, got, err)
		}
	}
	for text, want := range map[string]string{
		"fastpath 0":                `Testfile:1 - Error during parsing: fastpath "0": accepted are a number of answers from 1 to 1048576, and off`,
		"fastpath 1048577":          "accepted are",
		"\nfastpath on":             "Testfile:2 - Error",
		"fastpath 1 2":              "takes one argument at most, found 2",
		"fastpath {\n entries 7\n}": "fastpath has no properties, found \"entries\"",
	} {
		if _, err := parse(caddy.NewTestController("dns", text)); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v", text, err)
		}
	}
}
