package upstream

import (
	"encoding/binary"

	"github.com/miekg/dns"
)

// decode unpacks the common answers: the question as asked, and records of types A, AAAA, CNAME and SOA whose names
// have only letters, digits, hyphens and underscores, and an OPT record without options. Names equal to the question
// share its string. asked is the question in presentation form. decode returns false for everything else, malformed
// messages included, and the caller uses the library.
//
// If the client sent no OPT record, the one in an answer with NOERROR or NXDOMAIN is checked and left out: it would
// be removed later anyway. With other RCODEs it shows whether the server knows EDNS.
func (q *question) decode(msg []byte, asked *dns.Question) (*dns.Msg, bool) {
	if !q.shareable || len(msg) < q.end || binary.BigEndian.Uint16(msg[4:]) != 1 ||
		string(msg[headerLen:q.end]) != string(q.wire[headerLen:q.end]) {
		return nil, false
	}
	d := decoder{msg: msg, off: q.end, question: asked.Name}
	made := &struct { // one allocation
		dns.Msg
		question [1]dns.Question
	}{question: [1]dns.Question{*asked}}
	m := &made.Msg
	m.Question = made.question[:]
	m.Id = binary.BigEndian.Uint16(msg)
	m.Response = msg[2]&0x80 != 0
	m.Opcode = int(msg[2]>>3) & 0xf
	m.Authoritative = msg[2]&0x04 != 0
	m.Truncated = msg[2]&0x02 != 0
	m.RecursionDesired = msg[2]&0x01 != 0
	m.RecursionAvailable = msg[3]&0x80 != 0
	m.Zero = msg[3]&0x40 != 0
	m.AuthenticatedData = msg[3]&0x20 != 0
	m.CheckingDisabled = msg[3]&0x10 != 0
	m.Rcode = int(msg[3] & 0x0f)
	m.Answer = d.records(binary.BigEndian.Uint16(msg[6:]))
	m.Ns = d.records(binary.BigEndian.Uint16(msg[8:]))
	d.bare = q.bare && (m.Rcode == dns.RcodeSuccess || m.Rcode == dns.RcodeNameError)
	m.Extra = d.records(binary.BigEndian.Uint16(msg[10:]))
	if d.failed || d.off != len(msg) {
		return nil, false
	}
	if d.opts > 0 {
		if opt := m.IsEdns0(); opt != nil {
			m.Rcode |= opt.ExtendedRcode()
		}
	}
	return m, d.opts <= 1
}

// unpack reads an answer to q.
func (q *question) unpack(msg []byte) (*dns.Msg, error) {
	if m, ok := q.decode(msg, &q.asked); ok {
		return m, nil
	}
	m := new(dns.Msg)
	if err := m.Unpack(msg); err != nil {
		return nil, err
	}
	return m, nil
}

// decoder reads records. After a failure it reads nothing any more.
type decoder struct {
	msg      []byte
	off      int
	question string
	opts     int
	bare     bool // OPT records are left out
	failed   bool
}

func (d *decoder) records(n uint16) []dns.RR {
	// A record has at least 11 octets: allocate no room for records that cannot exist.
	if n == 0 || d.failed || int(n) > (len(d.msg)-d.off)/11 {
		d.failed = d.failed || n > 0
		return nil
	}
	var list []dns.RR
	for range n {
		if d.bare && d.passOPT() {
			continue
		}
		rr := d.record()
		if rr == nil {
			d.failed = true
			return nil
		}
		if list == nil {
			list = make([]dns.RR, 0, n)
		}
		list = append(list, rr)
	}
	return list
}

// passOPT skips an OPT record that has neither options nor RCODE bits.
func (d *decoder) passOPT() bool {
	const size = 11
	if d.off+size > len(d.msg) {
		return false
	}
	r := d.msg[d.off : d.off+size]
	if r[0] != 0 || binary.BigEndian.Uint16(r[1:]) != dns.TypeOPT || r[5] != 0 || r[9]|r[10] != 0 {
		return false
	}
	d.off += size
	d.opts++
	return true
}

// record returns the next record; nil for any other type.
func (d *decoder) record() dns.RR {
	owner, ok := d.name(len(d.msg))
	if !ok || d.off+10 > len(d.msg) {
		return nil
	}
	head := d.msg[d.off : d.off+10]
	h := dns.RR_Header{
		Name: owner, Rrtype: binary.BigEndian.Uint16(head), Class: binary.BigEndian.Uint16(head[2:]),
		Ttl: binary.BigEndian.Uint32(head[4:]), Rdlength: binary.BigEndian.Uint16(head[8:]),
	}
	d.off += 10
	end := d.off + int(h.Rdlength)
	if end > len(d.msg) {
		return nil
	}
	switch h.Rrtype {
	case dns.TypeA:
		if h.Rdlength == 4 {
			rr := &struct { // one allocation, of the size that the record has anyway
				dns.A
				addr [4]byte
			}{A: dns.A{Hdr: h}, addr: [4]byte(d.msg[d.off:end])}
			rr.A.A = rr.addr[:]
			d.off = end
			return &rr.A
		}
	case dns.TypeAAAA:
		if h.Rdlength == 16 {
			rr := &struct {
				dns.AAAA
				addr [16]byte
			}{AAAA: dns.AAAA{Hdr: h}, addr: [16]byte(d.msg[d.off:end])}
			rr.AAAA.AAAA = rr.addr[:]
			d.off = end
			return &rr.AAAA
		}
	case dns.TypeCNAME:
		if target, ok := d.name(end); ok && d.off == end {
			return &dns.CNAME{Hdr: h, Target: target}
		}
	case dns.TypeSOA:
		return d.soa(h, end)
	case dns.TypeOPT:
		if h.Rdlength == 0 && owner == "." {
			d.opts++
			return &dns.OPT{Hdr: h}
		}
	}
	return nil
}

func (d *decoder) soa(h dns.RR_Header, end int) dns.RR {
	ns, ok := d.name(end)
	if !ok {
		return nil
	}
	mbox, ok := d.name(end)
	if !ok || d.off+20 != end {
		return nil
	}
	number := func(i int) uint32 { return binary.BigEndian.Uint32(d.msg[d.off+4*i:]) }
	rr := &dns.SOA{Hdr: h, Ns: ns, Mbox: mbox, Serial: number(0), Refresh: number(1), Retry: number(2), Expire: number(3), Minttl: number(4)}
	d.off = end
	return rr
}

// name reads a name whose octets at this position end before limit.
func (d *decoder) name(limit int) (string, bool) {
	msg := d.msg
	if d.off+2 <= limit && msg[d.off] == 0xc0 && msg[d.off+1] == headerLen {
		d.off += 2
		return d.question, true
	}
	// Longer names than this have hardly ever been seen, and the stack is small.
	var room [128]byte
	name := room[:0]
	off, pointers := d.off, 0
	for {
		if off >= limit {
			return "", false
		}
		n := int(msg[off])
		off++
		switch {
		case n == 0:
			if pointers == 0 {
				d.off = off
			}
			if len(name) == 0 {
				return ".", true
			}
			if string(name) == d.question { // repeated instead of pointed to
				return d.question, true
			}
			return names.of(name), true
		case n >= 0xc0:
			if off >= limit {
				return "", false
			}
			to := n&0x3f<<8 | int(msg[off])
			if pointers == 0 {
				d.off = off + 1
			}
			if pointers++; pointers > 8 {
				return "", false
			}
			off, limit = to, len(msg)
		case n > 63, off+n > limit, len(name)+n+1 > len(room):
			return "", false
		default:
			for _, b := range msg[off : off+n] {
				if !plain(b) {
					return "", false
				}
				name = append(name, b)
			}
			name = append(name, '.')
			off += n
		}
	}
}

// plain reports whether b needs no escape in presentation form and may occur in a hostname.
func plain(b byte) bool {
	return 'a' <= b && b <= 'z' || '0' <= b && b <= '9' || b == '-' || b == '_' || 'A' <= b && b <= 'Z'
}
