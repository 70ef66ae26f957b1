package observe

import "time"

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

	// forgetAfter, in milliseconds, is when a question has no say in what comes later.
	forgetAfter = 31_000
)

// What stands for the answer time of a question that has no answer yet, or one that is a failure.
const (
	pending = 0xffff
	failed  = 0xfffe
)

// answerTime is a duration in milliseconds that fits beside pending and failed.
func answerTime(d time.Duration) uint16 {
	return uint16(min(max(d, 0)/time.Millisecond, failed-1))
}

// failure tells whether a client does not take the answer for one. glibc and musl ask again at once then,
// and musl once more when its time is over (res_msend.c); dropped on purpose is not lost either.
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

// since is how long ago then was, in milliseconds; negative where that is in the future, or so long ago
// that it makes no difference.
func since(now, then uint32) int32 { return int32(now - then) }

// near tells whether a and b are within d milliseconds.
func near(a, b uint32, d int32) bool {
	n := since(a, b)
	return a != 0 && b != 0 && -d <= n && n <= d
}

// half is the latest question for A or for AAAA.
type half struct {
	asked    uint32 // milliseconds; 0 for never
	id       uint16
	port     uint16
	answer   uint16 // milliseconds from asked, or pending, or failed
	interval uint16 // milliseconds between the question before and this one; 0 where it is long
}

// fresh tells whether the half is recent enough to count.
func (h *half) fresh(now uint32) bool {
	age := since(now, h.asked)
	return h.asked != 0 && age >= 0 && age < forgetAfter
}

// late tells whether the answer was not there when the client had waited for so many milliseconds.
// What was on its way at that time did not help any more.
func (h *half) late(after int32) bool { return h.answer != failed && lateAnswer(h.answer, after) }

func lateAnswer(answer uint16, after int32) bool {
	const onItsWay = 100
	return answer == pending || int32(answer) >= after-onItsWay
}

// question is what one client asks about one name: two halves for A and AAAA, else only the first.
type question struct {
	tag   uint32
	event uint32 // when it was last seen to be asked again after a wait, and by which half in the last bit
	half  [2]half
}

func (e *question) repeated(now uint32, half int) { e.event = now&^1 | uint32(half) }

func (e *question) latest() uint32 {
	if since(e.half[1].asked, e.half[0].asked) > 0 && e.half[1].asked != 0 || e.half[0].asked == 0 {
		return e.half[1].asked
	}
	return e.half[0].asked
}

// exact is one question as it came, port and ID included.
type exact struct {
	tag   uint32 // the last two bits are its state
	asked uint32
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
	questions *[questionSets][questionWays]question // made when they are needed
	exacts    *[exactSets][exactWays]exact
	decisions decisions
}

func (r *recent) init() {
	if r.questions == nil {
		r.questions = new([questionSets][questionWays]question)
		r.exacts = new([exactSets][exactWays]exact)
	}
}

// find returns the entry of a question; nil where it is not known.
func (r *recent) find(k *keys) *question {
	set := &r.questions[k.set%questionSets]
	for i := range set {
		if set[i].tag == k.question && set[i].latest() != 0 {
			return &set[i]
		}
	}
	return nil
}

// place returns an empty entry for a question, in the place of the one that was silent longest. missed
// is true where that would still have mattered.
func (r *recent) place(k *keys, now uint32) (e *question, missed bool) {
	set := &r.questions[k.set%questionSets]
	e = &set[0]
	for i := range set {
		if set[i].latest() == 0 {
			e = &set[i]
			break
		}
		if since(now, set[i].latest()) > since(now, e.latest()) {
			e = &set[i]
		}
	}
	age := since(now, e.latest())
	missed = e.latest() != 0 && age >= 0 && age < soonForgotten
	*e = question{tag: k.question}
	return e, missed
}

// soonForgotten: a question that was asked so many milliseconds ago may be repeated by glibc, Go or
// musl at any moment.
const soonForgotten = retry

// swap finds the same question, port and ID included, and puts this one in its place. age is 0 where
// there was none.
func (r *recent) swap(k *keys, now uint32, answer uint16) (age int32, state uint32) {
	set := &r.exacts[k.exactSet%exactSets]
	at := &set[0]
	for i := range set {
		x := &set[i]
		if x.asked != 0 && x.tag|3 == k.exact|3 {
			age, state = since(now, x.asked), x.tag&3
			at = x
			break
		}
		if at.asked != 0 && (x.asked == 0 || since(now, x.asked) > since(now, at.asked)) {
			at = x
		}
	}
	at.tag, at.asked = k.exact&^3|exactState(answer), now
	if answer == failed { // what comes after a failure is no wonder
		at.asked = 0
	}
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
	set := &r.exacts[k.exactSet%exactSets]
	for i := range set {
		if x := &set[i]; x.asked == asked && x.tag|3 == k.exact|3 {
			x.tag = x.tag&^3 | exactState(answer)
			if answer == failed {
				x.asked = 0
			}
		}
	}
	if e := r.find(k); e != nil {
		if h := &e.half[halfOf(q.Type)]; h.asked == asked && h.id == q.ID {
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
