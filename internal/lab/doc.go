// Package lab builds a node, pods, kube-dns and an upstream resolver in network namespaces: real packets, real
// connection tracking, real packet rules, no cluster. localcache-demo, the end-to-end tests and the benchmarks run in
// it.
//
// It needs only Linux: no tools, and no root if the kernel allows ordinary users to create namespaces. Everything in
// it vanishes with the process, even after SIGKILL, and nothing of it is visible from the machine's own network.
//
// # Topology
//
//	pod-1 10.233.64.11 ──┐
//	pod-2 10.233.64.12 ──┤                     ┌── kube-dns-1 10.233.74.65
//	  …                  ├── node 10.233.64.1 ─┤
//	                     │   Service 10.233.0.3└── kube-dns-2 10.233.74.66
//	                     └── eth0 192.0.2.10 ───── upstream 198.51.100.53
//
// Each line is a veth pair with routes for host addresses; IPv6 is used beside IPv4 if the kernel has it (Host.IPv6,
// Lab.ServiceV6). Pods have a resolv.conf with nameserver 169.254.25.10, the search list of namespace default and
// ndots:5; the node's resolv.conf names the upstream. The lab serves nothing at 169.254.25.10: its user does. The
// node translates the Service address to the kube-dns replicas in turn, as kube-proxy does in nftables mode, or with
// Config.Proxy in iptables mode (which uses the machine's iptables).
//
// kube-dns answers a cluster zone according to the Kubernetes DNS specification 1.1.0 (see clusterZone:
// kubernetes.default, web.default in both families, the headless db.default and many.default, ext.default as
// ExternalName, SRV, PTR, pod names, LongName, _under_score.default, every name below AnyClusterName) and forwards
// everything else to the upstream, which has www.example.org, big.example.org (TCP only), and every name below
// AnyExternalName, among others. Zone.Set changes either zone at run time.
//
// # Usage
//
// A program calls Init first in main, Enter before New, and Close at the end. Tests are shorter:
//
//	func TestMain(m *testing.M) { os.Exit(lab.Main(m)) }
//
//	func TestIt(t *testing.T) {
//	  l := lab.Start(t, lab.Config{})
//	  serve, err := l.Node.Start(exec.Command(binary, "-localip", lab.LocalIP, "-conf", corefile))
//	  …
//	  answer, took, err := l.Pods[0].Ask(ctx, lab.UDP, netip.MustParseAddr(lab.LocalIP),
//	    "web.default.svc.cluster.local", dns.TypeA)
//	}
//
// A Host runs closures (Do), sockets (Dial, ListenUDP, ListenTCP), single queries (Ask, Exchange), stub resolvers
// (Resolve for Go's, Getent for glibc's) and programs (Start, Run), and shows its connection tracking table
// (Conntrack). A Server records the queries that it received (Record) and fails on demand (Break, Mend); Host.Isolate
// silences a whole machine, and Lab.Lose drops queries or replies on the link of a pod. A Stream sends queries at a
// steady rate and reports the result of each. After a process was killed, its sockets are certainly closed once
// Program.Done is closed:
//
//	st, err := lab.Stream{From: l.Pods[0], QPS: 1000, Timeout: 5 * time.Second}.Start()
//	…
//	err = serve.Kill()
//	<-serve.Done()
//	dead := time.Now()
//	…
//	samples, err := st.Stop()
//	lost := samples.SentAfter(dead).Lost()
//
// # Implementation
//
// The program is run again in fresh namespaces (Enter), because a Go process cannot enter a user namespace once it
// has threads; a program that must be reachable from the machine takes a socket along (EnterWithOutside). Inside,
// each host is one operating system thread with a network and a mount namespace of its own. Servers are goroutines
// whose sockets were opened on such a thread: a socket stays in the namespace in which it was created. Programs are
// started by the host's thread and inherit both namespaces; the kernel kills them when that thread ends.
package lab
