package lab

import (
	"errors"
	"fmt"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"github.com/miekg/dns"
	"golang.org/x/sys/unix"
)

// Loss says which DNS messages over UDP are lost on the link between a pod and the node. They are dropped where they
// arrive: a drop on the sender's side would be an error of its system call.
type Loss struct {
	Replies bool   // loses messages to the pod from port 53; else messages from the pod to port 53
	Name    string // of the question, in the letters in which it is asked; any where empty
	Type    uint16 // of the question, which needs a Name; any where 0
	First   int    // how many get lost, the first ones; all if 0
}

// Lose makes the link lose messages from now on, in place of earlier losses. Without losses it is repaired.
func (l *Lab) Lose(pod *Host, losses ...Loss) error {
	var queries, replies [][]expr.Any
	for _, loss := range losses {
		exprs, err := loss.match()
		if err != nil {
			return err
		}
		exprs = append(exprs, &expr.Counter{}, &expr.Verdict{Kind: expr.VerdictDrop})
		if loss.Replies {
			replies = append(replies, exprs)
			continue
		}
		from := []expr.Any{
			&expr.Meta{Key: expr.MetaKeyIIFNAME, Register: 1},
			&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: linkName("veth-" + pod.Name)},
		}
		queries = append(queries, concat(from, exprs))
	}
	if err := l.Node.Do(func() error { return drop(lossTable(pod), queries) }); err != nil {
		return fmt.Errorf("lose queries of host %s: %w", pod.Name, err)
	}
	if err := pod.Do(func() error { return drop(lossTable(pod), replies) }); err != nil {
		return fmt.Errorf("lose replies to host %s: %w", pod.Name, err)
	}
	return nil
}

// Lost returns how many messages were lost since the latest Lose.
func (l *Lab) Lost(pod *Host) (queries, replies int, err error) {
	err = errors.Join(
		l.Node.Do(func() (err error) { queries, err = dropped(lossTable(pod)); return err }),
		pod.Do(func() (err error) { replies, err = dropped(lossTable(pod)); return err }),
	)
	if err != nil {
		err = fmt.Errorf("count what host %s lost: %w", pod.Name, err)
	}
	return queries, replies, err
}

func lossTable(pod *Host) *nftables.Table {
	return &nftables.Table{Name: "lab-loss-" + pod.Name, Family: nftables.TableFamilyINet}
}

// lossChain comes before everything else on a node.
const lossChain = "arrival"

// drop replaces the table's rules in the calling thread's namespace.
func drop(table *nftables.Table, rules [][]expr.Any) error {
	c, err := nftables.New()
	if err != nil {
		return err
	}
	c.AddTable(table) // so that there is one to delete
	c.DelTable(table)
	if len(rules) > 0 {
		c.AddTable(table)
		before := *nftables.ChainPriorityRaw - 100
		chain := c.AddChain(&nftables.Chain{Name: lossChain, Table: table, Type: nftables.ChainTypeFilter,
			Hooknum: nftables.ChainHookPrerouting, Priority: &before})
		for _, exprs := range rules {
			c.AddRule(&nftables.Rule{Table: table, Chain: chain, Exprs: exprs})
		}
	}
	return c.Flush()
}

// dropped adds up the table's counters. There may be no table.
func dropped(table *nftables.Table) (n int, err error) {
	c, err := nftables.New()
	if err != nil {
		return 0, err
	}
	rules, err := c.GetRules(table, &nftables.Chain{Name: lossChain, Table: table})
	if errors.Is(err, unix.ENOENT) {
		return 0, nil
	}
	for _, r := range rules {
		for _, e := range r.Exprs {
			if counter, ok := e.(*expr.Counter); ok {
				n += int(counter.Packets)
			}
		}
	}
	return n, err
}

// Where a DNS message over UDP has its question, from the UDP header on (RFC 768, RFC 1035 section 4.1).
const (
	udpSourcePort, udpDestinationPort = 0, 2
	questionOffset                    = 8 + 12
)

// registerSize is the size of the part of a packet that one comparison of nftables takes.
const registerSize = 16

// match returns the expressions that match the lost messages.
func (loss Loss) match() ([]expr.Any, error) {
	if loss.Type != 0 && loss.Name == "" {
		return nil, errors.New("lab: a loss by type needs a name, because the type follows the name in the packet")
	}
	port := uint32(udpDestinationPort)
	if loss.Replies {
		port = udpSourcePort
	}
	exprs := []expr.Any{
		&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: 1},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte{unix.IPPROTO_UDP}},
	}
	holds := func(offset uint32, data []byte) {
		exprs = append(exprs,
			&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseTransportHeader, Offset: offset, Len: uint32(len(data))},
			&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: data})
	}
	holds(port, binaryutil.BigEndian.PutUint16(53))
	if loss.Name != "" {
		question := make([]byte, 255+2)
		n, err := dns.PackDomainName(dns.Fqdn(loss.Name), question, 0, nil, false)
		if err != nil {
			return nil, fmt.Errorf("lab: loss of %s: %w", loss.Name, err)
		}
		question = question[:n]
		if loss.Type != 0 {
			question = append(question, binaryutil.BigEndian.PutUint16(loss.Type)...)
		}
		for at := 0; at < len(question); at += registerSize {
			holds(uint32(questionOffset+at), question[at:min(at+registerSize, len(question))])
		}
	}
	if loss.First > 0 {
		// Counted from 0, in the byte order of the machine; a comparison compares bytes.
		exprs = append(exprs,
			&expr.Numgen{Register: 1, Modulus: 1 << 31, Type: unix.NFT_NG_INCREMENTAL},
			&expr.Byteorder{SourceRegister: 1, DestRegister: 1, Op: expr.ByteorderHton, Len: 4, Size: 4},
			&expr.Cmp{Op: expr.CmpOpLt, Register: 1, Data: binaryutil.BigEndian.PutUint32(uint32(loss.First))})
	}
	return exprs, nil
}

// linkName is a name as nftables compares it: IFNAMSIZ bytes.
func linkName(name string) []byte {
	b := make([]byte, unix.IFNAMSIZ)
	copy(b, name)
	return b
}
