package upstream

import (
	"hash/maphash"
	"sync/atomic"
)

// nameTable remembers names that answers have again and again: zones, their servers' and mailboxes', targets of
// aliases. Who caches many answers then keeps each of these names once, and the garbage collector has less to look
// at. A name that falls into the place of another takes it, so that memory is bounded. It is safe for
// concurrent use; the zero value is empty.
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
