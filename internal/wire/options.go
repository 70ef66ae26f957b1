package wire

import "encoding/binary"

// HasOptions reports whether msg is a query that is plain but for what its OPT record says: options (cookies, the
// client's subnet, padding), another version or other flags (RFC 6891, section 6.1.2). Such a query has one
// question, an OPT record that ends the message, and no signature. The options themselves are not looked at.
func HasOptions(msg []byte) bool {
	q, ok := Question(msg)
	if !ok || binary.BigEndian.Uint16(msg[2:])&^0x0130 != 0 || binary.BigEndian.Uint64(msg[4:]) != 1<<48|1 {
		return false
	}
	opt := msg[headerSize+len(q):]
	return len(opt) >= optSize && opt[0] == 0 && binary.BigEndian.Uint16(opt[1:]) == typeOPT &&
		int(binary.BigEndian.Uint16(opt[optSize-2:])) == len(opt)-optSize
}

// Question is the first question of msg, with an uncompressed name: name, type and class as they stand there. ok is
// false where there is none.
func Question(msg []byte) (question []byte, ok bool) {
	if len(msg) < headerSize || binary.BigEndian.Uint16(msg[4:]) == 0 {
		return nil, false
	}
	for end := headerSize; end < len(msg) && end-headerSize < maxName; {
		label := int(msg[end])
		if label > maxLabel {
			return nil, false
		}
		end += 1 + label
		if label == 0 {
			if end-headerSize > maxName || len(msg)-end < 4 {
				return nil, false
			}
			return msg[headerSize : end+4], true
		}
	}
	return nil, false
}

// LowerName appends the name that a question begins with to dst, in lower case (RFC 4343).
func LowerName(dst, question []byte) []byte {
	for _, b := range question[:len(question)-4] {
		if 'A' <= b && b <= 'Z' {
			b |= 0x20 // the length of a label is below A
		}
		dst = append(dst, b)
	}
	return dst
}
