package api

import (
	"encoding/base64"
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"strings"
	"testing"
	"time"

	"localcache.dev/localcache/internal/observe"
)

// TestRedactText checks that names and clients' addresses are removed from messages, with the same pseudonyms as
// elsewhere.
func TestRedactText(t *testing.T) {
	s := world(t, nil)
	const up = "192.0.2.53:53"
	for _, tt := range []struct {
		text           string
		names, clients string // the rest; # for a pseudonym
	}{
		{"nothing came within 2.5s", "nothing came within 2.5s", "nothing came within 2.5s"},
		{"read udp 10.0.0.1:3333->192.0.2.53:53: connection refused", "read udp 10.0.0.1:3333->192.0.2.53:53: connection refused", "read udp #->192.0.2.53:53: connection refused"},
		{"read tcp [fd00::1]:3333->[fd00::2]:53: i/o timeout", "read tcp [fd00::1]:3333->[fd00::2]:53: i/o timeout", "read tcp #->#: i/o timeout"},
		{`the answer is for "a.secret.example."`, `the answer is for "#"`, `the answer is for "#"`},
		{"for a.secret.example, not _dns.secret.example:53.", "for #, not #:53.", "for #, not #:53."},
		{"x509: certificate is valid for dns.example, not 192.0.2.53", "x509: certificate is valid for #, not 192.0.2.53", "x509: certificate is valid for #, not 192.0.2.53"},
		{`asked for 1.0.244.10.in-addr.arpa. by 10.244.0.1`, `asked for # by 10.244.0.1`, `asked for # by #`},
		{`sec\.ret\032x.example.org`, `#`, `#`},
		{"CoreDNS v1.15.0 said 4 octets...", "CoreDNS v1.15.0 said 4 octets...", "CoreDNS v1.15.0 said 4 octets..."},
		{"", "", ""},
	} {
		for r, want := range map[Redaction]string{RedactNone: tt.text, RedactNames: tt.names, RedactClients: tt.clients} {
			s.SetRedaction(r)
			got := s.redactText(tt.text, up)
			for strings.Contains(got, "redacted-") {
				i := strings.Index(got, "redacted-")
				got = got[:i] + "#" + got[i+len("redacted-")+12:]
			}
			if got != want {
				t.Errorf("%v: %q is %q, want %q", r, tt.text, got, want)
			}
		}
	}
	s.SetRedaction(RedactClients)
	if got := s.redactText("a.secret.example from 10.244.0.1:5", up); got != s.pseudonym("a.secret.example.")+" from "+s.pseudonym("10.244.0.1") {
		t.Errorf("got %q", got)
	}
}

// TestRedactedEverywhere checks that neither messages of failures nor cursors reveal redacted text, at any endpoint.
func TestRedactedEverywhere(t *testing.T) {
	s := world(t, directory())
	const message = "got an answer for hidden.secret.example. of 10.244.0.7"
	sink := s.options.Upstreams.Sink("192.0.2.99:53", observe.TCP)
	for i := range 3 {
		sink.Begin()
		sink.End(&observe.Exchange{Upstream: "192.0.2.99:53", Start: time.Now().Add(time.Duration(-i) * time.Second), Outcome: observe.BadReply, Attempt: 1, Err: message})
	}
	for i := range 3 {
		q := &observe.Query{
			Client: netip.AddrPortFrom(podAddr(7), 40000+uint16(i)), Name: wire("hidden.secret.example."), Type: 1, Source: observe.FromUpstream, Rcode: 2,
			Received: time.Now().Add(time.Duration(-i-1) * time.Second).UnixNano(), Duration: time.Second,
		}
		trace := new(observe.Trace)
		trace.Add(observe.Step{Upstream: "192.0.2.99:53", Outcome: observe.BadReply, Duration: time.Second, Err: message})
		s.options.Queries.End(s.options.Queries.Begin(q), q, trace)
	}
	h := s.Handler(nil)
	secrets := map[Redaction][]string{RedactNames: {"secret", "cluster.local"}, RedactClients: {"secret", "cluster.local", "10.244.0", "shop", "web-1", `"u1"`}}
	targets := []string{"/api/v1/summary", "/api/v1/upstreams", "/api/v1/pods", "/api/v1/top", "/api/v1/queries", "/api/v1/events", "/statusz",
		"/api/v1/upstreams?limit=1", "/api/v1/pods?limit=1", "/api/v1/pods?limit=1&by=name", "/api/v1/top?limit=1", "/api/v1/queries?limit=1", "/api/v1/events?limit=1"}
	cursors := 0
	for _, r := range []Redaction{RedactNone, RedactNames, RedactClients} {
		s.SetRedaction(r)
		for _, target := range targets {
			w := httptest.NewRecorder()
			h.ServeHTTP(w, httptest.NewRequest(http.MethodGet, target, nil))
			var v struct{ Metadata Metadata }
			if err := json.Unmarshal(w.Body.Bytes(), &v); err != nil || w.Code != 200 {
				t.Fatalf("%s: %d, %v", target, w.Code, err)
			}
			next, err := base64.RawURLEncoding.DecodeString(v.Metadata.Continue)
			if err != nil {
				t.Fatal(err)
			}
			if len(next) > 0 {
				cursors++
			}
			for _, secret := range secrets[r] {
				if strings.Contains(w.Body.String(), secret) || strings.Contains(string(next), secret) {
					t.Errorf("%v: %s tells %q: %s, cursor %q", r, target, secret, w.Body, next)
				}
			}
			if r == RedactNone && target == "/api/v1/events" && !strings.Contains(w.Body.String(), "hidden.secret.example") {
				t.Error("the message is not there: the test would not find it")
			}
		}
	}
	if cursors < 15 {
		t.Errorf("%d cursors were looked at", cursors)
	}
}

// FuzzRedactText checks that a separate address never stays, and that messages without dots and colons are unchanged.
func FuzzRedactText(f *testing.F) {
	f.Add("read udp ", "->192.0.2.53:53")
	f.Add("a.b ", "")
	f.Add(`\000.`, "\xff")
	s := New(Options{Queries: observe.NewQueries(observe.QueriesOptions{}), Upstreams: observe.NewUpstreams(0)})
	s.SetRedaction(RedactClients)
	f.Fuzz(func(t *testing.T, before, after string) {
		got := s.redactText(before+" 10.244.9.9:77 "+after, "192.0.2.53:53")
		if !strings.Contains(before+after, "10.244.9.9") && strings.Contains(got, "10.244.9.9") {
			t.Fatalf("got %q", got)
		}
		if plain := strings.NewReplacer(".", "", ":", "").Replace(before); s.redactText(plain, "192.0.2.53:53") != plain {
			t.Fatalf("%q is %q", plain, s.redactText(plain, "192.0.2.53:53"))
		}
	})
}
