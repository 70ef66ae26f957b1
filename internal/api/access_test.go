package api

import (
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

func TestToken(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "token")
	put := func(text string) {
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	for text, want := range map[string]string{"": "at least 16", "too short\n": "at least 16", strings.Repeat("x", maxToken+1): "too long"} {
		put(text)
		if _, err := NewToken(file); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%d bytes: got %v, want %q", len(text), err, want)
		}
	}
	if _, err := NewToken(filepath.Join(dir, "none")); err == nil {
		t.Error("a file that is not there was read")
	}
	put("  0123456789abcdef\n")
	token, err := NewToken(file)
	if err != nil {
		t.Fatal(err)
	}
	code := func(authorization ...string) int {
		r := httptest.NewRequest(http.MethodGet, "/statusz", nil)
		for _, a := range authorization {
			r.Header.Add("Authorization", a)
		}
		if e := token.check(r, RoleAggregates); e != nil {
			return e.Code
		}
		return 200
	}
	for authorization, want := range map[string]int{
		"Bearer 0123456789abcdef": 200, "bearer  0123456789abcdef ": 200, "Bearer 0123456789abcdee": 401, "Bearer": 401, "Bearer ": 401,
		"Basic 0123456789abcdef": 401, "0123456789abcdef": 401, "": 401,
	} {
		if got := code(authorization); got != want {
			t.Errorf("%q: %d, want %d", authorization, got, want)
		}
	}
	if code() != 401 || code("Bearer wrong", "Bearer 0123456789abcdef") != 401 {
		t.Error("let in without the token, or with two headers of which the first is wrong")
	}
	// The file is read again after a while.
	put("fedcba9876543210")
	if h, err := token.current(time.Now()); err != nil || h == [32]byte{} {
		t.Errorf("%v", err)
	}
	if _, err := token.current(time.Now().Add(tokenAge)); err != nil || code("Bearer fedcba9876543210") != 200 || code("Bearer 0123456789abcdef") != 401 {
		t.Errorf("the token has not changed: %v", err)
	}
	if err := os.Remove(file); err != nil {
		t.Fatal(err)
	}
	if _, err := token.current(time.Now().Add(2 * tokenAge)); err == nil || code("Bearer fedcba9876543210") != 503 {
		t.Errorf("without a file somebody is let in: %v", err)
	}
}

// TestSite checks that a browser that another site directs here gets nothing, whatever it sends.
func TestSite(t *testing.T) {
	h := world(t, nil).Handler(Open())
	for _, tt := range []struct {
		host   string
		header map[string]string
		want   int
	}{
		{"127.0.0.1:9257", nil, 200}, {"[::1]:9257", nil, 200}, {"localhost:9257", nil, 200}, {"LOCALHOST", nil, 200}, {"node-1:9257", nil, 200}, {"10.0.0.1", nil, 200},
		{"evil.example:9257", nil, 403}, {"127.0.0.1.evil.example", nil, 403}, {"", nil, 403}, {"localhost.evil.example", nil, 403},
		{"127.0.0.1:9257", map[string]string{"Origin": "http://127.0.0.1:9257"}, 200},
		{"127.0.0.1:9257", map[string]string{"Origin": "http://evil.example"}, 403},
		{"127.0.0.1:9257", map[string]string{"Origin": "null"}, 403},
		{"127.0.0.1:9257", map[string]string{"Origin": ""}, 403},
		{"127.0.0.1:9257", map[string]string{"Origin": "http://127.0.0.1:80"}, 403},
		{"127.0.0.1:9257", map[string]string{"Sec-Fetch-Site": "cross-site"}, 403},
		{"127.0.0.1:9257", map[string]string{"Sec-Fetch-Site": "same-site"}, 403},
		{"127.0.0.1:9257", map[string]string{"Sec-Fetch-Site": "none"}, 200},
	} {
		r := httptest.NewRequest(http.MethodGet, "/api/v1/summary", nil)
		r.Host = tt.host
		for k, v := range tt.header {
			r.Header.Set(k, v)
		}
		w := httptest.NewRecorder()
		h.ServeHTTP(w, r)
		if w.Code != tt.want {
			t.Errorf("host %q, %v: %d, want %d", tt.host, tt.header, w.Code, tt.want)
		}
		if w.Header().Get("Access-Control-Allow-Origin") != "" || w.Header().Get("Cache-Control") != "no-store" || w.Header().Get("X-Content-Type-Options") != "nosniff" {
			t.Errorf("headers %v", w.Header())
		}
	}
}
