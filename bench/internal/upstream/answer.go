// Package upstream is the authoritative server behind the compared caches: it knows every name, answers after a
// configurable delay, over UDP and TCP, and counts its queries.
package upstream

import (
	"bytes"
	"encoding/binary"
	"net/netip"
)

// TTL of every answer, and of the SOA in negative ones, in seconds: nothing expires during a run.
const TTL = 3600

// Types that have records, RFC 1035 and RFC 3596. All others get NODATA.
const (
	typeA    = 1
	typeAAAA = 28
	typeSOA  = 6
)

const rcodeNXDomain = 3

var (
	clusterZone = []byte("\x07cluster\x05local\x00")
	serviceZone = []byte("\x03svc\x07cluster\x05local\x00")
)

// soa is the RDATA of a SOA record with made-up names and TTL as the minimum (RFC 2308).
var soa = binary.BigEndian.AppendUint32(
	[]byte("\x02ns\x03dns\x00\x0ahostmaster\x00\x00\x00\x00\x01\x00\x00\x1c\x20\x00\x00\x07\x08\x00\x01\x51\x80"), TTL)

// Exists reports whether a name in wire format has addresses: below cluster.local only those of Services
// (name.namespace.svc.cluster.local), elsewhere all.
func Exists(name []byte) bool {
	lower := bytes.ToLower(name) // length bytes are below 64, so that no letter is among them
	if !endsIn(lower, clusterZone) {
		return true
	}
	// The zones themselves exist, as empty non-terminals do.
	if len(lower) == len(clusterZone) || bytes.Equal(lower, serviceZone) {
		return true
	}
	return endsIn(lower, serviceZone) && labels(lower) == 5
}

func endsIn(name, zone []byte) bool {
	at := len(name) - len(zone)
	if at < 0 || !bytes.Equal(name[at:], zone) {
		return false
	}
	for i := 0; i <= at; i += int(name[i]) + 1 {
		if i == at {
			return true // on the border of a label
		}
	}
	return false
}

func labels(name []byte) int {
	n := 0
	for i := 0; name[i] != 0; i += int(name[i]) + 1 {
		n++
	}
	return n
}

// Address returns the A or AAAA record of a name in wire format. It is derived from the name, so that a client can
// tell that the answer belongs to it.
func Address(name []byte, qtype uint16) netip.Addr {
	h := uint32(2166136261) // FNV-1a
	for _, c := range name {
		if c >= 'A' && c <= 'Z' {
			c += 'a' - 'A'
		}
		h = (h ^ uint32(c)) * 16777619
	}
	if qtype == typeA {
		return netip.AddrFrom4([4]byte{10, byte(h >> 16), byte(h >> 8), byte(h)})
	}
	return netip.AddrFrom16([16]byte{0: 0xfd, 12: byte(h >> 24), 13: byte(h >> 16), 14: byte(h >> 8), 15: byte(h)})
}

// nameLen returns the length of the name in wire format at the start of b; 0 if it is malformed or compressed.
func nameLen(b []byte) int {
	for i := 0; i < len(b) && i < 255; i += int(b[i]) + 1 {
		if b[i] == 0 {
			return i + 1
		}
		if b[i] > 63 {
			return 0
		}
	}
	return 0
}

// Answer appends the response to query q to dst. It returns dst unchanged if q is no query.
func Answer(dst, q []byte) []byte {
	if len(q) < 17 || q[2]&0x80 != 0 || binary.BigEndian.Uint16(q[4:]) != 1 {
		return dst
	}
	n := nameLen(q[12:])
	end := 12 + n + 4
	if n == 0 || end > len(q) {
		return dst
	}
	name, qtype := q[12:12+n], binary.BigEndian.Uint16(q[12+n:])
	exists := Exists(name)
	base := len(dst)
	dst = append(dst, q[:end]...)
	h := dst[base : base+12]
	h[2] = 0x84 | q[2]&0x79 // QR and AA; opcode and RD are the query's
	h[3] = 0x80             // RA
	copy(h[4:], []byte{0, 1, 0, 0, 0, 0, 0, 0})
	if exists && (qtype == typeA || qtype == typeAAAA) {
		h[7] = 1
		rdata := Address(name, qtype).AsSlice()
		dst = append(dst, 0xc0, 12, byte(qtype>>8), byte(qtype), 0, 1)
		dst = binary.BigEndian.AppendUint32(dst, TTL)
		dst = append(dst, 0, byte(len(rdata)))
		dst = append(dst, rdata...)
	} else {
		if !exists {
			h[3] |= rcodeNXDomain
		}
		h[9] = 1
		if at := n - len(clusterZone); at >= 0 && endsIn(bytes.ToLower(name), clusterZone) {
			dst = append(dst, 0xc0|byte((12+at)>>8), byte(12+at))
		} else {
			dst = append(dst, 0)
		}
		dst = append(dst, 0, typeSOA, 0, 1)
		dst = binary.BigEndian.AppendUint32(dst, TTL)
		dst = append(dst, 0, byte(len(soa)))
		dst = append(dst, soa...)
	}
	if binary.BigEndian.Uint16(q[10:]) > 0 {
		dst[base+11] = 1
		dst = append(dst, 0, 0, 41, 0x04, 0xd0, 0, 0, 0, 0, 0, 0) // OPT, 1232 bytes (RFC 6891)
	}
	return dst
}
