package lab

import (
	"bytes"
	"errors"
	"fmt"
	"net/netip"
	"os/exec"
	"strings"
)

// Proxy is the packet filter in which the node translates Services; other programs of the node adapt to it. Only the
// first one works without tools.
type Proxy string

// The packet filters.
const (
	ProxyNFTables       Proxy = ""                // kube-proxy's nftables mode
	ProxyIPTablesNFT    Proxy = "iptables-nft"    // its iptables mode, by iptables-nft-restore(8)
	ProxyIPTablesLegacy Proxy = "iptables-legacy" // the same, by iptables-legacy-restore(8)
)

// ErrNoIPTables says that Config.Proxy needs a tool which this machine does not have.
var ErrNoIPTables = errors.New("no such iptables on this machine")

// translateByIPTables is translateService by the iptables named, with kube-proxy's chains.
func translateByIPTables(p Proxy, v4, v6 netip.Addr, replicas []*Server) error {
	var ends4, ends6 []netip.Addr
	for _, s := range replicas {
		ends4, ends6 = append(ends4, s.Host.IPv4), append(ends6, s.Host.IPv6)
	}
	err := restore(string(p)+"-restore", natTable(v4, ends4, plan.cluster))
	if err == nil && v6.IsValid() {
		err = restore(strings.Replace(string(p), "ip", "ip6", 1)+"-restore", natTable(v6, ends6, plan.cluster6))
	}
	return err
}

// restore hands a table to an iptables-restore. Other rules of the table stay.
func restore(tool, table string) error {
	path, err := exec.LookPath(tool)
	if err != nil {
		return fmt.Errorf("%w: %w", ErrNoIPTables, err)
	}
	cmd := exec.Command(path, "--noflush", "--wait", "5")
	cmd.Stdin = strings.NewReader(table)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	if err := cmd.Run(); err != nil {
		return fmt.Errorf("%s: %w: %s", tool, err, strings.TrimSpace(stderr.String()))
	}
	return nil
}

// natTable returns one family's Service translation in the format of iptables-save(8).
func natTable(service netip.Addr, endpoints []netip.Addr, pods netip.Prefix) string {
	var b strings.Builder
	line := func(format string, args ...any) { fmt.Fprintf(&b, format+"\n", args...) }
	line("*nat\n:KUBE-SERVICES - [0:0]\n:KUBE-POSTROUTING - [0:0]")
	line(`-A PREROUTING -m comment --comment "kubernetes service portals" -j KUBE-SERVICES`)
	line(`-A OUTPUT -m comment --comment "kubernetes service portals" -j KUBE-SERVICES`)
	line(`-A POSTROUTING -m comment --comment "kubernetes postrouting rules" -j KUBE-POSTROUTING`)
	for _, proto := range []string{"udp", "tcp"} {
		svc := "KUBE-SVC-DNS-" + strings.ToUpper(proto)
		line(":%s - [0:0]", svc)
		line(`-A KUBE-SERVICES -d %s -p %s -m comment --comment "kube-system/kube-dns cluster IP" -m %s --dport 53 -j %s`, service, proto, proto, svc)
		for i, end := range endpoints {
			sep := fmt.Sprintf("KUBE-SEP-DNS-%s-%d", strings.ToUpper(proto), i+1)
			turn := ""
			if n := len(endpoints) - i; n > 1 {
				turn = fmt.Sprintf("-m statistic --mode nth --every %d --packet 0 ", n)
			}
			line(":%s - [0:0]\n-A %s %s-j %s", sep, svc, turn, sep)
			line("-A %s -p %s -m %s -j DNAT --to-destination %s", sep, proto, proto, netip.AddrPortFrom(end, 53))
		}
	}
	for _, end := range endpoints {
		line("-A KUBE-POSTROUTING -s %s -d %s -j MASQUERADE", end, end)
		line("-A KUBE-POSTROUTING ! -s %s -d %s -m conntrack --ctstate DNAT -j MASQUERADE", pods, end)
	}
	line("COMMIT")
	return b.String()
}
