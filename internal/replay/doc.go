// Package replay is a bounded store of wire answers, which says them again to those who ask the same.
//
// It stands before the cache and is no cache of its own: what it has was the cache's answer to the very
// same question, flags and buffer size, and lives no longer than that answer's TTLs. It decides nothing but
// what to forget.
//
// # Reading
//
// A reader takes no lock and allocates nothing. A key's hash leads to a shard, and there to a chain of
// entries. An entry does not change once it can be found, but for its link and what it keeps of its uses,
// which are atomic. So a reader that holds an entry while a writer replaces it still has a whole answer, the one
// that was right a moment ago. While a shard's table grows a reader may miss an entry that is there:
// the question then goes to the chain, which is never wrong.
//
// # Writing
//
// Writers lock a shard. The bounds of entries and octets hold over all shards together. Who is over
// one evicts from its own shard, by a clock: a hand goes round the entries, takes a mark of use from
// each, and evicts the first that has none. An entry gets a mark when it is replayed and keeps up to
// three. One that is used often thus outlives a flood of names that are used once. Each writer also looks at
// the next few entries of its shard for such as are past their time, so that these go without being pushed
// out.
package replay
