package observe

import (
	"cmp"
	"math"
	"slices"
	"strings"
)

// topNames counts the most frequent names in fixed space: filtered space-saving (Homem and Carvalho 2010, after
// Metwally, Agrawal and El Abbadi 2005). A name that is not listed is counted in a cell, together with all names
// whose hashes share it. When a cell exceeds the smallest count of the list, the latest name of the cell replaces
// that entry, with the previous value of the cell as its error. So a listed name was counted at most as often as its
// count says, and at least count minus error; an unlisted name at most as often as its cell says. Entries are sorted
// by count: frequent names are found at once, and the smallest is the last.
type topNames struct {
	hash   []uint64
	count  []uint64
	entry  []topEntry
	cell   []uint64
	listed []uint8 // names of the list in each cell
	name   []byte  // len(hash) × room
	room   int32
	used   int32
}

type topEntry struct {
	err    uint64
	slot   uint16 // of the name
	length uint16 // may be more than room: then the name is cut
}

// shortList is the size up to which it is quicker to look at the list than whether that is worth it.
const shortList = 8

// newTopNames returns a list of size names of room bytes, with cells, a power of two.
func newTopNames(size, room, cells int) topNames {
	words := make([]uint64, 2*size+cells) // one allocation, for the processor's cache
	t := topNames{
		hash: words[:size:size], count: words[size : 2*size : 2*size], cell: words[2*size:],
		entry: make([]topEntry, size), listed: make([]uint8, cells),
		name: make([]byte, size*room), room: int32(room),
	}
	for i := range t.entry {
		t.entry[i].slot = uint16(i)
	}
	return t
}

// clone returns a copy that can be read without the lock that guards t; nil for nil.
func (t *topNames) clone() *topNames {
	if t == nil {
		return nil
	}
	c := *t
	c.hash, c.count, c.entry, c.cell = slices.Clone(t.hash), slices.Clone(t.count), slices.Clone(t.entry), slices.Clone(t.cell)
	c.listed, c.name = slices.Clone(t.listed), slices.Clone(t.name)
	return &c
}

func (t *topNames) cellOf(hash uint64) uint64 { return hash >> 32 & uint64(len(t.cell)-1) }

// add counts one for the name with the given hash.
func (t *topNames) add(hash uint64, name []byte) {
	cell := t.cellOf(hash)
	if len(t.hash) <= shortList || t.listed[cell] > 0 {
		if i := t.find(hash); i >= 0 {
			t.raise(i, t.count[i]+1)
			return
		}
	}
	if int(t.used) == len(t.hash) && t.cell[cell] < t.count[t.used-1] {
		t.cell[cell]++
		return
	}
	i := t.take(hash, name)
	t.entry[i].err = t.cell[cell]
	t.raise(i, t.cell[cell]+1)
}

// peak keeps the names with the highest n instead of counting.
func (t *topNames) peak(hash uint64, name []byte, n uint64) {
	if int(t.used) == len(t.hash) && n <= t.count[t.used-1] {
		return // if the name is listed, its peak is as high
	}
	i := t.find(hash)
	if i < 0 {
		i = t.take(hash, name)
		t.count[i], t.entry[i].err = 0, 0
	}
	if n > t.count[i] {
		t.raise(i, n)
	}
}

func (t *topNames) find(hash uint64) int {
	for i, h := range t.hash[:t.used] {
		if h == hash {
			return i
		}
	}
	return -1
}

// take gives a name an empty entry or the one with the smallest count, which goes to its cell. The caller raises the
// entry's count and sets its error.
func (t *topNames) take(hash uint64, name []byte) int {
	i := int(t.used)
	if i < len(t.hash) {
		t.used++
		t.count[i] = 0
	} else {
		i--
		cell := t.cellOf(t.hash[i])
		t.listed[cell]--
		t.cell[cell] = max(t.cell[cell], t.count[i])
	}
	e := &t.entry[i]
	e.length = uint16(min(len(name), math.MaxUint16))
	copy(t.roomAt(e.slot), name)
	t.hash[i] = hash
	t.listed[t.cellOf(hash)]++
	return i
}

// raise increases the count of entry i and keeps the order.
func (t *topNames) raise(i int, count uint64) {
	// The target position cannot be predicted: counting the entries that stay before it costs less than a
	// mispredicted branch.
	j := 0
	for _, n := range t.count[:i] {
		j += int((n-count)>>63 ^ 1) // no count is that large
	}
	if j < i && t.count[j] > t.count[i] { // not the usual case of equal counts and one more
		for ; i > j; i-- {
			t.swap(i, i-1)
		}
	} else if j < i {
		t.swap(i, j)
	}
	t.count[j] = count
}

func (t *topNames) swap(i, j int) {
	t.hash[i], t.hash[j] = t.hash[j], t.hash[i]
	t.count[i], t.count[j] = t.count[j], t.count[i]
	t.entry[i], t.entry[j] = t.entry[j], t.entry[i]
}

// floor is the most that a name was counted that is not listed.
func (t *topNames) floor() uint64 { return slices.Max(t.cell) }

// peakFloor is the highest that a name can have reached that is not listed.
func (t *topNames) peakFloor() uint64 {
	if int(t.used) < len(t.hash) {
		return 0
	}
	return t.count[t.used-1]
}

// merge adds the counts of other, which has the same size and cells. The bounds of both add up: an unlisted name
// counts as much as its cell.
func (t *topNames) merge(other *topNames) {
	type merged struct {
		hash, count, err uint64
		name             []byte
		length           uint16
	}
	var all []merged
	for i, h := range t.hash[:t.used] {
		m := merged{h, t.count[i], t.entry[i].err, slices.Clone(t.full(i)), t.entry[i].length}
		if j := other.find(h); j >= 0 {
			m.count, m.err = m.count+other.count[j], m.err+other.entry[j].err
		} else {
			c := other.cell[other.cellOf(h)]
			m.count, m.err = m.count+c, m.err+c
		}
		all = append(all, m)
	}
	for i, h := range other.hash[:other.used] {
		if t.find(h) < 0 {
			c := t.cell[t.cellOf(h)]
			all = append(all, merged{h, other.count[i] + c, other.entry[i].err + c, other.full(i), other.entry[i].length})
		}
	}
	slices.SortFunc(all, func(a, b merged) int { return cmp.Compare(b.count, a.count) })
	for i, n := range other.cell {
		t.cell[i] += n
	}
	t.used = 0
	clear(t.listed)
	for i, m := range all {
		if i >= len(t.hash) {
			cell := t.cellOf(m.hash)
			t.cell[cell] = max(t.cell[cell], m.count)
			continue
		}
		j := t.take(m.hash, m.name)
		t.count[j], t.entry[j].err, t.entry[j].length = m.count, m.err, m.length
	}
}

// mergePeaks keeps the highest of both.
func (t *topNames) mergePeaks(other *topNames) {
	for i, h := range other.hash[:other.used] {
		t.peak(h, other.full(i), other.count[i])
		if j := t.find(h); j >= 0 {
			t.entry[j].length = other.entry[i].length
		}
	}
}

// clear removes all names; it accepts nil.
func (t *topNames) clear() {
	if t == nil {
		return
	}
	t.used = 0
	clear(t.cell)
	clear(t.listed)
}

// full is the name at i with all its room, so that a name that was cut stays one.
func (t *topNames) full(i int) []byte { return t.roomAt(t.entry[i].slot) }

func (t *topNames) roomAt(slot uint16) []byte {
	return t.name[int(slot)*int(t.room):][:t.room]
}

func (t *topNames) bytes(i int) []byte {
	e := t.entry[i]
	return t.roomAt(e.slot)[:min(int(e.length), int(t.room))]
}

// snapshot returns the names. floor is one of the two above.
func (t *topNames) snapshot(floor uint64) Top {
	var names []TopName
	for i, e := range t.entry[:t.used] {
		names = append(names, TopName{Name: NameText(t.bytes(i)), Count: t.count[i], Error: e.err})
	}
	top := Top{Floor: floor}
	top.replace(index(names), len(t.hash))
	return top
}

// Top lists the names that were counted most, in order.
type Top struct {
	// Floor is the most that a name can have that is not listed; 0 where the list is complete.
	Floor uint64    `json:"floor"`
	Size  int       `json:"size"` // most names that are listed
	Names []TopName `json:"names"`
}

// TopName is a name in presentation format (see NameText) and how often it was counted: at most Count times and at
// least Count − Error.
type TopName struct {
	Name  string `json:"name"`
	Count uint64 `json:"count"`
	Error uint64 `json:"error,omitempty"`
}

// Add merges the list of another part of the traffic into t. Errors add up.
func (t *Top) Add(other *Top) {
	mine, theirs := index(t.Names), index(other.Names)
	for name, n := range mine {
		if m, both := theirs[name]; both {
			n.Count, n.Error = sum(n.Count, m.Count), sum(n.Error, m.Error)
			delete(theirs, name)
		} else {
			n.Count, n.Error = sum(n.Count, other.Floor), sum(n.Error, other.Floor)
		}
		mine[name] = n
	}
	for name, n := range theirs {
		mine[name] = TopName{name, sum(n.Count, t.Floor), sum(n.Error, t.Floor)}
	}
	t.Floor = sum(t.Floor, other.Floor)
	t.replace(mine, other.Size)
}

// AddPeaks merges a list of highest values instead of counts: the higher one holds.
func (t *Top) AddPeaks(other *Top) {
	names := make(map[string]TopName, len(t.Names)+len(other.Names))
	for _, n := range slices.Concat(t.Names, other.Names) {
		if m, ok := names[n.Name]; !ok || n.Count > m.Count {
			names[n.Name] = n
		}
	}
	t.Floor = max(t.Floor, other.Floor)
	t.replace(names, other.Size)
}

// replace makes names the list, as far as there is room. Entries that are cut off raise the floor.
func (t *Top) replace(names map[string]TopName, size int) {
	t.Size = max(t.Size, size)
	t.Names = make([]TopName, 0, len(names))
	for _, n := range names {
		t.Names = append(t.Names, n)
	}
	t.sort()
	if len(t.Names) > t.Size {
		t.Floor = max(t.Floor, t.Names[t.Size].Count)
		t.Names = t.Names[:t.Size:t.Size]
	}
}

// index finds names by their text. Two that were cut to the same text become one.
func index(names []TopName) map[string]TopName {
	m := make(map[string]TopName, len(names))
	for _, n := range names {
		o := m[n.Name]
		m[n.Name] = TopName{n.Name, sum(o.Count, n.Count), sum(o.Error, n.Error)}
	}
	return m
}

// sum does not overflow: counts from other nodes must not wrap around.
func sum(a, b uint64) uint64 {
	if a > math.MaxUint64-b {
		return math.MaxUint64
	}
	return a + b
}

func (t *Top) sort() {
	slices.SortFunc(t.Names, func(a, b TopName) int {
		return cmp.Or(cmp.Compare(b.Count, a.Count), strings.Compare(a.Name, b.Name))
	})
}
