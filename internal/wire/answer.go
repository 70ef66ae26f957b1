package wire

import (
	"bytes"
	"encoding/binary"
)

// MaxAnswer is the longest answer, in octets, that ParseAnswer takes. RFC 6891, section 6.2.5, suggests
// 4096 as the most to ask for, and few ask for more; a longer one is rare, and one copy of it
// would take the room of twenty others.
const MaxAnswer = 4096

// maxSets bounds the sets of addresses in a section that are compared with each other.
const maxSets = 64

// Answer describes an answer that can be said again. Offsets are octets from the message's beginning.
type Answer struct {
	// Question is the length of the question section, which begins after the header, at offset 12.
	Question int
	// Rcode is NOERROR (0) or NXDOMAIN (3).
	Rcode int
	// Truncated is the TC flag.
	Truncated bool
	// MinTTL is the least of the TTLs, in seconds: 1 to 2^31-1.
	MinTTL uint32
	// TTLs has the offset of each record's TTL field. OPT has none: its field of that name is another.
	TTLs []uint16
	// Sets are the RRsets of two or more addresses. The RDATA of each may be rotated within the set.
	Sets []Set
	// Rotatable reports whether Sets has all that a server moves that rotates addresses and mail exchangers
	// within their RRsets. It has not where the TTLs of an RRset differ, and where there are several mail
	// exchangers. There are no Sets then.
	Rotatable bool
}

// Set is an RRset of addresses: its records differ in their RDATA only, other than in how the owner is
// written. They need not be neighbours.
type Set struct {
	Size  uint16   // of an RDATA: 4 or 16
	RDATA []uint16 // offsets
}

// refusal says why an answer cannot be replayed. It is an error without an allocation.
type refusal string

func (r refusal) Error() string { return "wire: not replayed: " + string(r) }

// ParseAnswer reads msg and describes it, or says why it is not to be replayed. It takes answers to one
// QUERY question with RCODE NOERROR or NXDOMAIN, every octet of which belongs to a record, every record of
// which has a TTL from 1 to 2^31-1 (a greater one counts as 0: RFC 2181, section 8), and every name of
// which is made of octets that no replay changes other than in the question's letters. It refuses those
// with signatures over the message (TSIG, SIG(0)), with EDNS options, which may be meant for one client,
// and those longer than [MaxAnswer].
func ParseAnswer(msg []byte) (Answer, error) {
	if len(msg) < headerSize+1+4 {
		return Answer{}, refusal("it is shorter than a header and a question")
	}
	if len(msg) > MaxAnswer {
		return Answer{}, refusal("it is longer than 4096 octets")
	}
	flags := binary.BigEndian.Uint16(msg[2:])
	if flags&0xf840 != 0x8000 {
		return Answer{}, refusal("it is no answer to a QUERY")
	}
	a := Answer{Rcode: int(flags & 0xf), Truncated: flags&0x0200 != 0, Rotatable: true}
	if a.Rcode != 0 && a.Rcode != 3 {
		return Answer{}, refusal("its RCODE is neither NOERROR nor NXDOMAIN")
	}
	if binary.BigEndian.Uint16(msg[4:]) != 1 {
		return Answer{}, refusal("it has not one question")
	}
	r := reader{msg: msg, answer: &a}
	end, err := r.name(headerSize, len(msg))
	if err != nil {
		return Answer{}, err
	}
	if end+4 > len(msg) {
		return Answer{}, refusal("its question is cut off")
	}
	a.Question = end + 4 - headerSize
	r.off = end + 4
	for section := range 3 {
		if err := r.section(section, int(binary.BigEndian.Uint16(msg[6+2*section:]))); err != nil {
			return Answer{}, err
		}
	}
	if r.off != len(msg) {
		return Answer{}, refusal("octets follow its last record")
	}
	if len(a.TTLs) == 0 {
		return Answer{}, refusal("it has no TTL")
	}
	if !a.Rotatable {
		a.Sets = nil
	}
	return a, nil
}

// reader is the state of ParseAnswer.
type reader struct {
	msg    []byte
	off    int
	answer *Answer
	opt    bool // an OPT record was read
	sets   []addresses
	// labels has a bit for each octet at which a label of an earlier name begins. A compression pointer
	// has to point at one of them. So what a name is made of is neither patched nor moved by a replay.
	labels [MaxAnswer / 64]uint64
}

// addresses are a set, or one address, of a section.
type addresses struct {
	Set
	owner, fixed int // where its first record has its owner and its TYPE
}

func (r *reader) section(section, count int) error {
	r.sets = r.sets[:0]
	exchangers := 0
	for range count {
		owner := r.off
		fixed, err := r.name(owner, len(r.msg))
		if err != nil {
			return err
		}
		rdata := fixed + fixedSize
		if rdata > len(r.msg) {
			return refusal("a record is cut off")
		}
		end := rdata + int(binary.BigEndian.Uint16(r.msg[fixed+8:]))
		if end > len(r.msg) {
			return refusal("RDATA is cut off")
		}
		r.off = end
		kind := binary.BigEndian.Uint16(r.msg[fixed:])
		if kind == typeOPT {
			if err := r.option(section, owner, fixed, end); err != nil {
				return err
			}
			continue
		}
		if err := r.ttl(fixed + 4); err != nil {
			return err
		}
		if kind != typeA && kind != typeAAAA {
			if err := r.rdata(kind, rdata, end); err != nil {
				return err
			}
			if kind == typeMX {
				if exchangers++; exchangers > 1 {
					r.answer.Rotatable = false
				}
			}
			continue
		}
		if size := end - rdata; kind == typeA && size != 4 || kind == typeAAAA && size != 16 {
			return refusal("an address has not its type's length")
		}
		r.address(owner, fixed, end)
	}
	if r.answer.Rcode != 0 {
		return nil // nobody rotates these
	}
	for _, s := range r.sets {
		if len(s.RDATA) > 1 {
			r.answer.Sets = append(r.answer.Sets, s.Set)
		}
	}
	return nil
}

// address adds the address record at owner to the set that it belongs to.
func (r *reader) address(owner, fixed, end int) {
	rdata := uint16(fixed + fixedSize)
	// The record before this one is of the same set more often than not.
	for i := len(r.sets) - 1; i >= 0; i-- {
		s := &r.sets[i]
		if !bytes.Equal(r.msg[s.fixed:s.fixed+4], r.msg[fixed:fixed+4]) || !r.sameName(s.owner, owner) {
			continue
		}
		if !bytes.Equal(r.msg[s.fixed+4:s.fixed+8], r.msg[fixed+4:fixed+8]) {
			r.answer.Rotatable = false
		}
		s.RDATA = append(s.RDATA, rdata)
		return
	}
	if len(r.sets) == maxSets {
		r.answer.Rotatable = false // for all that is known
		return
	}
	size := uint16(end) - rdata
	r.sets = append(r.sets, addresses{Set: Set{Size: size, RDATA: []uint16{rdata}}, owner: owner, fixed: fixed})
}

// option reads an OPT record (RFC 6891, section 6.1.2).
func (r *reader) option(section, owner, fixed, end int) error {
	switch {
	case section != 2 || r.opt || fixed != owner+1:
		return refusal("an OPT record is where none may be")
	case r.msg[fixed+4] != 0:
		return refusal("its RCODE is an extended one")
	case r.msg[fixed+5] != 0:
		return refusal("its EDNS version is not 0")
	case end != fixed+fixedSize:
		return refusal("it has EDNS options")
	}
	r.opt = true
	return nil
}

func (r *reader) ttl(off int) error {
	ttl := binary.BigEndian.Uint32(r.msg[off:])
	if ttl == 0 || ttl > 1<<31-1 {
		return refusal("a TTL is 0")
	}
	a := r.answer
	if len(a.TTLs) == 0 || ttl < a.MinTTL {
		a.MinTTL = ttl
	}
	a.TTLs = append(a.TTLs, uint16(off))
	return nil
}
