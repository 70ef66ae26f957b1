package observe

import "time"

// TopBy is what names are ordered by.
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
	// topSize is how many names each list of a shard has, of topRoom bytes: longer ones are cut.
	topSize  = 24
	topRoom  = 128
	topCells = 128
	// topPeriod is how long names are counted before they become the past: what is recent is this
	// period and the one before.
	topPeriod = int64(30 * time.Minute)
)

// tops are a shard's lists of names. A query is counted in the present one only, which is added to the
// others when its period is over.
type tops struct {
	period  int64 // the number of the present one
	present [NumTops]topNames
	before  [NumTops]topNames
	ever    [NumTops]topNames // without present
}

func (s *tops) init(t int64) {
	s.period = t / topPeriod
	for by := range NumTops {
		s.present[by] = newTopNames(topSize, topRoom, topCells)
		s.before[by] = newTopNames(topSize, topRoom, topCells)
		s.ever[by] = newTopNames(topSize, topRoom, topCells)
	}
}

// advance begins a new period where the present one is over.
func (s *tops) advance(t int64) {
	period := t / topPeriod
	if period <= s.period {
		return
	}
	for by := range NumTops {
		if TopBy(by) == BySlowest {
			s.ever[by].mergePeaks(&s.present[by])
		} else {
			s.ever[by].merge(&s.present[by])
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
	s.present[ByQueries].add(hash, q.Name)
	if q.Source == FromUpstream {
		s.present[ByMisses].add(hash, q.Name)
	}
	switch OutcomeOf(q.Rcode) {
	case NXDomain:
		s.present[ByNXDomain].add(hash, q.Name)
	case ServFail:
		s.present[ByServFail].add(hash, q.Name)
	}
	s.present[BySlowest].peak(hash, q.Name, uint64(max(q.Duration, 0)/time.Microsecond))
}

// addTo adds the lists to those of other shards.
func (s *tops) addTo(ever, recent *[NumTops]Top) {
	for by := range NumTops {
		by := TopBy(by)
		list := func(t *topNames) *Top {
			floor := t.floor()
			if by == BySlowest {
				floor = t.peakFloor()
			}
			top := t.snapshot(floor)
			return &top
		}
		present := list(&s.present[by])
		addTop(&recent[by], present, by)
		addTop(&recent[by], list(&s.before[by]), by)
		addTop(&ever[by], present, by)
		addTop(&ever[by], list(&s.ever[by]), by)
	}
}

// recentTops is how far the recent lists reach back at time t.
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
