package iptables

import "localcache.dev/localcache/internal/nodenet/rule"

// The tests of package iptables_test read rules of a nodenet.Spec, which imports this package.
var RuleArgs = ruleArgs

// RuleLine is ruleLine for the tests.
type RuleLine = ruleLine

// Option is option for the tests.
func (l ruleLine) Option(names ...string) string { return l.option(names...) }

// ChainNames returns the names of all chains that an owner may have.
func ChainNames(owner string) []string {
	b := &Backend{tag: rule.OwnerTag(owner)}
	names := []string{trialChain(b.tag)}
	for _, h := range rule.Hooks() {
		names = append(names, b.chains(h)...)
	}
	return names
}
