package observe

import (
	"cmp"
	"net/netip"
	"slices"
	"time"
)

// storiesPerShard is how many slow and failed queries each shard remembers.
const storiesPerShard = 24

// Story is the record of one slow or failed query.
type Story struct {
	Received time.Time      `json:"received"`
	Client   netip.AddrPort `json:"client"`
	ID       uint16         `json:"id"`
	Proto    Proto          `json:"proto"`
	Name     string         `json:"name"` // in presentation format, see NameText
	Type     uint16         `json:"type"`
	Rcode    int            `json:"rcode"`
	Source   Source         `json:"source"`
	Duration time.Duration  `json:"durationNanoseconds"`
	Queued   time.Duration  `json:"queuedNanoseconds"`
	Upstream time.Duration  `json:"upstreamNanoseconds"`
	Steps    []Step         `json:"steps,omitempty"`     // in the order in which they were reported
	LostStep int            `json:"lostSteps,omitempty"` // number of steps that did not fit
}

// stories is a ring, written under its shard's lock. Its entries are made when the first is needed.
type stories struct {
	entries []story
	pushed  uint64
}

type story struct {
	query Query // its Name is kept in name
	name  [maxName]byte
	long  int
	steps [MaxSteps]Step
	n     int
	lost  int
}

// isStory reports whether a query deserves a story: it was slow, brought no answer that the client can use, or an
// upstream failed.
func isStory(q *Query, slow time.Duration, t *Trace) bool {
	switch OutcomeOf(q.Rcode) {
	case NoError, NXDomain:
		return q.Duration >= slow || t.failed()
	}
	return true
}

func (s *stories) push(q *Query, t *Trace) (overwritten bool, lost int) {
	if s.entries == nil {
		s.entries = make([]story, storiesPerShard)
	}
	overwritten = s.pushed >= storiesPerShard
	e := &s.entries[s.pushed%storiesPerShard]
	s.pushed++
	e.query = *q
	e.query.Name = nil
	e.long = len(q.Name)
	copy(e.name[:], q.Name)
	e.n, e.lost = t.copyTo(&e.steps)
	return overwritten, e.lost
}

// kept are the stories that are there, in no order. They are the shard's.
func (s *stories) kept() []story { return s.entries[:min(s.pushed, uint64(len(s.entries)))] }

func appendStories(list []Story, kept []story) []Story {
	for i := range kept {
		e := &kept[i]
		q := &e.query
		list = append(list, Story{
			Received: time.Unix(0, q.Received), Client: q.Client, ID: q.ID, Proto: q.Proto,
			Name: NameText(e.name[:min(e.long, maxName)]), Type: q.Type, Rcode: q.Rcode, Source: q.Source,
			Duration: q.Duration, Queued: q.Queued, Upstream: q.Upstream,
			Steps: append([]Step(nil), e.steps[:e.n]...), LostStep: e.lost,
		})
	}
	return list
}

// sortStories puts the newest first.
func sortStories(list []Story) {
	slices.SortStableFunc(list, func(a, b Story) int {
		return cmp.Or(b.Received.Compare(a.Received), a.Client.Compare(b.Client), cmp.Compare(a.ID, b.ID),
			cmp.Compare(a.Name, b.Name), cmp.Compare(a.Type, b.Type))
	})
}
