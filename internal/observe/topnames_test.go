package observe

import (
	"encoding/json"
	"fmt"
	"hash/maphash"
	"maps"
	"math"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
)

var testSeed = maphash.MakeSeed()

func addName(t *topNames, text string) {
	name := wireName(text)
	t.add(maphash.Bytes(testSeed, name), name)
}

// checkTop holds a list against the truth.
func checkTop(t *testing.T, what string, top Top, truth map[string]uint64) {
	t.Helper()
	listed := make(map[string]bool)
	for i, n := range top.Names {
		listed[n.Name] = true
		if real := truth[n.Name]; n.Error > n.Count || real > n.Count || real < n.Count-n.Error {
			t.Fatalf("%s: %s is %d, the list says %d with an error of %d", what, n.Name, real, n.Count, n.Error)
		}
		if i > 0 && n.Count > top.Names[i-1].Count {
			t.Fatalf("%s: the list is not in order at %d", what, i)
		}
	}
	for name, n := range truth {
		if !listed[name] && n > top.Floor {
			t.Fatalf("%s: %s is %d and not listed, the floor is %d", what, name, n, top.Floor)
		}
	}
	if len(top.Names) > top.Size || len(listed) != len(top.Names) {
		t.Fatalf("%s: %d names of %d, %d different ones", what, len(top.Names), top.Size, len(listed))
	}
}

func TestTopNamesBounds(t *testing.T) {
	r := rand.New(rand.NewPCG(3, 4))
	for _, names := range []int{1, 5, 8, 9, 40, 1000} {
		var tops [3]topNames
		var truths [3]map[string]uint64
		for k := range tops {
			tops[k], truths[k] = newTopNames(8, 64, 16), make(map[string]uint64)
			for i := range 20_000 {
				n := min(int(r.ExpFloat64()*float64(names)/6), names-1)
				if k == 1 {
					n = r.IntN(names) // no name is frequent
				}
				name := fmt.Sprintf("n%d.example.", n)
				addName(&tops[k], name)
				truths[k][name]++
				if i%1000 == 0 {
					checkTop(t, "list", tops[k].snapshot(tops[k].floor()), truths[k])
				}
			}
		}
		// Merged as snapshots, and merged as lists: all bounds hold.
		all := make(map[string]uint64)
		var merged Top
		for k := range tops {
			top := tops[k].snapshot(tops[k].floor())
			if names <= 8 && top.Floor != 0 {
				t.Errorf("%d names: the floor is %d", names, top.Floor)
			}
			merged.Add(&top)
			for name, n := range truths[k] {
				all[name] += n
			}
		}
		checkTop(t, "merged snapshots", merged, all)
		tops[0].merge(&tops[1])
		tops[0].merge(&tops[2])
		checkTop(t, "merged lists", tops[0].snapshot(tops[0].floor()), all)
		for i := range 5000 {
			name := fmt.Sprintf("later%d.example.", i%30)
			addName(&tops[0], name)
			all[name]++
		}
		checkTop(t, "merged lists, and more", tops[0].snapshot(tops[0].floor()), all)
	}
}

func TestTopNamesPeaks(t *testing.T) {
	r := rand.New(rand.NewPCG(5, 6))
	top, truth := newTopNames(8, 64, 16), make(map[string]uint64)
	for range 5000 {
		name, n := fmt.Sprintf("n%d.example.", r.IntN(100)), r.Uint64N(1_000_000)
		wire := wireName(name)
		top.peak(maphash.Bytes(testSeed, wire), wire, n)
		truth[name] = max(truth[name], n)
	}
	names := slices.SortedFunc(maps.Keys(truth), func(a, b string) int { return int(truth[b]) - int(truth[a]) })
	for i, n := range top.snapshot(top.peakFloor()).Names {
		if n.Name != names[i] || n.Count != truth[names[i]] || n.Error != 0 {
			t.Errorf("number %d is %+v, want %s with %d", i, n, names[i], truth[names[i]])
		}
	}
}

// TestCutNames checks that names that do not fit are counted apart, and listed by their remaining part.
func TestCutNames(t *testing.T) {
	top := newTopNames(8, 20, 16)
	base := strings.Repeat("x", 30) + "."
	for range 3 {
		addName(&top, base+"one.")
		addName(&top, base+"two.")
	}
	addName(&top, "short.")
	got := top.snapshot(0)
	want := []TopName{{strings.Repeat("x", 19) + "~", 6, 0}, {"short.", 1, 0}}
	if !slices.Equal(got.Names, want) {
		t.Errorf("names %+v, want %+v", got.Names, want)
	}
}

// FuzzMerge merges what other nodes say, whatever that is.
func FuzzMerge(f *testing.F) {
	s := newQueries(QueriesOptions{}, epoch)
	list := traffic(7, 1, 2, epoch)
	for i := range list {
		list[i].Rcode = i % 6
		s.Record(&list[i])
	}
	text, err := json.Marshal(s.Snapshot(epoch))
	if err != nil {
		f.Fatal(err)
	}
	f.Add(text, text)
	f.Add([]byte(`{"tops":[{"floor":18446744073709551615,"size":1,"names":[{"name":"a","count":1,"error":5},{"name":"a","count":3}]}]}`), []byte(`{"clients":[{"client":"x"},{"client":"x"},{"client":"::1"}]}`))
	f.Add([]byte(`{"tops":[{"size":-1,"names":[{"name":"b"}]}]}`), []byte(`{}`))
	f.Fuzz(func(t *testing.T, a, b []byte) {
		var x, y QueriesSnapshot
		if json.Unmarshal(a, &x) != nil || json.Unmarshal(b, &y) != nil {
			return
		}
		u, v := clone(t, &x), clone(t, &y)
		x.Add(&y)
		v.Add(u)
		// The order does not matter.
		for by := range x.Tops {
			if !slices.Equal(x.Tops[by].Names, v.Tops[by].Names) || x.Tops[by].Floor != v.Tops[by].Floor {
				t.Fatalf("tops by %s:\n%+v\n%+v", TopBy(by), x.Tops[by], v.Tops[by])
			}
		}
		if x.Total != v.Total || x.Lost != v.Lost || len(x.Clients) != len(v.Clients) {
			t.Fatal("totals differ")
		}
		for i := range x.Clients {
			if x.Clients[i].Client != v.Clients[i].Client || x.Clients[i].Windows != v.Clients[i].Windows {
				t.Fatalf("client %d: %s and %s", i, x.Clients[i].Client, v.Clients[i].Client)
			}
		}
		if len(x.Stories) > MaxStories {
			t.Fatalf("%d stories", len(x.Stories))
		}
	})
}

func clone(t *testing.T, s *QueriesSnapshot) *QueriesSnapshot {
	text, err := json.Marshal(s)
	if err != nil {
		t.Skip(err)
	}
	c := new(QueriesSnapshot)
	if err := json.Unmarshal(text, c); err != nil {
		t.Fatal(err)
	}
	return c
}

// TestMergeNodes checks that the merged lists of two nodes equal the list of one node that saw everything.
func TestMergeNodes(t *testing.T) {
	one, left, right := newQueries(QueriesOptions{}, epoch), newQueries(QueriesOptions{}, epoch), newQueries(QueriesOptions{}, epoch)
	for _, s := range []*Queries{one, left, right} {
		s.seed = [3]uint64{1, 2, 3} // by chance most clients may fall into one shard, which remembers few stories
	}
	list := traffic(5000, 40, 20, epoch)
	for i := range list {
		q := &list[i]
		q.Source, q.Rcode = Source(i%NumSources), i%4
		one.Record(q)
		if i%40 < 25 == (i%3 > 0) { // some clients are seen by both
			left.Record(q)
		} else {
			right.Record(q)
		}
	}
	at := epoch.Add(3)
	want, got, other := one.Snapshot(at), left.Snapshot(at), right.Snapshot(at)
	got.Add(other)
	if got.Total != want.Total || got.Upstream != want.Upstream || got.Queued != want.Queued || len(got.Clients) != len(want.Clients) {
		t.Error("the totals differ")
	}
	for i := range want.Clients {
		if got.Clients[i].Client != want.Clients[i].Client || got.Clients[i].Windows != want.Clients[i].Windows {
			t.Errorf("client %s differs", want.Clients[i].Client)
		}
	}
	for by := range want.Tops {
		if !slices.Equal(got.Tops[by].Names, want.Tops[by].Names) {
			t.Errorf("the names by %s differ:\n%+v\n%+v", TopBy(by), got.Tops[by].Names, want.Tops[by].Names)
		}
	}
	if !slices.EqualFunc(got.Stories[:50], want.Stories[:50], func(a, b Story) bool { return a.Received.Equal(b.Received) && a.ID == b.ID }) {
		t.Error("the stories differ")
	}
	if sum(math.MaxUint64, 1) != math.MaxUint64 || sum(1, 2) != 3 {
		t.Error("sums overflow")
	}
}
