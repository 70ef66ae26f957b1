package wire

import (
	"encoding/binary"
	"hash/maphash"
)

// The flags in a key. They are ours, and not where the header has them.
const (
	flagRD = 1 << iota
	flagCD
	flagAD
	flagEDNS
	flagDO
)

const (
	// keyTail is what follows the name in a key: type, class, flags and buffer size.
	keyTail = 2 + 2 + 1 + 2
	// room holds a question section or a key, in whole words.
	room = (maxName + keyTail + 7) / 8 * 8
	// MaxQuery is the length of the longest plain query, in octets.
	MaxQuery = headerSize + maxName + 4 + optSize
)

// seed differs in each process, so that nobody outside can choose names that collide.
var seed = maphash.MakeSeed()

// Query is a plain query read from a datagram. The zero value is ready. One Query may read any number of
// datagrams, one after the other; it keeps nothing of them but copies, and may itself be copied. Its
// methods other than Parse describe the last datagram for which Parse was true.
type Query struct {
	key   [room]byte // the lower-cased name, type, class, flags, buffer size
	asked [room]byte // the question section in the client's letters
	name  int        // octets of the name
	hash  uint64
	id    uint16
}

// Parse reads msg, a datagram's payload, and reports whether it is a plain query: opcode QUERY, of the
// header's flags only RD, AD and CD, one question of any type and class with an uncompressed name, and
// after it nothing or one OPT record of version 0 with a root owner, no options and no flag but DO.
// It allocates nothing. Where it is false, the Query is not to be used.
func (q *Query) Parse(msg []byte) bool {
	if len(msg) < headerSize+1+4 || len(msg) > MaxQuery {
		return false
	}
	flags := binary.BigEndian.Uint16(msg[2:])
	counts := binary.BigEndian.Uint64(msg[4:])
	if flags&^0x0130 != 0 || counts&^1 != 1<<48 {
		return false
	}
	end := headerSize
	for {
		label := int(msg[end])
		if label == 0 {
			end++
			break
		}
		end += 1 + label
		if label > maxLabel || end >= len(msg) {
			return false
		}
	}
	name := end - headerSize
	rest := msg[end:]
	if name > maxName || len(rest) < 4 {
		return false
	}
	f := byte(flags>>8) | byte(flags)>>3 // RD, CD, AD
	var size uint16
	if counts&1 == 0 {
		if len(rest) != 4 {
			return false
		}
	} else {
		if len(rest) != 4+optSize {
			return false
		}
		opt := rest[4:]
		size = binary.BigEndian.Uint16(opt[3:])
		z := binary.BigEndian.Uint16(opt[7:])
		if opt[0] != 0 || binary.BigEndian.Uint16(opt[1:]) != typeOPT || // owner, type
			opt[5]|opt[6] != 0 || z&0x7fff != 0 || // extended RCODE, version, flags
			opt[9]|opt[10] != 0 { // options
			return false
		}
		f |= flagEDNS | byte(z>>15)*flagDO
	}
	copy(q.asked[:], msg[headerSize:end+4])
	for i := 0; i < name; i += 8 {
		binary.LittleEndian.PutUint64(q.key[i:], lower8(binary.LittleEndian.Uint64(q.asked[i:])))
	}
	tail := q.key[name : name+keyTail]
	copy(tail, rest[:4])
	tail[4] = f
	binary.BigEndian.PutUint16(tail[5:], size)
	q.name = name
	q.id = binary.BigEndian.Uint16(msg)
	q.hash = maphash.Bytes(seed, q.key[:name+keyTail])
	return true
}

// lower8 turns those of eight octets that are A to Z into a to z (RFC 4343, section 3). The lengths of
// labels are below A, so that a whole name can be given.
func lower8(v uint64) uint64 {
	const (
		ones = 0x0101010101010101
		high = 0x80 * ones
	)
	low := v &^ high
	fromA := low + (0x80-'A')*ones
	overZ := low + (0x80-'Z'-1)*ones
	return v | (fromA&^overZ&^v&high)>>2
}

// Key is all that the answer depends on: name, type, class, the flags RD, AD, CD and DO, whether there is an
// OPT record, and its buffer size, which the answer's OPT record repeats. It is valid until the next Parse.
func (q *Query) Key() []byte { return q.key[:q.name+keyTail] }

// Name is the lower-cased name in wire format, the beginning of Key. It is valid until the next Parse.
func (q *Query) Name() []byte { return q.key[:q.name] }

// Question is the question section in the letters that the client used, which it may want to see again
// (the 0x20 of draft-vixie-dnsext-dns0x20). It is valid until the next Parse.
func (q *Query) Question() []byte { return q.asked[:q.name+4] }

// Asks reports whether question, a question section, asks the same, be it in other letters.
func (q *Query) Asks(question []byte) bool {
	if len(question) != q.name+4 {
		return false
	}
	for i, b := range question[:q.name] {
		if b-'A' < 26 {
			b |= 0x20
		}
		if b != q.key[i] {
			return false
		}
	}
	return string(question[q.name:]) == string(q.key[q.name:q.name+4])
}

// ID is the message's ID.
func (q *Query) ID() uint16 { return q.id }

// Type is the QTYPE.
func (q *Query) Type() uint16 { return binary.BigEndian.Uint16(q.key[q.name:]) }

// Class is the QCLASS.
func (q *Query) Class() uint16 { return binary.BigEndian.Uint16(q.key[q.name+2:]) }

// RD reports whether recursion is desired.
func (q *Query) RD() bool { return q.flag(flagRD) }

// AD reports whether the client understands the AD flag of answers (RFC 6840, section 5.7).
func (q *Query) AD() bool { return q.flag(flagAD) }

// CD reports whether checking is disabled (RFC 4035, section 3.2.2).
func (q *Query) CD() bool { return q.flag(flagCD) }

// EDNS reports whether there is an OPT record.
func (q *Query) EDNS() bool { return q.flag(flagEDNS) }

// DO reports whether DNSSEC's records are wanted (RFC 3225).
func (q *Query) DO() bool { return q.flag(flagDO) }

// Size is the buffer size of the OPT record, as it was sent, and 0 where there is none.
func (q *Query) Size() uint16 { return binary.BigEndian.Uint16(q.key[q.name+5:]) }

// Hash is a hash of Key. It differs in each process.
func (q *Query) Hash() uint64 { return q.hash }

func (q *Query) flag(f byte) bool { return q.key[q.name+4]&f != 0 }
