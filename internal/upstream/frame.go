package upstream

import (
	"encoding/binary"
	"errors"
	"fmt"
)

// errBadFrame: the stream does not carry DNS messages. There is no way to find the next one.
var errBadFrame = errors.New("the upstream sent something that is not a DNS message")

const (
	// frameBuffer is the size of a connection's read buffer: room for several dozen answers.
	frameBuffer = 4096
	// frameKeep is the largest size up to which a grown buffer is kept.
	frameKeep = 16 << 10
	// frameMost is the longest message with its length (RFC 1035, section 4.2.2).
	frameMost = 2 + 1<<16 - 1
)

// frames cuts a stream into messages. Memory follows the octets that have come, not the length that
// was announced, and ends with the longest message.
type frames struct {
	buffer []byte
	start  int // of the unread part
	end    int
}

// space returns where to read into. It is never empty.
func (f *frames) space() []byte {
	if f.start == f.end {
		f.start, f.end = 0, 0
		if f.buffer == nil || cap(f.buffer) > frameKeep {
			f.buffer = make([]byte, frameBuffer)
		}
	}
	if f.end == len(f.buffer) {
		if f.start > 0 {
			f.end = copy(f.buffer, f.buffer[f.start:f.end])
			f.start = 0
		} else {
			grown := make([]byte, min(2*len(f.buffer), frameMost))
			copy(grown, f.buffer[:f.end])
			f.buffer = grown
		}
	}
	return f.buffer[f.end:]
}

// filled says that n octets were read into space.
func (f *frames) filled(n int) { f.end += n }

// next returns the next complete message; nil if there is none yet. It is valid until the next call of space.
func (f *frames) next() ([]byte, error) {
	rest := f.buffer[f.start:f.end]
	if len(rest) < 2 {
		return nil, nil
	}
	n := int(binary.BigEndian.Uint16(rest))
	if n < headerLen {
		return nil, fmt.Errorf("%w: a length of %d octets", errBadFrame, n)
	}
	if len(rest) > 4 && rest[4]&bitQR == 0 {
		// Checked before the message is complete: text, for example of an HTTP server, announces a length that never
		// arrives, and never has this bit.
		return nil, fmt.Errorf("%w: it is not a response", errBadFrame)
	}
	if len(rest) < 2+n {
		return nil, nil
	}
	f.start += 2 + n
	return rest[2 : 2+n], nil
}

// partial reports whether a message has begun and not ended.
func (f *frames) partial() bool { return f.start < f.end }
