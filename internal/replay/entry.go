package replay

import (
	"encoding/binary"
	"math/rand/v2"
	"sync/atomic"
	"time"
	"unsafe"

	"localcache.dev/localcache/internal/wire"
)

const (
	second = int64(time.Second)
	// headerSize is the length of a message's header, which the question follows.
	headerSize = 12
)

// Entry is a stored answer. It may be used for as long as somebody has it, also after its eviction.
type Entry struct {
	next atomic.Pointer[Entry] // in the chain of its table's place; written under the shard's lock
	hash uint64
	data []byte // the key, the answer, the offsets of its TTLs, the sets to rotate
	// stored is not after the time for which the answer's TTLs are right, and until is the last moment
	// at which the entry is for use. Both are in nanoseconds of the caller's clock.
	stored, until int64
	class         uint32
	key, answer   uint16 // lengths in data
	ttls, sets    uint16 // numbers of them

	slot int32         // in its shard; under the shard's lock
	mark atomic.Uint32 // of use, up to maxMark

	uses   atomic.Uint64 // see uses.go
	gap    uint32        // of PutOptions, in milliseconds
	linger uint16        // seconds for which it is kept after until, for its uses
	limit  uint16        // of uses; 0: they are not counted
}

// entryCost is what an entry takes beside its data: itself, its slot, and its share of the table and of
// what both keep in reserve.
const entryCost = int64(unsafe.Sizeof(Entry{})) + 10 + 12

// cost is about what e takes, in octets. Go rounds a small allocation up by a sixteenth on average.
func (e *Entry) cost() int64 {
	n := int64(cap(e.data))
	return entryCost + n + n/16
}

func newEntry(q *wire.Query, answer []byte, a *wire.Answer, o PutOptions) *Entry {
	key := q.Key()
	size := len(key) + len(answer) + 2*len(a.TTLs)
	if o.Rotate {
		for _, s := range a.Sets {
			size += 4 + 2*len(s.RDATA)
		}
	}
	data := make([]byte, 0, size)
	data = append(data, key...)
	data = append(data, answer...)
	for _, off := range a.TTLs {
		data = binary.BigEndian.AppendUint16(data, off)
	}
	e := &Entry{
		hash: q.Hash(), stored: o.Now, until: until(a.MinTTL, o), class: o.Class,
		key: uint16(len(key)), answer: uint16(len(answer)), ttls: uint16(len(a.TTLs)),
	}
	e.countUses(a.MinTTL, o)
	if o.Rotate {
		e.sets = uint16(len(a.Sets))
		for _, s := range a.Sets {
			data = binary.BigEndian.AppendUint16(data, s.Size)
			data = binary.BigEndian.AppendUint16(data, uint16(len(s.RDATA)))
			for _, off := range s.RDATA {
				data = binary.BigEndian.AppendUint16(data, off)
			}
		}
	}
	e.data = data
	return e
}

// until is the last moment at which an answer with this least TTL is for use. See age.
func until(minTTL uint32, o PutOptions) int64 {
	end := o.Now + int64(minTTL-1)*second
	if o.PassAfter != 0 {
		end = min(end, o.PassAfter-1)
	}
	return end
}

// age is how many seconds the TTLs have to lose at now. The chain's clock counts seconds from a beginning
// that is not known here, so the next of its seconds may have begun at any time since the answer was stored:
// a part of a second counts as a whole one. The answer's TTLs are then what the chain would say, or 1 less.
func (e *Entry) age(now int64) uint32 {
	if now <= e.stored {
		return 0
	}
	return uint32((now - e.stored + second - 1) / second)
}

// is reports whether e is the entry of q.
func (e *Entry) is(q *wire.Query) bool {
	return e.hash == q.Hash() && string(e.data[:e.key]) == string(q.Key())
}

// Class is the tag that the caller gave the answer.
func (e *Entry) Class() uint32 { return e.class }

// Key is the key of the query that e is for (wire.Query.Key). It does not change, and is not to be changed.
func (e *Entry) Key() []byte { return e.data[:e.key:e.key] }

// Len is the length of the answer, in octets.
func (e *Entry) Len() int { return int(e.answer) }

// Append appends the answer to dst as an answer to q, which has to be the query that e was found for: with
// its ID and the letters of its question, TTLs less the age at now, the time that Get was given, and each
// set of addresses rotated by chance where that was asked for. It allocates nothing where dst has room.
func (e *Entry) Append(dst []byte, q *wire.Query, now int64) []byte {
	begin := len(dst)
	key := int(e.key)
	dst = append(dst, e.data[key:key+int(e.answer)]...)
	msg := dst[begin:]
	binary.BigEndian.PutUint16(msg, q.ID())
	copy(msg[headerSize:], q.Question())
	rest := e.data[key+int(e.answer):]
	if age := e.age(now); age != 0 {
		for i := range int(e.ttls) {
			field := msg[binary.BigEndian.Uint16(rest[2*i:]):]
			ttl := binary.BigEndian.Uint32(field)
			binary.BigEndian.PutUint32(field, ttl-min(age, ttl))
		}
	}
	sets := rest[2*int(e.ttls):]
	for range int(e.sets) {
		size, count := int(binary.BigEndian.Uint16(sets)), int(binary.BigEndian.Uint16(sets[2:]))
		offsets := sets[4 : 4+2*count]
		rotate(msg, e.data[key:], offsets, size)
		sets = sets[4+2*count:]
	}
	return dst
}

// rotate copies the RDATA of a set, each of so many octets, from answer to msg, so that another is the
// first. Which one is left to chance, since a counter would be shared by all readers.
func rotate(msg, answer, offsets []byte, size int) {
	from := 2 * rand.IntN(len(offsets)/2)
	for to := 0; to < len(offsets); to += 2 {
		source := int(binary.BigEndian.Uint16(offsets[from:]))
		target := int(binary.BigEndian.Uint16(offsets[to:]))
		copy(msg[target:target+size], answer[source:source+size])
		if from += 2; from == len(offsets) {
			from = 0
		}
	}
}
