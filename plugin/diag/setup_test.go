package diag

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/coredns/caddy"

	"localcache.dev/localcache/internal/api"
	"localcache.dev/localcache/internal/freeport"
	"localcache.dev/localcache/internal/kube"
)

func TestParse(t *testing.T) {
	file := filepath.Join(t.TempDir(), "token")
	if err := os.WriteFile(file, []byte("0123456789abcdef\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	tests := []struct {
		text string
		want func(c *Config) bool
	}{
		{"diag", func(c *Config) bool {
			return c.Listen == nil && c.bounds().Clients == defaultClients && c.redaction() == api.RedactNone
		}},
		{"diag\ndiag", func(*Config) bool { return true }},
		{"diag {\n}", func(*Config) bool { return true }},
		{"diag {\nslow 250ms\n}\ndiag {\nclients 10\nslow 250ms\n}", func(c *Config) bool { return c.Slow == 250*time.Millisecond && c.Clients == 10 }},
		{"diag {\nlisten 127.0.0.1:9257 [::1]:9257 127.0.0.1:9257\naccess open\n}", func(c *Config) bool {
			return fmt.Sprint(c.Listen) == "[127.0.0.1:9257 [::1]:9257]" && c.Access == accessOpen
		}},
		{"diag {\nlisten 0.0.0.0:9257\naccess token " + file + "\n}", func(c *Config) bool { return c.TokenFile == file && c.Access == accessToken }},
		{"diag {\nmetrics pods\n}\ndiag {\nmetrics pods 128\n}", func(c *Config) bool { return c.PodSeries == 128 }},
		{"diag {\nmetrics pods 7\n}", func(c *Config) bool { return c.PodSeries == 7 }},
		{"diag {\nredact clients\npods off\n}", func(c *Config) bool { return c.redaction() == api.RedactClients && c.Pods == podsOffWord }},
	}
	for _, tt := range tests {
		c, err := parse(caddy.NewTestController("dns", tt.text), nowhere)
		if err != nil {
			t.Errorf("%q: %v", tt.text, err)
		} else if !tt.want(c) {
			t.Errorf("%q: got %+v", tt.text, c)
		}
	}
}

func TestParseErrors(t *testing.T) {
	dir := t.TempDir()
	short := filepath.Join(dir, "short")
	if err := os.WriteFile(short, []byte("secret\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for text, want := range map[string]string{
		"diag on":                                                    `no arguments, found "on"`,
		"diag {\ncolour red\n}":                                      `Testfile:2 - Error during parsing: unknown property "colour"`,
		"diag {\nslow\n}":                                            "Testfile:2 - Error during parsing: slow takes one argument, found 0",
		"diag {\nslow fast\n}":                                       "accepted are durations from 1ms to 1m0s",
		"diag {\nslow 2m\n}":                                         "accepted are durations",
		"diag {\nclients 0\n}":                                       "accepted are numbers from 1 to 4096",
		"diag {\nclients 5000\n}":                                    "accepted are numbers from 1 to 4096",
		"diag {\nredact all\n}":                                      "accepted are none, names and clients",
		"diag {\npods on\n}":                                         "accepted are auto and off",
		"diag {\nmetrics\n}":                                         "'metrics pods MAX'",
		"diag {\nmetrics names\n}":                                   "'metrics pods MAX'",
		"diag {\nmetrics pods 0\n}":                                  "'metrics pods MAX'",
		"diag {\nmetrics pods 1025\n}":                               "up to 1024 pods",
		"diag {\nmetrics pods 1 2\n}":                                "'metrics pods MAX'",
		"diag {\nmetrics pods\n}\ndiag {\nmetrics pods 7\n}":         "metrics differs from the one at Testfile:2",
		"diag {\nslow 1s\nslow 1s\n}":                                "slow is there twice, first at Testfile:2",
		"diag {\nslow 1s\n}\ndiag {\nslow 2s\n}":                     "Testfile:5: slow differs from the one at Testfile:2",
		"diag {\nlisten\n}":                                          "listen takes 1 to 8 addresses",
		"diag {\nlisten :9257\n}":                                    "0.0.0.0:9257 for all addresses",
		"diag {\nlisten localhost:9257\n}":                           "an IP address and a port",
		"diag {\nlisten 127.0.0.1:0\n}":                              "an IP address and a port",
		"diag {\nlisten 127.0.0.1\n}":                                "an IP address and a port",
		"diag {\naccess\n}":                                          "'access token FILE', 'access kubernetes' and 'access open'",
		"diag {\naccess kubernetes\n}":                               "Testfile:2 - Error during parsing: access kubernetes: KUBERNETES_SERVICE_HOST and",
		"diag {\naccess kubernetes now\n}":                           "'access token FILE', 'access kubernetes' and 'access open'",
		"diag {\naccess open now\n}":                                 "'access token FILE', 'access kubernetes' and 'access open'",
		"diag {\naccess token token\n}":                              "must be absolute",
		"diag {\naccess token " + filepath.Join(dir, "none") + "\n}": "cannot be read",
		"diag {\naccess token " + short + "\n}":                      "6 bytes: at least 16",
	} {
		_, err := parse(caddy.NewTestController("dns", text), nowhere)
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: got %v, want %q", text, err, want)
		}
	}
}

// TestValidate: what belongs together may stand in several blocks, so it is looked at when all are read.
func TestValidate(t *testing.T) {
	whole()
	for block, want := range map[string]string{
		"diag {\nlisten 127.0.0.1:9257\n}":        "Corefile:4: listen needs an access rule",
		"diag {\naccess open\n}":                  "Corefile:4: access is for an address",
		"diag {\nmetrics pods\npods off\n}":       "Corefile:4: metrics pods needs to know which pods there are, and 'pods off' at Corefile:5",
		"diag {\nredact clients\nmetrics pods\n}": "Corefile:5: metrics pods shows the names of pods, and 'redact clients' at Corefile:4",
	} {
		inst, err := caddy.Start(input(freeport.Text(t), block+"\ntestanswer"))
		if err == nil {
			stop(t, inst)
		}
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: got %v, want %q", block, err, want)
		}
	}
	two := func(first, second string) caddy.Input {
		one := string(input(freeport.Text(t), first+"\ntestanswer").Body())
		return caddy.CaddyfileInput{Filepath: "Corefile", ServerTypeName: "dns", Contents: []byte(one + string(input(freeport.Text(t), second+"\ntestanswer").Body()))}
	}
	inst, err := caddy.Start(two("diag {\nlisten 127.0.0.1:"+freeport.Text(t)+"\n}", "diag {\naccess open\n}"))
	if err != nil {
		t.Fatal(err)
	}
	stop(t, inst)
	if inst, err = caddy.Start(two("diag {\nclients 5\n}", "diag {\nclients 6\n}")); err == nil {
		stop(t, inst)
		t.Fatal("two blocks want different numbers of clients for the one node")
	}
	if !strings.Contains(err.Error(), "clients differs from the one at") {
		t.Errorf("got %v", err)
	}
}

// FuzzListen: what is taken for an address is one, and is the same when it is read again.
func FuzzListen(f *testing.F) {
	for _, s := range []string{"127.0.0.1:9257", "[::1]:1", "::1:1", "fe80::1%eth0:53", "]:1", ":", ""} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		a, err := parseListen(s)
		if err != nil {
			return
		}
		if b, err := parseListen(a); err != nil || a != b {
			t.Errorf("%q is %q, which is %q, %v", s, a, b, err)
		}
	})
}

// nowhere is where no cluster is.
func nowhere() (kube.Config, error) { return kube.InCluster(func(string) string { return "" }) }
