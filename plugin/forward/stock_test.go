package forward

import (
	"maps"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/coredns/caddy"

	"localcache.dev/localcache/internal/stock"
)

// onPurpose are the inputs of CoreDNS's own tables that end otherwise here, with the words that our
// answer has to hold. doc/forward.md gives the reasons.
var onPurpose = map[string]string{
	"forward . https://127.0.0.1 \n":   "not built into localcache's forward",
	"forward . quic://127.0.0.1 \n":    "not built into localcache's forward",
	"forward . https://1.1.1.1/ \n":    "not built into localcache's forward",
	"quic://127.0.0.1%doq.example:853": "not built into localcache's forward",
}

// TestStockTables takes the tables of Corefile snippets out of the tests of the CoreDNS release that
// go.mod names, and holds our parser to them.
func TestStockTables(t *testing.T) {
	dir, err := stock.Dir()
	if err != nil {
		t.Fatal(err)
	}
	cases := 0
	for _, name := range []string{"setup_test.go", "setup_policy_test.go", "resolve_test.go"} {
		table, err := stock.Cases(dir, filepath.Join("plugin", "forward", name))
		if err != nil {
			t.Fatal(err)
		}
		invalid, err := stock.Strings(dir, filepath.Join("plugin", "forward", name), "forward ")
		if err != nil {
			t.Fatal(err)
		}
		for _, sc := range invalid { // testsInvalid
			sc.Wrong = true
			table = append(table, sc)
		}
		for _, sc := range table {
			if !strings.HasPrefix(sc.Input, "forward ") {
				continue
			}
			cases++
			t.Run(name+":"+strconv.Itoa(sc.Line), func(t *testing.T) {
				p := newTestPlugin(t)
				_, err := p.parse(caddy.NewTestController("dns", sc.Input))
				for part, words := range onPurpose {
					if strings.Contains(sc.Input, part) {
						if err == nil || !strings.Contains(err.Error(), words) {
							t.Fatalf("%q: error %v, want one that says %q", sc.Input, err, words)
						}
						return
					}
				}
				switch {
				case sc.Wrong && err == nil:
					t.Errorf("%q parses; CoreDNS refuses it", sc.Input)
				case !sc.Wrong && err != nil:
					t.Errorf("%q: %v; CoreDNS takes it", sc.Input, err)
				case sc.Wrong && !strings.Contains(err.Error(), sc.Words):
					t.Errorf("%q: %v\nCoreDNS says %q", sc.Input, err, sc.Words)
				}
			})
		}
	}
	// Fewer would mean that the tables are not found any more.
	if cases < 80 {
		t.Errorf("%d cases found, want at least 80", cases)
	}
}

// stockMetrics are the full names of the metrics that CoreDNS's forward declares.
func stockMetrics(t *testing.T) []string {
	t.Helper()
	dir, err := stock.Dir()
	if err != nil {
		t.Fatal(err)
	}
	metrics, err := stock.Metrics(dir, "plugin/forward/metrics.go", "plugin/pkg/proxy/metrics.go")
	if err != nil {
		t.Fatal(err)
	}
	if len(metrics) != 6 {
		t.Fatalf("CoreDNS declares %v; 6 metrics are known", metrics)
	}
	return slices.Collect(maps.Keys(metrics))
}
