package api

import (
	"net/url"
	"strings"
	"testing"
)

// TestCheckName checks that malformed names are refused, since a misspelt filter must not look like one that matches
// nothing.
func TestCheckName(t *testing.T) {
	label := strings.Repeat("a", 63)
	for name, valid := range map[string]bool{
		".": true, "example.org": true, "example.org.": true, "_dns._udp.example.org": true, `a\.b.example`: true, `a\..example`: true, `a\046\092.example`: true,
		"bad..name": false, ".org": false, "..": false, `a\`: false, label: true, label + "a": false, strings.Repeat(`\255`, 63): true, strings.Repeat(`\255`, 64): false,
		strings.Repeat(label+".", 3) + label[:61]: true, strings.Repeat(label+".", 3) + label[:62]: false,
	} {
		if err := checkName(name); (err == nil) != valid {
			t.Errorf("%q: got %v, want %v", name, err, valid)
		}
	}
}

func FuzzCheckName(f *testing.F) {
	f.Add(`a\.b\092.example.`)
	f.Add(`\`)
	f.Fuzz(func(t *testing.T, name string) {
		if err := checkName(name); err == nil && !strings.Contains(name, `\`) && (strings.Contains(name, "..") || len(name) > 254) {
			t.Errorf("%q is taken for a name", name)
		}
	})
}

// TestCheckParameter checks that a check before a request gives the same result as the request.
func TestCheckParameter(t *testing.T) {
	for _, e := range endpoints {
		for _, p := range []string{"window", "by", "limit", "name", "rcode", "outcome", "minDuration", "since", "namespace", "nothing"} {
			for _, v := range []string{"", "5m", "1h", "-1s", "queries", "failures", "0", "7", "2049", "bad..name", "SERVFAIL", "timeout", "-7", strings.Repeat("9", 600)} {
				_, refused := NewGather(e.path, url.Values{p: {v}})
				if err := CheckParameter(e.path, p, v); (err == nil) != (refused == nil) {
					t.Errorf("%s?%s=%s: got %v, want %v", e.path, p, v, err, refused)
				}
			}
		}
	}
	if err := CheckParameter("/nothing", "by", "queries"); err == nil {
		t.Error("nothing is at /nothing")
	}
}
