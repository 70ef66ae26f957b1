package nftables

// The tests of package nftables_test read rules of a nodenet.Spec, which imports this package.
var (
	ParseRule   = parseRule
	RulesFor    = rulesFor
	WantedTexts = wantedTexts
	UserData    = Rule.userData
)

// RuleText is ruleText for the tests.
type RuleText = ruleText
