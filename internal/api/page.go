package api

import (
	"crypto/sha256"
	"embed"
	"encoding/hex"
	"fmt"
	"net/http"
	"strings"
)

//go:embed page
var pageFS embed.FS

// pagePolicy allows the page to load its own files and to ask its own server, nothing else. Scripts cannot turn text
// into markup (https://www.w3.org/TR/trusted-types/), so that a name from a DNS packet always stays text.
const pagePolicy = "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self' data:; " +
	"base-uri 'none'; form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'; trusted-types 'none'"

// pageFile is a file of the page.
type pageFile struct {
	pattern string // of http.ServeMux
	name    string // below page/
	kind    string // Content-Type
	body    []byte
	etag    string
}

var pageFiles = readPage(
	pageFile{pattern: "/{$}", name: "index.html", kind: "text/html; charset=utf-8"},
	pageFile{pattern: "/app.js", name: "app.js", kind: "text/javascript; charset=utf-8"},
	pageFile{pattern: "/views.js", name: "views.js", kind: "text/javascript; charset=utf-8"},
	pageFile{pattern: "/draw.js", name: "draw.js", kind: "text/javascript; charset=utf-8"},
	pageFile{pattern: "/style.css", name: "style.css", kind: "text/css; charset=utf-8"},
	pageFile{pattern: "/icon.svg", name: "icon.svg", kind: "image/svg+xml"},
)

func readPage(files ...pageFile) []pageFile {
	for i := range files {
		f := &files[i]
		body, err := pageFS.ReadFile("page/" + f.name)
		if err != nil {
			panic(fmt.Sprintf("a file of the page is not in the program: %v", err)) // each test finds it
		}
		sum := sha256.Sum256(body)
		f.body, f.etag = body, `"`+hex.EncodeToString(sum[:12])+`"`
	}
	return files
}

// mountPage serves the page and the endpoints that only the page uses. Its files contain no data.
func (s *Server) mountPage(m *mounts, access Access) {
	for _, f := range pageFiles {
		m.handle(f.pattern, RolePublic, func(w http.ResponseWriter, r *http.Request) { s.servePage(w, r, &f) })
	}
	overview := overviewEndpoint(access)
	m.handle(overview.path, overview.role, func(w http.ResponseWriter, r *http.Request) { s.serve(w, r, &overview) })
	m.handle(streamPath, RoleAggregates, func(w http.ResponseWriter, r *http.Request) { s.stream(w, r, access) })
}

func (s *Server) servePage(w http.ResponseWriter, r *http.Request, f *pageFile) {
	h := w.Header()
	// It is asked each time whether the file is still the same: another version of the program has other files.
	h.Set("Cache-Control", "no-cache")
	h.Set("ETag", f.etag)
	h.Set("Content-Security-Policy", pagePolicy)
	h.Set("Referrer-Policy", "no-referrer") // names of clients are in the addresses of views
	h.Set("Cross-Origin-Opener-Policy", "same-origin")
	if matches(r.Header.Get("If-None-Match"), f.etag) {
		s.count.add(f.pattern, http.StatusNotModified)
		w.WriteHeader(http.StatusNotModified)
		return
	}
	s.count.add(f.pattern, http.StatusOK)
	h.Set("Content-Type", f.kind)
	h.Set("Content-Length", fmt.Sprint(len(f.body)))
	_, _ = w.Write(f.body) // a client that left is no error
}

// matches reports whether a list of entity tags contains etag (RFC 9110, section 13.1.2).
func matches(list, etag string) bool {
	for tag := range strings.SplitSeq(list, ",") {
		if tag = strings.TrimSpace(tag); tag == "*" || strings.TrimPrefix(tag, "W/") == etag {
			return true
		}
	}
	return false
}
