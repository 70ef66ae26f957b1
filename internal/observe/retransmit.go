package observe

// How stub resolvers ask again, in milliseconds after the previous question:
//
//   - glibc (2.36, measured): after 5 s both A and AAAA, from the same port with the same ID; after another 5 s again,
//     with the same ID from new ports.
//   - Go (measured): after 5 s, from a new port with a new ID, only the type without an answer; two attempts in total.
//   - musl (1.2.3, measured): after 2.5 s, from the same port with the same ID, only the type without an answer.
//   - All of them ask again after an answer that is a failure: glibc and Go at once, musl at once and after 2.5 s
//     (src/network/res_msend.c). This is not a retransmit: nothing was lost.
//
// The same question from the same port with the same ID is no coincidence. The same question from a new port with a
// new ID, 5 s later, is typical of Go, but also of a program that polls a name every 5 s. They are told apart as
// follows:
//
//   - The first question has no answer, or got it after the 5 s were over: a polling program would have waited.
//   - It was half of a pair, and the other half is not asked again: a polling program asks for both again.
//   - Else by the next question. A polling program asks a third time; Go does not, because it has its answer or has
//     given up after two attempts. A polling program also asked 5 s before. The rest is only suspected.
const (
	retry     = 5000
	muslRetry = 2500

	// early is how much too early a repetition may arrive: timers never fire early, but the two questions' paths differ.
	early = 20
	// lateKnown is for glibc and musl, which wait in poll(2) and are recognized by their IDs: a throttled pod may be late.
	lateKnown = 300
	// lateGo is for Go, which is recognized by the time only.
	lateGo = 90
	// shortestRetry is below all that resolvers can be set to. Packets that come twice are nearer.
	shortestRetry = 300

	// pairGap is the most between the halves of a pair.
	pairGap = 100
	// joinGap is the most between the halves that are asked again: some resolvers ask for the second
	// when the first is answered, and that may take a round trip now.
	joinGap = 300
	// thirdWithin is the time after its second question within which a program is expected to poll again.
	thirdWithin = 7500
	// A question whose predecessor was this long ago is one of a series.
	seriesFrom, seriesTo = 3500, 7500
)

func after(age, interval, late int32) bool { return age >= interval-early && age <= interval+late }

// wait says what a decision about a repeated question waits for.
type wait uint8

const (
	// waitNewHalf: the other half arrives, which never arrived before (glibc). Else the reply was lost.
	waitNewHalf wait = iota
	// waitBothHalves: the other half is asked again too, which Go does not do for half a pair. Then a third question decides.
	waitBothHalves
	// waitRepeatedHalf: the other half is asked again, so it is a new pair. Else the query was lost (Go).
	waitRepeatedHalf
	// waitThird: a third question arrives, so it is polling.
	waitThird
)

// decision is a repeated question that is not yet counted.
type decision struct {
	client *client
	tag    uint32
	due    uint32 // milliseconds
	wait   wait
	series bool // of waitBothHalves: it looks like polling apart from that
	counts retransmit
}

type retransmit struct {
	resolver  Resolver
	cause     Cause
	suspected bool
}

// lost handles a question that is asked again together with its other half, which never arrived before. From the same
// port it belongs to the same lookup; from another one it may belong to another lookup.
func (r *retransmit) lost(port, other uint16) { r.cause, r.suspected = QueryLost, port != other }

func (c *client) countRetransmit(r retransmit) {
	if r.suspected {
		c.tally.n[atSuspected+int(r.cause)]++
	} else {
		c.tally.n[atRetransmits+int(r.resolver)*NumCauses+int(r.cause)]++
	}
}

// decisions holds the few open decisions: each is at most 7.5 s old.
type decisions struct {
	open [32]decision
	n    int
	due  uint32 // the earliest
}

// settle counts those whose time has come.
func (d *decisions) settle(now uint32) {
	if d.n > 0 && since(now, d.due) >= 0 {
		d.settleDue(now)
	}
}

func (d *decisions) settleDue(now uint32) {
	for i := 0; i < d.n; {
		if x := &d.open[i]; since(now, x.due) >= 0 {
			x.client.countRetransmit(x.counts)
			d.remove(i)
		} else {
			i++
		}
	}
}

func (d *decisions) remove(i int) {
	d.n--
	d.open[i] = d.open[d.n]
	d.open[d.n] = decision{}
	d.reckon()
}

func (d *decisions) reckon() {
	for i := range d.n {
		if i == 0 || since(d.open[i].due, d.due) < 0 {
			d.due = d.open[i].due
		}
	}
}

// add returns false if there is no room.
func (d *decisions) add(x decision) bool {
	if d.n == len(d.open) {
		return false
	}
	d.open[d.n] = x
	d.n++
	d.reckon()
	return true
}

// find returns the index of the decision about a question, or -1.
func (d *decisions) find(tag uint32) int {
	for i := range d.n {
		if d.open[i].tag == tag {
			return i
		}
	}
	return -1
}

// redirect leaves the decisions about one client to another one.
func (r *recent) redirect(from, to *client) {
	for i := range r.decisions.n {
		if x := &r.decisions.open[i]; x.client == from {
			x.client = to
		}
	}
}

// ask notes a question that arrived over UDP at now, and finds out whether it is a repetition. answer is the time
// that its answer took, or pending.
func (sh *shard) ask(c *client, q *Query, k *keys, now uint32, answer uint16) {
	if answer != pending && q.failure() {
		answer = failed
	}
	r := &sh.recent
	r.init()
	r.decisions.settle(now)
	age, state := r.swap(k, now, answer)
	known := c.known(now) // older entries belong to the previous owner of the address
	if age > known {
		age = 0
	}
	set := &r.questions[k.set%questionSets]
	at := set.find(k.question)
	switch {
	case at < 0:
		var forgotten bool
		if at, forgotten = set.place(k.question, now); forgotten {
			sh.lost[LossQuestion]++
		}
	case since(now, set.last[at]) > known:
		set.entries[at].begin(k.question)
	}
	e := &set.entries[at]
	i := halfOf(q.Type)
	mine, other := &e.half[i], &e.half[1-i]
	seen := asked{port: q.Client.Port(), id: q.ID, now: now}
	if before := since(now, mine.asked); mine.id == seen.id && mine.port == seen.port && age == 0 && mine.fresh(now) && before <= known && mine.answer != failed {
		// A flood has pushed the single question out of the memory, but the name has it too.
		age, state = before, exactState(mine.answer)
	}
	if q.Type == typeA || q.Type == typeAAAA {
		c.countAddress(nearBit(now, other.asked, pairGap) &^ nearBit(now, mine.asked, pairGap))
	}
	switch {
	case near(now, e.event, joinGap) && e.event&1 != uint32(i):
		sh.joins(e, i, seen.port)
	case age >= shortestRetry && age < forgetAfter && !mine.otherID(seen, age):
		e.repeated(now, i)
		sh.again(c, e, other, seen, age, state)
	default:
		sh.maybeRepeated(c, e, i, seen)
	}
	interval := now - mine.asked // as unsigned numbers: a time in the future is far away
	if interval > 0xffff {
		interval = 0
	}
	if mine.asked == 0 {
		interval = 0
	}
	// Each of these is a conditional move and no branch: what is known of a question is as good as random.
	last := now
	if since(other.asked, now) > 0 { // it was overtaken
		last = other.asked
	}
	if last == 0 {
		last = now
	}
	// One by one: a struct would be built and copied, and the copy would wait for the small stores before it.
	mine.asked, mine.id, mine.port, mine.answer, mine.interval = now, q.ID, seen.port, answer, uint16(interval)
	set.last[at] = last
}

// otherID reports whether the same question was asked from the same port with another ID, after the one that was
// asked age ago. A resolver keeps its socket for one lookup; if one socket serves all lookups, as in a forwarder, an
// equal ID is a coincidence.
func (h *half) otherID(q asked, age int32) bool {
	return h.asked != 0 && h.port == q.port && h.id != q.id && since(q.now, h.asked) < age
}

// asked is a question that has just come.
type asked struct {
	port, id uint16
	now      uint32
}

// joins is for the other half of a question that was found to be asked again a moment ago. It is the
// same wait of the client, which has been counted, or will be.
func (sh *shard) joins(e *question, half int, port uint16) {
	d := &sh.recent.decisions
	i := d.find(e.tag)
	if i < 0 {
		return
	}
	x := &d.open[i]
	switch x.wait {
	case waitNewHalf:
		x.counts.lost(port, e.half[1-half].port)
		x.client.countRetransmit(x.counts)
		d.remove(i)
	case waitBothHalves:
		if x.series {
			d.remove(i)
			return
		}
		x.wait, x.counts.suspected = waitThird, true
		x.due = e.event + thirdWithin
		d.reckon()
	case waitRepeatedHalf:
		d.remove(i)
	}
}

// again handles a question that arrived before with the same port and ID.
func (sh *shard) again(c *client, e *question, other *half, q asked, age int32, state uint32) {
	counts := retransmit{resolver: UnknownResolver, cause: ReplyLost}
	slow := state == statePending || state == stateVeryLate
	switch {
	case after(age, retry, lateKnown):
		counts.resolver = Glibc
	case after(age, muslRetry, lateKnown):
		counts.resolver = Musl
		slow = slow || state == stateLate
	default:
		slow = slow || state == stateLate && age < retry
	}
	sh.known(c, e, other, q, q.now-uint32(age), age, counts, slow)
}

// known decides about a question that is certainly asked again. It was asked first at the time first.
func (sh *shard) known(c *client, e *question, other *half, q asked, first uint32, age int32, counts retransmit, slow bool) {
	now := q.now
	both := near(other.asked, first, pairGap)
	if both && other.answer == failed {
		return // glibc asks for both again when one fails
	}
	if slow || both && other.late(age) {
		counts.cause = SlowUpstream
	} else if counts.resolver != Musl && c.pairsUp() && !both && (other.asked == 0 || since(other.asked, first) <= 0 || since(now, other.asked) <= pairGap) {
		// glibc sends both halves again: did the other one arrive for the first time? That cannot be decided if the
		// name was asked meanwhile.
		if near(now, other.asked, pairGap) {
			counts.lost(q.port, other.port)
		} else {
			sh.decide(decision{client: c, tag: e.tag, due: now + joinGap, wait: waitNewHalf, counts: counts})
			return
		}
	}
	c.countRetransmit(counts)
}

// maybeRepeated handles a question that never arrived before with this port and ID.
func (sh *shard) maybeRepeated(c *client, e *question, i int, q asked) {
	mine, other := &e.half[i], &e.half[1-i]
	d := &sh.recent.decisions
	if d.n > 0 && mine.earlier(q.now) {
		if at := d.find(e.tag); at >= 0 && d.open[at].wait == waitThird {
			d.remove(at)
			return
		}
	}
	age, otherAge := since(q.now, mine.asked), since(q.now, other.asked)
	series := mine.interval >= seriesFrom && mine.interval <= seriesTo
	switch {
	case mine.answer == failed && mine.fresh(q.now), other.answer == failed && other.fresh(q.now):
	case mine.earlier(q.now):
		switch {
		case q.port == mine.port:
		case q.id == mine.id && after(age, retry, lateKnown) && near(e.event, mine.asked, pairGap):
			// glibc's third: an ID that is the same by accident is not likely just after a second.
			e.repeated(q.now, i)
			sh.known(c, e, other, q, mine.asked, age, retransmit{resolver: Glibc, cause: ReplyLost}, mine.late(age))
		case q.id != mine.id && after(age, retry, lateGo):
			e.repeated(q.now, i)
			sh.repeatedLikeGo(c, e, mine, other, q.now, age, series)
		}
	case !other.earlier(q.now) || near(other.asked, mine.asked, pairGap) || other.late(otherAge):
	case after(otherAge, muslRetry, lateKnown) && q.port == other.port:
		// musl asks again only for what has no answer: this half arrived for the first time now.
		e.repeated(q.now, i)
		c.countRetransmit(retransmit{resolver: Musl, cause: QueryLost, suspected: true})
	case after(otherAge, retry, lateGo) && q.port != other.port && q.id != other.id && c.pairsUp():
		e.repeated(q.now, i)
		sh.decide(decision{
			client: c, tag: e.tag, due: q.now + joinGap, wait: waitRepeatedHalf,
			counts: retransmit{resolver: Go, cause: QueryLost, suspected: true},
		})
	}
}

// repeatedLikeGo decides about a question that is asked again after 5 s with another port and ID.
func (sh *shard) repeatedLikeGo(c *client, e *question, mine, other *half, now uint32, age int32, series bool) {
	counts := retransmit{resolver: Go, cause: ReplyLost}
	switch pair := near(other.asked, mine.asked, pairGap); {
	case mine.late(age):
		counts.cause = SlowUpstream
		c.countRetransmit(counts)
	case pair:
		sh.decide(decision{client: c, tag: e.tag, due: now + joinGap, wait: waitBothHalves, series: series, counts: counts})
	case !series:
		counts.suspected = true
		sh.decide(decision{client: c, tag: e.tag, due: now + thirdWithin, wait: waitThird, counts: counts})
	}
}

func (sh *shard) decide(x decision) {
	if !sh.recent.decisions.add(x) {
		sh.lost[LossUndecided]++
	}
}
