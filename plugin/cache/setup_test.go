package cache

import (
	"fmt"
	"reflect"
	"strconv"
	"strings"
	"testing"

	"github.com/coredns/caddy"
	"github.com/coredns/coredns/core/dnsserver"
	"github.com/coredns/coredns/plugin"

	"localcache.dev/localcache/internal/stock"
)

// TestStockTables takes the Corefile snippets out of the tests of the CoreDNS release that go.mod names, has both parsers
// read them, and compares what they understood.
func TestStockTables(t *testing.T) {
	dir, err := stock.Dir()
	if err != nil {
		t.Fatal(err)
	}
	cases, err := stock.Cases(dir, "plugin/cache/setup_test.go")
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range cases {
		if !strings.HasPrefix(c.Input, "cache") {
			c.Input = "cache {\n" + c.Input + "\n}"
		}
		t.Run(strconv.Itoa(c.Line), func(t *testing.T) {
			theirs, err := coreDNS(c.Input)
			if (err != nil) != c.Wrong {
				t.Fatalf("%q: CoreDNS says %v", c.Input, err)
			}
			cfg, err := parse(caddy.NewTestController("dns", c.Input))
			switch {
			case (err != nil) != c.Wrong:
				t.Fatalf("%q: %v", c.Input, err)
			case err != nil && !strings.Contains(err.Error(), "Testfile:"):
				t.Errorf("%q: %v does not say where", c.Input, err)
			case err == nil:
				if want, got := summary(theirs), ours(cfg); got != want {
					t.Errorf("%q is read as\n%s\nand by CoreDNS as\n%s", c.Input, got, want)
				}
			}
		})
	}
	// Fewer would mean that the tables are not found any more.
	if len(cases) < 80 {
		t.Errorf("%d cases found, want at least 80", len(cases))
	}
}

// coreDNS is CoreDNS's cache after its own setup.
func coreDNS(input string) (plugin.Handler, error) {
	setup, err := caddy.DirectiveAction("dns", "cache")
	if err != nil {
		return nil, err
	}
	c := caddy.NewTestController("dns", input)
	if err := setup(c); err != nil {
		return nil, err
	}
	return dnsserver.GetConfig(c).Plugin[0](nil), nil
}

// summary reads CoreDNS's options, which it does not export.
func summary(h plugin.Handler) string {
	v := reflect.ValueOf(h).Elem()
	var b strings.Builder
	for _, name := range []string{"pcap", "pttl", "minpttl", "pexcept", "ncap", "nttl", "minnttl", "nexcept", "failttl", "prefetch", "duration",
		"percentage", "staleUpTo", "verifyStale", "verifyStaleTimeout", "staleTTL", "staleRecheck", "preferPositive", "keepttl", "Zones"} {
		fmt.Fprintf(&b, "%s=%v ", name, v.FieldByName(name))
	}
	return b.String()
}

func ours(c *Config) string {
	s := &c.Stale
	return fmt.Sprintf("pcap=%d pttl=%d minpttl=%d pexcept=%v ncap=%d nttl=%d minnttl=%d nexcept=%v failttl=%d prefetch=%d duration=%d "+
		"percentage=%d staleUpTo=%d verifyStale=%t verifyStaleTimeout=%d staleTTL=%d staleRecheck=%d preferPositive=%t keepttl=%t Zones=%v ",
		c.Success.Capacity, c.Success.MaxTTL, c.Success.MinTTL, c.Success.Except, c.Denial.Capacity, c.Denial.MaxTTL, c.Denial.MinTTL, c.Denial.Except,
		c.ServFail, c.Prefetch.Amount, c.Prefetch.Gap, c.Prefetch.Percentage, s.For, s.Verify, s.VerifyTimeout, s.TTL, s.Recheck, s.PreferPositive,
		c.KeepTTL, c.Zones)
}

// What is wrong says where, and what would be right.
func TestWrongStanzas(t *testing.T) {
	for input, words := range map[string]string{
		"cache {\n sucess 10\n}":                          "Testfile:2 - Error during parsing: unknown property \"sucess\"; known are: success, denial",
		"cache {\n success ten\n}":                        `Testfile:2 - Error during parsing: "ten" is not a number`,
		"cache {\n success -1\n}":                         "the capacity -1 is negative",
		"cache {\n success 10 20 5 5\n}":                  "Testfile:2",
		"cache {\n denial 10 0\n}":                        "cache TTL can not be zero or negative: 0",
		"cache {\n denial 10 5 -1\n}":                     "cache min TTL can not be negative: -1",
		"cache 0":                                         "Testfile:1 - Error during parsing: cache TTL can not be zero or negative: 0",
		"cache -99999999999999":                           "cache TTL can not be zero or negative",
		"cache\ncache":                                    "Testfile:2",
		"cache {\n prefetch\n}":                           "Testfile:2",
		"cache {\n prefetch 1 1m 10\n}":                   `last character of percentage should be`,
		"cache {\n prefetch 1 1m 95%\n}":                  "percentage should fall in range [10, 90]: 95",
		"cache {\n serve_stale 20\n}":                     "invalid serve_stale duration",
		"cache {\n serve_stale 1h maybe\n}":               "invalid value for serve_stale refresh mode: maybe",
		"cache {\n serve_stale 1h immediate 100ms\n}":     "whole number of seconds",
		"cache {\n serve_stale_policy prefer_positive\n}": "requires serve_stale",
		"cache {\n servfail 6m\n}":                        "over 5 minutes",
		"cache {\n disable all\n}":                        `must be "success" or "denial"`,
		"cache {\n keepttl yes\n}":                        "Testfile:2",
	} {
		_, err := parse(caddy.NewTestController("dns", input))
		if err == nil || !strings.Contains(err.Error(), words) {
			t.Errorf("%q: %v, want an error that says %q", input, err, words)
		}
	}
}
