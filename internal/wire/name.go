package wire

// name reads the name at off, which ends before end, and returns what follows it. There is no earlier name for
// the question's to point at.
func (r *reader) name(off, end int) (int, error) {
	start, size := off, 0
	for {
		if off >= end {
			return 0, refusal("a name is cut off")
		}
		label := int(r.msg[off])
		switch {
		case label == 0:
			if size+1 > maxName {
				return 0, refusal("a name is too long")
			}
			return off + 1, nil
		case label <= maxLabel:
			// A label that is cut off is noticed at its end, and what is marked of it is of no use then.
			r.labels[off/64] |= 1 << (off % 64)
			off += 1 + label
			size += 1 + label
		case label < 0xc0:
			return 0, refusal("a label has an unknown type")
		case off+2 > end:
			return 0, refusal("a name is cut off")
		default:
			to := (label&0x3f)<<8 | int(r.msg[off+1])
			if to >= start || r.labels[to/64]&(1<<(to%64)) == 0 {
				return 0, refusal("a name points at what is no earlier name")
			}
			if size+r.size(to) > maxName {
				return 0, refusal("a name is too long")
			}
			return off + 2, nil
		}
	}
}

// size is the length of a name that was read, uncompressed. Each of its pointers points before the name
// that it is in, and the whole is at most maxName long.
func (r *reader) size(off int) int {
	size := 1
	for {
		off = r.follow(off)
		label := int(r.msg[off])
		if label == 0 {
			return size
		}
		size += 1 + label
		off += 1 + label
	}
}

// follow is where the label is that a name that was read has at off, be it by a pointer.
func (r *reader) follow(off int) int {
	for r.msg[off] >= 0xc0 {
		off = int(r.msg[off]&0x3f)<<8 | int(r.msg[off+1])
	}
	return off
}

// sameName reports whether two names that were read are the same name.
func (r *reader) sameName(a, b int) bool {
	for {
		a, b = r.follow(a), r.follow(b)
		if a == b {
			return true
		}
		label := r.msg[a]
		if label != r.msg[b] {
			return false
		}
		if label == 0 {
			return true
		}
		for i := 1; i <= int(label); i++ {
			if lower(r.msg[a+i]) != lower(r.msg[b+i]) {
				return false
			}
		}
		a += 1 + int(label)
		b += 1 + int(label)
	}
}

func lower(b byte) byte {
	if b-'A' < 26 {
		b |= 0x20
	}
	return b
}

// rdata reads the names in the RDATA of a record. Of a type that has no names, or is not known, all octets
// are the same to everybody (RFC 3597).
func (r *reader) rdata(kind uint16, off, end int) error {
	if kind >= typeMetaFirst && kind <= typeMetaLast {
		return refusal("a record's type is not one of data")
	}
	names, tail := 1, 0 // tail is the length of what follows the names, -1 for any
	switch kind {
	default:
		return nil
	case typeNS, typeMD, typeMF, typeCNAME, typeMB, typeMG, typeMR, typePTR, typeNSAPPTR, typeDNAME:
	case typeMINFO, typeRP, typeTALINK:
		names = 2
	case typeSOA:
		names, tail = 2, 20
	case typeMX, typeAFSDB, typeRT, typeKX, typeLP:
		off += 2
	case typePX:
		off += 2
		names = 2
	case typeSRV:
		off += 6
	case typeSVCB, typeHTTPS:
		off += 2
		tail = -1
	case typeNXT, typeNSEC:
		tail = -1
	case typeRRSIG:
		off += 18
		tail = -1
	case typeNAPTR:
		off += 4
		for range 3 { // flags, services, regexp
			if off >= end {
				return refusal("RDATA is shorter than its type's")
			}
			off += 1 + int(r.msg[off])
		}
	case typeHIP, typeIPSECKEY, typeAMTRELAY:
		return refusal("a record's names are hard to find")
	case typeSIG:
		return refusal("a signature may cover the message")
	}
	for range names {
		next, err := r.name(off, end)
		if err != nil {
			return err
		}
		off = next
	}
	if tail >= 0 && off+tail != end {
		return refusal("RDATA has not its type's length")
	}
	return nil
}
