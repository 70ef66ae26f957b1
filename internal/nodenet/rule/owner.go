package rule

import (
	"fmt"
	"hash/fnv"
	"strings"
)

// maxOwner is the length of the longest interface name, and of what ownerTag returns.
const maxOwner = 15

// OwnerTag is owner as it can stand in the name of a chain or a table: letters, digits, '_', '.' and
// '-', which iptables prints without quotes and nft reads back. The kernel allows more in an
// interface's name; one with other characters becomes a stem and a hash, so that two owners stay two.
func OwnerTag(owner string) string {
	ok := func(c rune) bool {
		return c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9' || strings.ContainsRune("_.-", c)
	}
	stem := strings.Map(func(c rune) rune {
		if ok(c) {
			return c
		}
		return '_'
	}, owner)
	if stem == owner && len(owner) <= maxOwner {
		return owner
	}
	h := fnv.New32a()
	h.Write([]byte(owner)) // never fails
	return fmt.Sprintf("%.6s_%08x", stem, h.Sum32())
}

// DefaultOwners are the interface names that localcache uses when none is given: node-cache's, whose
// place it takes, and its own.
func DefaultOwners() []string { return []string{"nodelocaldns", "localcache"} }
