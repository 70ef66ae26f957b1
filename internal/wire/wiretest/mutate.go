// Package wiretest makes the messages that wire and replay are soaked with: a native loop does some hundred
// times more of them in the same time than a fuzzer that measures coverage, and starts from what such a one
// has found.
package wiretest

import (
	"bytes"
	"encoding/binary"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
)

// Corpus reads the first argument, octets, of the inputs that are kept for fuzz targets in testdata.
func Corpus(t testing.TB, targets ...string) [][]byte {
	t.Helper()
	var seeds [][]byte
	for _, target := range targets {
		files, err := filepath.Glob(filepath.Join("testdata", "fuzz", target, "*"))
		if err != nil || len(files) == 0 {
			t.Fatalf("no inputs are kept for %s: %v", target, err)
		}
		for _, f := range files {
			content, err := os.ReadFile(f)
			if err != nil {
				t.Fatal(err)
			}
			for line := range strings.Lines(string(content)) {
				quoted, is := strings.CutPrefix(strings.TrimSpace(line), "[]byte(")
				if !is {
					continue
				}
				text, err := strconv.Unquote(strings.TrimSuffix(quoted, ")"))
				if err != nil {
					t.Fatalf("%s: %v", f, err)
				}
				seeds = append(seeds, []byte(text))
				break
			}
		}
	}
	return seeds
}

// maxMessage keeps messages from growing: it is beyond all that the packages accept.
const maxMessage = 5000

// Mutate returns a message made from seeds: one of them, damaged in up to four places. It is valid until the
// next call with the same buf.
func Mutate(r *rand.Rand, seeds [][]byte, buf []byte) []byte {
	b := append(buf[:0], seeds[r.IntN(len(seeds))]...)
	for range r.IntN(5) {
		if len(b) == 0 {
			return b
		}
		i := r.IntN(len(b))
		switch r.IntN(9) {
		case 0:
			b[i] ^= 1 << r.IntN(8)
		case 1:
			b[i] = byte(r.Uint32())
		case 2: // lengths, counts, types and pointers
			b[i] = []byte{0, 1, 4, 12, 16, 41, 63, 64, 0x80, 0xc0, 0xff}[r.IntN(11)]
		case 3:
			b = b[:i]
		case 4:
			b = append(b, b[i:min(len(b), i+r.IntN(32))]...)
		case 5: // a piece of another one in the place of what was there
			other := seeds[r.IntN(len(seeds))]
			if len(other) > 0 {
				from := r.IntN(len(other))
				copy(b[i:], other[from:min(len(other), from+r.IntN(32))])
			}
		case 6: // counts
			if len(b) >= 12 {
				binary.BigEndian.PutUint16(b[4+2*r.IntN(4):], uint16(r.IntN(4)))
			}
		case 7: // a pointer
			if i+1 < len(b) {
				binary.BigEndian.PutUint16(b[i:], 0xc000|uint16(r.IntN(len(b)+4)))
			}
		case 8: // an octet more or less
			if r.IntN(2) == 0 {
				b = append(b[:i], b[i+1:]...)
			} else {
				b = append(b[:i], append([]byte{byte(r.Uint32())}, bytes.Clone(b[i:])...)...)
			}
		}
		if len(b) > maxMessage {
			b = b[:maxMessage]
		}
	}
	return b
}
