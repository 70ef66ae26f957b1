package rule

import (
	"fmt"
	"hash/fnv"
	"strings"
)

// maxOwner is the length of the longest interface name, and of the result of OwnerTag.
const maxOwner = 15

// OwnerTag returns owner in a form that can be part of a chain or table name: letters, digits, '_', '.' and '-',
// which iptables prints without quotes and nft reads back. The kernel allows more characters in an interface name;
// such a name becomes a stem and a hash, so that two owners stay distinct.
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

// DefaultOwners returns the default interface names: node-cache's, which localcache replaces, and its own.
func DefaultOwners() []string { return []string{"nodelocaldns", "localcache"} }
