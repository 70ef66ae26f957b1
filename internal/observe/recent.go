package observe

import (
	"math"
	"math/bits"
	"time"
)

// Types of queries that come in pairs (RFC 1035 and RFC 3596).
const (
	typeA    = 1
	typeAAAA = 28
)

// The memory of recent questions, for each shard: enough to hold 512 names of clients, and 2,048
// single questions, which is 5 seconds at 3,000 queries a second over all shards.
const (
	questionSets = 128
	questionWays = 4
	exactSets    = 256
	exactWays    = 8

	// forgetAfter, in milliseconds, is the age from which a question no longer affects later ones.
	forgetAfter = 31_000
)

// Values that replace the answer time of a question without an answer, or with one that is a failure.
const (
	pending = 0xffff
	failed  = 0xfffe
)

// answerTime returns a duration in milliseconds, kept apart from pending and failed.
func answerTime(d time.Duration) uint16 {
	return uint16(min(max(d, 0)/time.Millisecond, failed-1))
}

// failure reports whether clients treat the answer as a failure. glibc and musl then ask again at once, and musl once
// more after its timeout (res_msend.c); a query that was dropped on purpose is not lost either.
func (q *Query) failure() bool { return q.Rcode != rcodeNoError && q.Rcode != rcodeNXDomain }

// RCODEs that end a lookup (RFC 1035 section 4.1.1).
const (
	rcodeNoError  = 0
	rcodeNXDomain = 3
)

// milliseconds is a time as the memory of questions has it: modulo 2³², never 0.
func milliseconds(t int64) uint32 {
	return max(uint32(t/int64(time.Millisecond)), 1)
}

// since returns how long ago then was, in milliseconds; negative if it is in the future, or so long ago that it makes
// no difference.
func since(now, then uint32) int32 { return int32(now - then) }

// near reports whether a and b are within d milliseconds.
func near(a, b uint32, d int32) bool { return nearBit(a, b, d) != 0 }

// nearBit is near as 1 or 0, without a branch.
func nearBit(a, b uint32, d int32) uint8 {
	var known, within uint8
	if a != 0 && b != 0 {
		known = 1
	}
	if uint32(since(a, b)+d) <= uint32(2*d) {
		within = 1
	}
	return known & within
}

// half is the latest question for A or for AAAA.
type half struct {
	asked    uint32 // milliseconds; 0 for never
	id       uint16
	port     uint16
	answer   uint16 // milliseconds from asked, or pending, or failed
	interval uint16 // milliseconds between the question before and this one; 0 if it was long ago
}

// fresh reports whether the half is recent enough to count.
func (h *half) fresh(now uint32) bool {
	return uint32(since(now, h.asked)) < forgetAfter && h.asked != 0
}

// earlier reports whether the half is fresh and belongs to an earlier lookup than the question that is asked now.
// Most do not, which is decided at once, whether it was ever asked or not.
func (h *half) earlier(now uint32) bool {
	return uint32(since(now, h.asked)-pairGap-1) < forgetAfter-pairGap-1 && h.asked != 0
}

// late reports whether the answer was not there after the client had waited for so many milliseconds. An answer that
// was on its way by then came too late.
func (h *half) late(after int32) bool { return h.answer != failed && lateAnswer(h.answer, after) }

func lateAnswer(answer uint16, after int32) bool {
	const onItsWay = 100
	return answer == pending || int32(answer) >= after-onItsWay
}

// question holds what one client asks about one name: two halves for A and AAAA, else only the first.
type question struct {
	tag   uint32
	event uint32 // when it was last seen to be asked again after a wait, and by which half in the last bit
	half  [2]half
}

func (e *question) repeated(now uint32, half int) { e.event = now&^1 | uint32(half) }

// begin resets it to a question that was never asked. Building and copying a struct instead would wait for its small
// stores.
func (e *question) begin(tag uint32) {
	*e = question{}
	e.tag = tag
}

// questionSet holds the possible places of a question. The searched data is together, in one cache line.
type questionSet struct {
	tag     [questionWays]uint32
	last    [questionWays]uint32 // when each was asked last, in either half; 0 for an empty one
	entries [questionWays]question
}

// find returns the index of the entry of a question; -1 if it is unknown.
func (s *questionSet) find(tag uint32) int {
	at := first(s.tag[:], tag, 0)
	if at >= 0 && s.last[at] == 0 {
		return -1
	}
	return at
}

// place empties the entry of the question that was silent longest. missed is true where that would still have mattered.
func (s *questionSet) place(tag, now uint32) (at int, missed bool) {
	at, age := oldest(s.last[:], now)
	s.tag[at], s.last[at] = tag, 0
	s.entries[at].begin(tag)
	return at, age >= 0 && age < soonForgotten
}

// first returns the index of the first of tags that equals tag, ignoring the bits of apart; -1 if none does. Like
// oldest it looks at all of them: where the search ends cannot be predicted, and a mispredicted branch costs more.
func first(tags []uint32, tag, apart uint32) int {
	found := uint64(0) // one bit for each tag, the highest for the first
	for _, t := range tags {
		other := uint64((t ^ tag) &^ apart)
		found = 2*found + (other-1)>>63
	}
	if found == 0 {
		return -1
	}
	return len(tags) - bits.Len64(found)
}

// oldest returns the index of the oldest of at most eight times, and its age; times that are 0 come before all
// others, and then the age is negative. The age is not looked up by index, because the compiler would then make
// branches.
func oldest(times []uint32, now uint32) (at int, age int32) {
	best := uint64(math.MaxUint64)
	for i, t := range times {
		order := t - (now + 1<<31)
		if t == 0 {
			order = 0
		}
		best = min(best, uint64(order)*8+uint64(i))
	}
	return int(best & 7), int32(1<<31 - uint32(best>>3))
}

// exactSet holds single questions with port and ID: one cache line.
type exactSet struct {
	tag   [exactWays]uint32 // the last two bits are the state; 0 for an empty one
	asked [exactWays]uint32 // milliseconds; 0 for an empty one
}

// exactOrder holds the indexes of an exactSet's entries, four bits each, from the newest in the lowest bits to the
// oldest, by arrival. The oldest is replaced next. Comparing their times would cost more than finding a question.
type exactOrder uint32

const firstOrder exactOrder = 0x76543210

// next makes the oldest entry the newest, and returns its index.
func (o *exactOrder) next() int {
	*o = exactOrder(bits.RotateLeft32(uint32(*o), 4))
	return int(*o % exactWays)
}

// renew makes an entry the newest.
func (o *exactOrder) renew(at int) { *o = o.without(at)<<4 | exactOrder(at) }

// drop makes an entry the oldest: it is empty.
func (o *exactOrder) drop(at int) { *o = o.without(at) | exactOrder(at)<<28 }

// without returns the order of the other entries.
func (o exactOrder) without(at int) exactOrder {
	// The four bits of the entry become zero; the lowest such group borrows in the subtraction.
	same := uint32(o) ^ uint32(at)*0x11111111
	place := bits.TrailingZeros32((same-0x11111111)&^same&0x88888888) &^ 3
	newer := o & (1<<place - 1)
	return o>>place>>4<<place | newer
}

// find returns the index of the question with the tag; -1 if there is none.
func (s *exactSet) find(tag uint32) int {
	at := first(s.tag[:], tag, 3)
	if at >= 0 && s.asked[at] == 0 {
		return -1
	}
	return at
}

// The states of an exact question: when its answer came, by the times after which resolvers ask again.
const (
	statePending = iota
	stateFast    // before musl would have asked again
	stateLate    // before glibc would have asked again
	stateVeryLate
)

func exactState(answer uint16) uint32 {
	switch {
	case answer == pending:
		return statePending
	case !lateAnswer(answer, muslRetry):
		return stateFast
	case !lateAnswer(answer, retry):
		return stateLate
	}
	return stateVeryLate
}

// recent is a shard's memory of questions, for finding those that are asked again.
type recent struct {
	questions *[questionSets]questionSet // made when they are needed
	exacts    *[exactSets]exactSet
	order     *[exactSets]exactOrder
	decisions decisions
}

func (r *recent) init() {
	if r.questions == nil {
		r.questions = new([questionSets]questionSet)
		r.exacts = new([exactSets]exactSet)
		r.order = new([exactSets]exactOrder)
		for i := range r.order {
			r.order[i] = firstOrder
		}
	}
}

// soonForgotten: a question that was asked so many milliseconds ago may be repeated by glibc, Go or
// musl at any moment.
const soonForgotten = retry

// swap replaces the same question, port and ID included, by this one. age is 0 if there was none.
func (r *recent) swap(k *keys, now uint32, answer uint16) (age int32, state uint32) {
	set := &r.exacts[k.exactSet%exactSets]
	at := set.find(k.exact)
	order := &r.order[k.exactSet%exactSets]
	if at >= 0 {
		age, state = since(now, set.asked[at]), set.tag[at]&3
		order.renew(at)
	} else {
		at = order.next()
	}
	if answer == failed { // a repetition after a failure is expected
		set.tag[at], set.asked[at] = 0, 0
		order.drop(at)
		return age, state
	}
	set.tag[at], set.asked[at] = k.exact&^3|exactState(answer), now
	return age, state
}

// answered notes that a question that was pending has its answer.
func (r *recent) answered(k *keys, q *Query, asked, now uint32) {
	if r.questions == nil {
		return
	}
	answer := uint16(min(max(since(now, asked), 0), failed-1))
	if q.failure() {
		answer = failed
	}
	exacts := &r.exacts[k.exactSet%exactSets]
	if at := exacts.find(k.exact); at >= 0 && exacts.asked[at] == asked {
		exacts.tag[at] = exacts.tag[at]&^3 | exactState(answer)
		if answer == failed {
			exacts.tag[at], exacts.asked[at] = 0, 0
			r.order[k.exactSet%exactSets].drop(at)
		}
	}
	set := &r.questions[k.set%questionSets]
	if at := set.find(k.question); at >= 0 {
		if h := &set.entries[at].half[halfOf(q.Type)]; h.asked == asked && h.id == q.ID {
			h.answer = answer
		}
	}
}

func halfOf(qtype uint16) int {
	if qtype == typeAAAA {
		return 1
	}
	return 0
}
