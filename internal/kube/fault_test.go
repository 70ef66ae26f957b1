package kube

import (
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"localcache.dev/localcache/internal/kube/kubetest"
)

// Slices come, change and go; other Services and namespaces are not looked at; bookmarks say nothing new.
func TestFollow(t *testing.T) {
	s := newServer(t)
	setSlice(s, "kube-dns-b", "10.0.0.2", "10.0.0.1")
	s.Set(kubetest.Slices, kubetest.Slice("kube-system", "metrics", "metrics-a", kubetest.Ready("10.9.9.9")...))
	s.Set(kubetest.Slices, kubetest.Slice("other", "kube-dns", "kube-dns-a", kubetest.Ready("10.9.9.9")...))
	f := follow(t, clientOf(t, s))
	f.want("10.0.0.1", "10.0.0.2")
	<-f.w.Changed()
	setSlice(s, "kube-dns-6", "fd00::1")
	f.want("10.0.0.1", "10.0.0.2", "fd00::1")
	s.Bookmark()
	setSlice(s, "kube-dns-b", "10.0.0.3")
	f.want("10.0.0.3", "fd00::1")
	setSlice(s, "kube-dns-c", "10.0.0.4", "10.0.0.3")
	f.want("10.0.0.3", "10.0.0.4", "fd00::1")
	s.Delete(kubetest.Slices, "kube-system", "kube-dns-b")
	setSlice(s, "kube-dns-c", "10.0.0.4")
	f.want("10.0.0.4", "fd00::1")
	if st := f.w.State(); !st.Synced || !st.Connected || st.Failures != 0 || st.Objects != 2 || time.Since(st.LastSync) > time.Minute {
		t.Errorf("state %+v", st)
	}
	var lists, watches int
	for _, r := range s.Requests() {
		if r.Proto != "HTTP/2.0" {
			t.Errorf("%s over %s", r.Path, r.Proto)
		}
		if r.Watch {
			watches++
			if !strings.Contains(r.Query, "allowWatchBookmarks=true") {
				t.Errorf("watch %s", r.Query)
			}
		} else {
			lists++
		}
	}
	if lists != 1 || watches != 1 {
		t.Errorf("%d lists and %d watches, want one each", lists, watches)
	}
}

// Each fault that a list can meet, and afterwards a server that is well again.
func TestListFaults(t *testing.T) {
	body := func(code int, text string) kubetest.Fault {
		return func(w http.ResponseWriter, _ *http.Request) bool {
			w.WriteHeader(code)
			fmt.Fprint(w, text)
			return true
		}
	}
	endless := func(start, more string) kubetest.Fault {
		return func(w http.ResponseWriter, r *http.Request) bool {
			fmt.Fprint(w, start)
			block := strings.Repeat(more, 4096)
			for r.Context().Err() == nil {
				if _, err := io.WriteString(w, block); err != nil {
					break
				}
			}
			return true
		}
	}
	for name, c := range map[string]struct {
		fault kubetest.Fault
		want  string // in the log
	}{
		"500":              {body(500, "oops"), "the API server says 500 Internal Server Error"},
		"500 and a flood":  {func(w http.ResponseWriter, r *http.Request) bool { w.WriteHeader(500); return endless("", "x")(w, r) }, "500"},
		"redirection":      {body(302, ""), "302 Found"},
		"HTML":             {body(200, "<html>login</html>"), "not what was asked for"},
		"empty":            {body(200, ""), "unexpected EOF"},
		"cut in an object": {body(200, `{"metadata":{"resourceVersion":"1"},"items":[{"metadata":{"name":"a"`), "unexpected EOF"},
		"another kind":     {body(200, `{"kind":"Status","status":"Success"}`), "without resourceVersion"},
		"wrong types":      {body(200, `{"metadata":{"resourceVersion":"1"},"items":[{"endpoints":"none"}]}`), "string in place of endpoints"},
		"no name":          {body(200, `{"metadata":{"resourceVersion":"1"},"items":[{}]}`), "without a name"},
		"items is text":    {body(200, `{"metadata":{"resourceVersion":"1"},"items":"none"}`), "items is none"},
		"a huge string":    {endless(`{"kind":"`, "x"), "more than an answer can have"},
		"many objects":     {endless(`{"items":[{"metadata":{"name":"a"}}`, `,{"metadata":{"name":"a"}}`), "more than 4096 objects"},
		"reset": {func(http.ResponseWriter, *http.Request) bool { panic(http.ErrAbortHandler) },
			"list endpointslices.discovery.k8s.io in namespace kube-system at 127.0.0.1"},
		"silent": {func(_ http.ResponseWriter, r *http.Request) bool { <-r.Context().Done(); return true }, "timeout"},
		"stuck in the middle": {func(w http.ResponseWriter, r *http.Request) bool {
			fmt.Fprint(w, `{"items":[`)
			_ = http.NewResponseController(w).Flush()
			<-r.Context().Done()
			return true
		}, "deadline exceeded"},
		"pages without end": {func(w http.ResponseWriter, r *http.Request) bool {
			fmt.Fprint(w, `{"metadata":{"resourceVersion":"1","continue":"x"},"items":[]}`)
			return true
		}, "pages"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := newServer(t)
			setSlice(s, "kube-dns-a", "10.0.0.1")
			s.SetFault(c.fault)
			client := clientOf(t, s)
			client.time.list = 5 * time.Second // a flood takes its time under the race detector
			if strings.Contains(c.want, "deadline") {
				client.time.list = 300 * time.Millisecond
			}
			f := follow(t, client)
			eventually(t, "the fault is logged", func() error {
				if f.log.count(c.want) == 0 {
					return fmt.Errorf("%q", f.log.all())
				}
				return nil
			})
			if st := f.w.State(); st.Synced || st.Failures == 0 || st.LastError == "" {
				t.Errorf("state %+v", st)
			}
			if f.log.count("nothing is known yet") == 0 {
				t.Errorf("log %q", f.log.all())
			}
			s.SetFault(nil)
			f.want("10.0.0.1")
			eventually(t, "that it is well again is logged", func() error {
				if f.log.count("in order again") != 1 {
					return fmt.Errorf("log %q", f.log.all())
				}
				return nil
			})
		})
	}
}

// Each fault of a watch, at first and in the middle. Known records stay, and changes during the fault are followed
// after it.
func TestWatchFaults(t *testing.T) {
	stream := func(text string) kubetest.Fault {
		return func(w http.ResponseWriter, r *http.Request) bool {
			if r.URL.Query().Get("watch") == "" {
				return false
			}
			fmt.Fprint(w, text)
			return true
		}
	}
	code := func(n int) kubetest.Fault {
		return func(w http.ResponseWriter, r *http.Request) bool {
			if r.URL.Query().Get("watch") == "" {
				return false
			}
			kubetest.Status(w, n, "Reason", "of the test")
			return true
		}
	}
	const moved = `{"type":"MODIFIED","object":{"metadata":{"namespace":"kube-system","name":"kube-dns-a","resourceVersion":"7"},"addressType":"IPv4","endpoints":[{"addresses":["10.0.0.9"]}],"ports":[{"name":"dns","protocol":"UDP","port":53},{"name":"dns-tcp","port":53}]}}`
	for name, c := range map[string]struct {
		fault  kubetest.Fault
		relist bool
		quiet  bool // an end in good order is no failure
	}{
		"ends at once":     {fault: stream(""), quiet: true},
		"410":              {fault: code(410), relist: true},
		"410 in an event":  {fault: stream(`{"type":"ERROR","object":{"code":410}}`), relist: true},
		"500 in an event":  {fault: stream(`{"type":"ERROR","object":{"code":500,"message":"etcd"}}`)},
		"ERROR with junk":  {fault: stream(`{"type":"ERROR","object":[]}`), relist: true},
		"no JSON":          {fault: stream("garbage\n"), relist: true},
		"unknown type":     {fault: stream(`{"type":"RENAMED","object":{}}`), relist: true},
		"no version":       {fault: stream(`{"type":"ADDED","object":{"metadata":{"name":"x"}}}`), relist: true},
		"no name":          {fault: stream(`{"type":"ADDED","object":{"metadata":{"resourceVersion":"7"}}}`), relist: true},
		"object is a text": {fault: stream(`{"type":"ADDED","object":"x"}`), relist: true},
		"half an event":    {fault: stream(moved[:80])},
		"a huge event":     {fault: stream(`{"type":"ADDED","object":{"x":"` + strings.Repeat("x", maxObject+1) + `"}}`), relist: true},
		"500":              {fault: code(500)},
		"429":              {fault: code(429)},
		"403":              {fault: code(403)},
		"reset": {fault: func(w http.ResponseWriter, r *http.Request) bool {
			if r.URL.Query().Get("watch") == "" {
				return false
			}
			_ = http.NewResponseController(w).Flush()
			panic(http.ErrAbortHandler)
		}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := newServer(t)
			setSlice(s, "kube-dns-a", "10.0.0.1")
			var met atomic.Int32
			s.SetFault(func(w http.ResponseWriter, r *http.Request) bool {
				if r.URL.Query().Get("watch") != "" {
					met.Add(1)
				}
				return c.fault(w, r)
			})
			client := clientOf(t, s)
			client.time.list, client.time.header = 10*time.Second, 10*time.Second
			f := follow(t, client)
			eventually(t, "the fault is met three times", func() error {
				if n := met.Load(); n < 3 {
					return fmt.Errorf("%d times", n)
				}
				return nil
			})
			f.want("10.0.0.1")
			if st := f.w.State(); c.quiet == (st.Failures > 0) {
				t.Errorf("state %+v", st)
			}
			lists := 0
			for _, r := range s.Requests() {
				if !r.Watch {
					lists++
				}
			}
			if c.relist != (lists > 1) {
				t.Errorf("%d lists", lists)
			}
			setSlice(s, "kube-dns-a", "10.0.0.2")
			s.SetFault(nil)
			f.want("10.0.0.2")
		})
	}
}

// A version that is too old is followed by a list no older than it; one that the server has never heard of, as
// after a restore of etcd, by a list of the newest.
func TestVersions(t *testing.T) {
	s := newServer(t)
	setSlice(s, "kube-dns-a", "10.0.0.1")
	f := follow(t, clientOf(t, s))
	f.want("10.0.0.1")
	setSlice(s, "kube-dns-a", "10.0.0.2")
	f.want("10.0.0.2")
	s.Forget()
	s.Cut()
	setSlice(s, "kube-dns-a", "10.0.0.3")
	f.want("10.0.0.3")

	older := kubetest.New(nil, "secret")
	t.Cleanup(older.Close)
	setSlice(older, "kube-dns-a", "10.0.0.4")
	older.Forget()
	s.SetFault(func(w http.ResponseWriter, r *http.Request) bool {
		q := r.URL.Query()
		if q.Get("watch") != "" {
			kubetest.Status(w, http.StatusGone, "Expired", "too old")
			return true
		}
		if q.Get("resourceVersion") == "" {
			return false
		}
		w.WriteHeader(http.StatusGatewayTimeout)
		fmt.Fprint(w, `{"kind":"Status","code":504,"details":{"causes":[{"reason":"ResourceVersionTooLarge"}]}}`)
		return true
	})
	s.Cut()
	setSlice(s, "kube-dns-a", "10.0.0.5")
	f.want("10.0.0.5")
	var queries []string
	for _, r := range s.Requests() {
		if !r.Watch {
			queries = append(queries, r.Query)
		}
	}
	has := func(part string) bool {
		return slices.ContainsFunc(queries, func(q string) bool { return strings.Contains("&"+q+"&", part) })
	}
	if !has("&resourceVersion=0&") || !has("resourceVersionMatch=NotOlderThan") ||
		!slices.ContainsFunc(queries, func(q string) bool { return !strings.Contains(q, "resourceVersion") }) {
		t.Errorf("lists %q", queries)
	}
}

// A list of many pages, one of which expires, is used completely or not at all.
func TestPages(t *testing.T) {
	s := newServer(t)
	s.PageSize = 2
	for i := range 7 {
		setSlice(s, fmt.Sprintf("kube-dns-%d", i), fmt.Sprintf("10.0.0.%d", i+1))
	}
	var expired atomic.Int32
	s.SetFault(func(w http.ResponseWriter, r *http.Request) bool {
		q := r.URL.Query()
		if q.Get("continue") != "" && q.Get("resourceVersion") != "" {
			t.Error("a page was asked for by version and token")
		}
		if q.Get("continue") == "kube-system/kube-dns-3" && expired.Add(1) == 1 {
			kubetest.Status(w, http.StatusGone, "Expired", "the token has expired")
			return true
		}
		return false
	})
	c := clientOf(t, s)
	f := &following{t: t, log: &testLog{}}
	f.w = c.WatchEndpoints(kubeDNS, "n1", f.log)
	f.w.reflect.most = 3000 // as many pages as that takes
	running(t, f.w.Run)
	f.want("10.0.0.1", "10.0.0.2", "10.0.0.3", "10.0.0.4", "10.0.0.5", "10.0.0.6", "10.0.0.7")
	if expired.Load() != 2 {
		t.Errorf("the page was asked for %d times, want a second list", expired.Load())
	}
}

// More objects than the bound are counted, and no reason to fail.
func TestBound(t *testing.T) {
	s := newServer(t)
	setSlice(s, "kube-dns-a", "10.0.0.1")
	setSlice(s, "kube-dns-b", "10.0.0.2")
	f := &following{t: t, log: &testLog{}}
	f.w = clientOf(t, s).WatchEndpoints(kubeDNS, "n1", f.log)
	f.w.reflect.most = 1
	running(t, f.w.Run)
	f.want("10.0.0.1")
	setSlice(s, "kube-dns-c", "10.0.0.3")
	eventually(t, "both are counted", func() error {
		if st := f.w.State(); st.Dropped != 2 || st.Objects != 1 {
			return fmt.Errorf("state %+v", st)
		}
		return nil
	})
	s.Delete(kubetest.Slices, "kube-system", "kube-dns-a")
	setSlice(s, "kube-dns-b", "10.0.0.4")
	f.want("10.0.0.4")
}
