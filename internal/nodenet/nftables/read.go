package nftables

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"github.com/google/nftables/userdata"
	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

// ruleText is a rule in the form in which rules are compared and named: its comment, and its
// expressions as text.
type ruleText struct {
	chain   string
	comment string
	exprs   string
}

func (r ruleText) String() string { return fmt.Sprintf("%q %s", r.comment, r.exprs) }

// nftKernelRule is a rule as the kernel has it.
type nftKernelRule struct {
	ruleText
	handle uint64
}

// nftState is the owner's state in the kernel.
type nftState struct {
	exists  bool
	dormant bool // the table is there and switched off
	chains  map[string]string
	rules   map[string][]ruleText
}

// nftaBitwiseOp is NFTA_BITWISE_OP of linux/netfilter/nf_tables.h, which x/sys does not have.
const nftaBitwiseOp = 6

// nftDump reads the rules of a table, or of a chain if one is named; the result is empty if there is no such table or
// chain. google/nftables (v0.3.0) drops expressions that it does not know when it reads, the socket expression among
// them, so the attributes are read here.
func nftDump(conn *netlink.Conn, table *nftables.Table, chain string) ([]nftKernelRule, error) {
	filter := []netlink.Attribute{{Type: unix.NFTA_RULE_TABLE, Data: []byte(table.Name + "\x00")}}
	if chain != "" {
		filter = append(filter, netlink.Attribute{Type: unix.NFTA_RULE_CHAIN, Data: []byte(chain + "\x00")})
	}
	attrs, err := netlink.MarshalAttributes(filter)
	if err != nil {
		return nil, err
	}
	replies, err := conn.Execute(netlink.Message{
		Header: netlink.Header{
			Type:  netlink.HeaderType(unix.NFNL_SUBSYS_NFTABLES<<8 | unix.NFT_MSG_GETRULE),
			Flags: netlink.Request | netlink.Dump,
		},
		Data: append([]byte{byte(table.Family), unix.NFNETLINK_V0, 0, 0}, attrs...),
	})
	if errors.Is(err, unix.ENOENT) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	var rules []nftKernelRule
	for _, m := range replies {
		if m.Header.Flags&netlink.DumpInterrupted != 0 {
			return nil, fmt.Errorf("reading the rules of table %s: %w", table.Name, unix.EINTR)
		}
		r, err := parseRule(m.Data)
		if err != nil {
			return nil, err
		}
		rules = append(rules, r)
	}
	return rules, nil
}

// parseRule reads the body of a NFT_MSG_NEWRULE message (linux/netfilter/nf_tables.h).
func parseRule(body []byte) (nftKernelRule, error) {
	const header = 4 // struct nfgenmsg
	if len(body) < header {
		return nftKernelRule{}, fmt.Errorf("a rule of %d octets", len(body))
	}
	attrs, err := netlink.UnmarshalAttributes(body[header:])
	if err != nil {
		return nftKernelRule{}, err
	}
	var r nftKernelRule
	for _, a := range attrs {
		switch a.Type &^ unix.NLA_F_NESTED {
		case unix.NFTA_RULE_CHAIN:
			r.chain = string(bytes.TrimRight(a.Data, "\x00"))
		case unix.NFTA_RULE_HANDLE:
			if len(a.Data) == 8 {
				r.handle = binary.BigEndian.Uint64(a.Data)
			}
		case unix.NFTA_RULE_USERDATA:
			r.comment = nftComment(a.Data)
		case unix.NFTA_RULE_EXPRESSIONS:
			list, err := netlink.UnmarshalAttributes(a.Data)
			if err != nil {
				return nftKernelRule{}, err
			}
			var texts []string
			for _, e := range list {
				t, err := exprText(e.Data)
				if err != nil {
					return nftKernelRule{}, err
				}
				texts = append(texts, t)
			}
			r.exprs = strings.Join(texts, " ")
		}
	}
	return r, nil
}

// nftComment is the comment in a rule's user data: attributes of one octet of type, one of length, and the value. The
// library's own reader trusts the length, but other programs write user data too.
func nftComment(data []byte) string {
	for len(data) >= 2 {
		kind, length := userdata.Type(data[0]), int(data[1])
		data = data[2:]
		if length > len(data) {
			return ""
		}
		if kind == userdata.TypeComment {
			return string(bytes.TrimSuffix(data[:length], []byte{0}))
		}
		data = data[length:]
	}
	return ""
}

// wantedTexts converts rules to be written into the form of rules that were read.
func wantedTexts(chain string, rules []Rule) ([]ruleText, error) {
	var texts []ruleText
	for _, r := range rules {
		var exprs []string
		for _, e := range r.Exprs {
			b, err := expr.Marshal(unix.NFPROTO_INET, e)
			if err != nil {
				return nil, err
			}
			t, err := exprText(b)
			if err != nil {
				return nil, err
			}
			exprs = append(exprs, t)
		}
		texts = append(texts, ruleText{chain, r.comment, strings.Join(exprs, " ")})
	}
	return texts, nil
}

// exprText renders an expression: its name, then each attribute by number, in ascending order, with its value in
// hexadecimal. Attributes that the kernel adds, and needless ones of the library, are left out.
func exprText(b []byte) (string, error) {
	attrs, err := netlink.UnmarshalAttributes(b)
	if err != nil {
		return "", err
	}
	var name string
	var data []byte
	for _, a := range attrs {
		switch a.Type &^ unix.NLA_F_NESTED {
		case unix.NFTA_EXPR_NAME:
			name = string(bytes.TrimRight(a.Data, "\x00"))
		case unix.NFTA_EXPR_DATA:
			data = a.Data
		}
	}
	if len(data) == 0 {
		return name, nil
	}
	values, err := netlink.UnmarshalAttributes(data)
	if err != nil {
		return "", fmt.Errorf("expression %s: %w", name, err)
	}
	value := func(t uint16) []byte {
		for _, a := range values {
			if a.Type&^unix.NLA_F_NESTED == t {
				return a.Data
			}
		}
		return nil
	}
	zero := func(b []byte) bool { return len(bytes.Trim(b, "\x00")) == 0 }
	var words []string
	for _, a := range values {
		t := a.Type &^ unix.NLA_F_NESTED
		text := hex.EncodeToString(a.Data)
		switch {
		case nestedData(name, t):
			if text, err = dataText(a.Data); err != nil {
				return "", fmt.Errorf("expression %s: %w", name, err)
			}
		case name == "socket" && t == expr.NFTA_SOCKET_LEVEL && zero(a.Data):
			continue // written always, read back only for cgroups
		case name == "bitwise" && t == nftaBitwiseOp && zero(a.Data):
			continue // boolean was the only mode before there was a choice
		case name == "nat" && t == unix.NFTA_NAT_FLAGS:
			// The kernel adds the flags for an address and a port itself.
			const implied = unix.NF_NAT_RANGE_MAP_IPS | unix.NF_NAT_RANGE_PROTO_SPECIFIED
			if len(a.Data) == 4 && zero([]byte{a.Data[0], a.Data[1], a.Data[2], a.Data[3] &^ implied}) {
				continue
			}
		case name == "nat" && t == unix.NFTA_NAT_REG_ADDR_MAX && bytes.Equal(a.Data, value(unix.NFTA_NAT_REG_ADDR_MIN)),
			name == "nat" && t == unix.NFTA_NAT_REG_PROTO_MAX && bytes.Equal(a.Data, value(unix.NFTA_NAT_REG_PROTO_MIN)):
			continue // a range of one
		}
		words = append(words, fmt.Sprintf("%d=%s", t, text))
	}
	slices.Sort(words)
	return name + "(" + strings.Join(words, " ") + ")", nil
}

// nestedData reports whether an attribute holds a value or a verdict (enum nft_data_attributes), which some programs
// mark as nested and others do not.
func nestedData(name string, attr uint16) bool {
	switch name {
	case "cmp":
		return attr == unix.NFTA_CMP_DATA
	case "immediate":
		return attr == unix.NFTA_IMMEDIATE_DATA
	case "bitwise":
		return attr == unix.NFTA_BITWISE_MASK || attr == unix.NFTA_BITWISE_XOR
	}
	return false
}

// dataText renders a value, or the code and chain of a verdict.
func dataText(b []byte) (string, error) {
	attrs, err := netlink.UnmarshalAttributes(b)
	if err != nil {
		return "", err
	}
	var words []string
	for _, a := range attrs {
		switch a.Type &^ unix.NLA_F_NESTED {
		case unix.NFTA_DATA_VALUE:
			words = append(words, hex.EncodeToString(a.Data))
		case unix.NFTA_DATA_VERDICT:
			inner, err := netlink.UnmarshalAttributes(a.Data)
			if err != nil {
				return "", err
			}
			for _, i := range inner {
				words = append(words, fmt.Sprintf("verdict%d:%s", i.Type&^unix.NLA_F_NESTED, hex.EncodeToString(i.Data)))
			}
		}
	}
	return strings.Join(words, ","), nil
}

// nftChainText is a base chain in the form in which chains are compared and named.
func nftChainText(c *nftables.Chain) string {
	if c.Hooknum == nil || c.Priority == nil {
		return "no base chain"
	}
	policy := nftables.ChainPolicyAccept
	if c.Policy != nil {
		policy = *c.Policy
	}
	return fmt.Sprintf("type %s hook %d priority %d policy %d", c.Type, *c.Hooknum, *c.Priority, policy)
}
