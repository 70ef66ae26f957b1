package api

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"localcache.dev/localcache/internal/observe"
	"localcache.dev/localcache/internal/pods"
)

// life is a node whose pods come and go, ask, and share few addresses. The diagnostics learn about it late, and
// sometimes not at all for a while.
type life struct {
	rand    *rand.Rand
	now     time.Time
	next    int // UID
	running map[netip.Addr]*mortal
	told    []string            // UIDs of the pods that have an address, so far as is known
	seen    map[string]bool     // and of those that ever had one
	listed  map[string]pods.Pod // what the API server has now
	late    []func()            // what it has, as it will be told, in order
	away    bool                // the API server cannot be asked
	queries *observe.Queries
	pending []func() // queries that wait for their answer
	asked   int
}

type mortal struct {
	uid     string
	started time.Time
}

func (l *life) query(a netip.Addr, m *mortal) {
	q := observe.Query{
		Client: netip.AddrPortFrom(a, uint16(l.rand.IntN(3)+1)), ID: uint16(l.rand.IntN(3)), Name: wire("of-" + m.uid + ".example."), Type: 1,
		Rcode: l.rand.IntN(2) * 2, Received: l.now.UnixNano(),
	}
	l.asked++
	if l.rand.IntN(3) > 0 {
		l.queries.Record(&q)
		return
	}
	q.Source = observe.FromUpstream
	token := l.queries.Begin(&q)
	l.pending = append(l.pending, func() {
		q.Duration = l.now.Sub(time.Unix(0, q.Received))
		l.queries.End(token, &q, nil)
	})
}

// say has the API server know p from now on; nil for a pod that is gone. The directory learns it later.
func (l *life) say(uid string, p *pods.Pod, d *pods.Directory) {
	if p == nil {
		delete(l.listed, uid)
	} else {
		l.listed[uid] = *p
	}
	list := make([]pods.Pod, 0, len(l.listed))
	for _, p := range l.listed {
		list = append(list, p)
	}
	l.late = append(l.late, func() {
		l.told = l.told[:0]
		for _, p := range list {
			if len(p.IPs) > 0 {
				l.told = append(l.told, p.UID)
				l.seen[p.UID] = true
			}
		}
		d.Turn(list, nil, l.now, func(a netip.Addr, before time.Time) { l.queries.Forget(a, before) })
	})
}

// pod is the pod that asked for a name.
func pod(name string) string {
	return strings.TrimSuffix(strings.TrimPrefix(name, "of-"), ".example.")
}

func (l *life) step(d *pods.Directory) {
	l.now = l.now.Add(time.Duration(l.rand.IntN(700)+1) * time.Millisecond)
	a := podAddr(l.rand.IntN(3))
	m := l.running[a]
	switch what := l.rand.IntN(20); {
	case what < 8 && m != nil:
		l.query(a, m)
	case what < 10 && m == nil: // the node accepts a pod, and it asks at once
		l.next++
		m = &mortal{uid: fmt.Sprint(l.next), started: l.now.Truncate(time.Second)}
		if m.started.Before(l.now) {
			l.now = l.now.Truncate(time.Second).Add(time.Second) // the one before has ended in an earlier second
			m.started = l.now
		}
		l.running[a] = m
		p := pods.Pod{Namespace: "n", Name: "same", UID: m.uid, Started: m.started}
		l.say(m.uid, &p, d)
		l.query(a, m)
		p.IPs = []netip.Addr{a}
		l.say(m.uid, &p, d)
	case what < 12 && m != nil: // it ends
		delete(l.running, a)
		if l.rand.IntN(2) == 0 {
			l.say(m.uid, &pods.Pod{Namespace: "n", Name: "same", UID: m.uid, Started: m.started}, d)
		}
		l.say(m.uid, nil, d)
	case what < 16 && len(l.late) > 0 && !l.away:
		l.late[0]()
		l.late = l.late[1:]
	case what < 17 && len(l.pending) > 0:
		l.pending[0]()
		l.pending = l.pending[1:]
	case what == 18 && l.away && len(l.late) > 0: // back: all is known at once, or a list is all there is
		l.away = false
		if l.rand.IntN(2) == 0 {
			l.late = l.late[len(l.late)-1:]
		}
		for _, f := range l.late {
			f()
		}
		l.late = nil
	case what == 19 && l.rand.IntN(4) == 0:
		l.away = true
	}
}

// known reports whether it is possible to know that the shown pod did not ask: until its end and the next pod are
// reported, queries from its address look like its own.
func (l *life) known(shown, asked string) bool {
	var a, b int
	if _, err := fmt.Sscan(shown+" "+asked, &a, &b); err != nil || b < a {
		return true
	}
	return l.seen[asked] && !slices.Contains(l.told, shown)
}

// TestPodsInheritNoStatistics checks that no query of one pod is ever shown as another one's, and that none is lost, for
// random histories of pods, addresses and news about them.
func TestPodsInheritNoStatistics(t *testing.T) {
	shown, hidden := 0, 0
	for seed := range uint64(15) {
		l := &life{
			rand: rand.New(rand.NewPCG(seed, 1)), now: time.Now(), running: map[netip.Addr]*mortal{}, listed: map[string]pods.Pod{}, seen: map[string]bool{},
			queries: observe.NewQueries(observe.QueriesOptions{}),
		}
		directory := new(pods.Directory)
		s := New(Options{Queries: l.queries, Upstreams: observe.NewUpstreams(0), Pods: directory})
		for range 300 {
			l.step(directory)
			v := &snapshot{at: l.now, queries: l.queries.Snapshot(l.now), pods: directory.Table()}
			for _, a := range s.askers(v) {
				for _, n := range a.seen.Names.Names {
					switch {
					case a.UID == "":
						hidden++
					case n.Name != "of-"+a.UID+".example." && l.known(a.UID, pod(n.Name)):
						t.Fatalf("seed %d: pod %s is shown with %s", seed, a.UID, n.Name)
					default:
						shown++
					}
				}
			}
			for i := range v.queries.Stories {
				if q := s.queryItem(&v.queries.Stories[i], v.pods); q.Client.UID != "" && pod(q.Name) != q.Client.UID && l.known(q.Client.UID, pod(q.Name)) {
					t.Fatalf("seed %d: pod %s is shown with the story of %s at %s, now %s", seed, q.Client.UID, q.Name, q.ReceivedAt, l.now)
				}
			}
		}
		for _, f := range l.pending {
			f()
		}
		if got := l.queries.Snapshot(l.now).Total[observe.SinceStart].Queries(); got != uint64(l.asked) {
			t.Fatalf("seed %d: %d queries are counted of %d", seed, got, l.asked)
		}
		s.Close()
	}
	t.Logf("%d names were shown with their pods, %d with none", shown, hidden)
	if shown < hidden/4 {
		t.Errorf("only %d names were shown with their pods, %d with none", shown, hidden)
	}
}
