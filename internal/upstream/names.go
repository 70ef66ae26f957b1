package upstream

import (
	"hash/maphash"
	"sync/atomic"
)

// nameTable deduplicates names that occur in many answers: zones, name servers, mailboxes, targets of aliases. A
// cache of many answers then holds each of these names once, and the garbage collector has less to scan. A name that
// hashes to the slot of another replaces it, so that memory is bounded. It is safe for concurrent use; the zero value
// is empty.
type nameTable [512]atomic.Pointer[string]

var (
	names    nameTable
	nameSeed = maphash.MakeSeed()
)

// of returns name as a string.
func (t *nameTable) of(name []byte) string {
	slot := &t[maphash.Bytes(nameSeed, name)%uint64(len(t))]
	if known := slot.Load(); known != nil && *known == string(name) {
		return *known
	}
	s := string(name)
	slot.Store(&s)
	return s
}
