package observe

import (
	"math/rand/v2"
	"slices"
	"testing"
)

// TestExactOrder holds the order of a set against a plain list, the oldest first.
func TestExactOrder(t *testing.T) {
	r := rand.New(rand.NewPCG(7, 8))
	order, list := firstOrder, []int{7, 6, 5, 4, 3, 2, 1, 0}
	for range 10_000 {
		at := r.IntN(exactWays)
		others := slices.DeleteFunc(slices.Clone(list), func(x int) bool { return x == at })
		switch r.IntN(3) {
		case 0:
			order.renew(at)
			list = append(others, at)
		case 1:
			order.drop(at)
			list = append([]int{at}, others...)
		case 2:
			if got := order.next(); got != list[0] {
				t.Fatalf("%d is replaced, want %d", got, list[0])
			}
			list = append(list[1:], list[0])
		}
	}
}

// TestOldest looks for the oldest and for tags as a plain loop does, near the end of the clock, too.
func TestOldest(t *testing.T) {
	r := rand.New(rand.NewPCG(9, 10))
	for range 100_000 {
		now := []uint32{r.Uint32(), 5000, 1 << 31, 1<<31 + 5000}[r.IntN(4)]
		times, tags := make([]uint32, 1+r.IntN(8)), make([]uint32, 8)
		for i := range times {
			if r.IntN(8) > 0 {
				times[i] = now + 100 - uint32(r.IntN(40_000))
			}
		}
		want, tag := 0, uint32(r.IntN(40))
		for i, x := range times {
			if times[want] != 0 && (x == 0 || since(now, x) > since(now, times[want])) {
				want = i
			}
		}
		got, age := oldest(times, now)
		if got != want || times[got] != 0 && age != since(now, times[got]) || times[got] == 0 && age >= 0 {
			t.Fatalf("of %v at %d: %d, %d ms old; want %d", times, now, got, age, want)
		}
		for i := range tags {
			tags[i] = uint32(r.IntN(40))
		}
		for _, apart := range []uint32{0, 3} {
			if got, want := first(tags, tag, apart), slices.IndexFunc(tags, func(x uint32) bool { return x|apart == tag|apart }); got != want {
				t.Fatalf("%d in %v, but for %d: %d, want %d", tag, tags, apart, got, want)
			}
		}
	}
}

// TestFailedQuestions checks that the memory of a failed question does not hide its repetition.
func TestFailedQuestions(t *testing.T) {
	var r recent
	r.init()
	one, two := &keys{exact: 4}, &keys{exact: 8}
	r.swap(one, 1000, 1)
	r.swap(two, 1001, 1)
	r.swap(two, 1002, failed)
	r.swap(one, 1003, failed)
	for i, k := range []*keys{two, one} {
		r.swap(k, 2000, 1)
		if age, _ := r.swap(k, 7000, 1); age != 5000 {
			t.Errorf("question %d was asked %d ms ago, want 5000", i, age)
		}
	}
	r.swap(two, 8000, failed)
	if age, _ := r.swap(two, 8001, 1); age != 0 {
		t.Errorf("a failed question was asked %d ms ago", age)
	}
}
