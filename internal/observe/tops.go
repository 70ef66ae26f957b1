package observe

import "time"

// TopBy says what names are ordered by.
type TopBy uint8

// The orders.
const (
	ByQueries TopBy = iota
	ByMisses
	ByNXDomain
	ByServFail
	BySlowest // the longest duration, in microseconds, instead of a count

	// NumTops is the number of orders.
	NumTops = int(BySlowest) + 1
)

var topNamesBy = [NumTops]string{"queries", "misses", "nxdomain", "servfail", "slowest"}

// String is the order's name in the API.
func (b TopBy) String() string {
	if int(b) < NumTops {
		return topNamesBy[b]
	}
	return "unknown"
}

// MarshalText writes the name, for JSON.
func (b TopBy) MarshalText() ([]byte, error) { return []byte(b.String()), nil }

const (
	// topSize is how many names each list of a shard has, of topRoom bytes: longer names are cut.
	topSize  = 24
	topRoom  = 128
	topCells = 128
	// topPeriod is the length of a counting period: the recent list covers this period and the one before.
	topPeriod = int64(30 * time.Minute)
)

// tops are a shard's lists of names, 5 KB each. A query is counted in the present one only, which is added to the
// others when its period is over. A list is made when it gets its first name: most nodes have few clients, and
// most clients no SERVFAIL.
type tops struct {
	period  int64 // the number of the present one
	present [NumTops]*topNames
	before  [NumTops]*topNames
	ever    [NumTops]*topNames // without present
}

func (s *tops) init(t int64) { s.period = t / topPeriod }

// made returns the list at place, and creates it if needed.
func made(place **topNames) *topNames {
	if *place == nil {
		makeList(place)
	}
	return *place
}

// makeList is apart from made so that made, which is called twice a query, is inlined.
//
//go:noinline
func makeList(place **topNames) {
	t := newTopNames(topSize, topRoom, topCells)
	*place = &t
}

// advance begins a new period where the present one is over.
func (s *tops) advance(t int64) {
	period := t / topPeriod
	if period <= s.period {
		return
	}
	for by := range NumTops {
		if present := s.present[by]; present != nil {
			if TopBy(by) == BySlowest {
				made(&s.ever[by]).mergePeaks(present)
			} else {
				made(&s.ever[by]).merge(present)
			}
		}
		s.before[by], s.present[by] = s.present[by], s.before[by]
		s.present[by].clear()
		if period > s.period+1 {
			s.before[by].clear()
		}
	}
	s.period = period
}

func (s *tops) count(q *Query, hash uint64) {
	add := func(by TopBy) { made(&s.present[by]).add(hash, q.Name) }
	add(ByQueries)
	if q.Source == FromUpstream {
		add(ByMisses)
	}
	switch OutcomeOf(q.Rcode) {
	case NXDomain:
		add(ByNXDomain)
	case ServFail:
		add(ByServFail)
	}
	made(&s.present[BySlowest]).peak(hash, q.Name, uint64(max(q.Duration, 0)/time.Microsecond))
}

// topLists holds copies of the lists of one order; nil if there is none.
type topLists struct{ present, before, ever *topNames }

func (s *tops) copyOf(by TopBy) topLists {
	return topLists{s.present[by].clone(), s.before[by].clone(), s.ever[by].clone()}
}

// addTo adds the lists to those of other shards.
func (l *topLists) addTo(ever, recent *Top, by TopBy) {
	add := func(t *topNames, to ...*Top) {
		if t == nil {
			return
		}
		floor := t.floor()
		if by == BySlowest {
			floor = t.peakFloor()
		}
		top := t.snapshot(floor)
		for _, sum := range to {
			addTop(sum, &top, by)
		}
	}
	add(l.present, recent, ever)
	add(l.before, recent)
	add(l.ever, ever)
}

// recentTops returns how far the recent lists reach back at time t.
func recentTops(started, t int64) time.Duration {
	return time.Duration(max(0, t-max(started, (t/topPeriod-1)*topPeriod)))
}

func addTop(t, other *Top, by TopBy) {
	if by == BySlowest {
		t.AddPeaks(other)
	} else {
		t.Add(other)
	}
}
