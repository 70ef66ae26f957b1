package lab

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os/exec"
	"strings"
	"time"
)

// stageResolve is the name (argv[0]) under which Init makes this program act as a stub resolver.
const stageResolve = "localcache-lab:resolve"

// Lookup is one lookup of a stub resolver, as an application would make it.
type Lookup struct {
	Name    string        // looked up along the search list unless it ends in a dot
	Network string        // "ip4", "ip6", "ip" (both; the default), "srv" or "ptr"
	Times   int           // number of consecutive lookups; 0 means 1, at most 1000
	Timeout time.Duration // for each; 10 s where 0
}

// Resolution is the result of a lookup, one for each time.
type Resolution struct {
	Answers  []string      // addresses, "target port" for srv, names for ptr
	Took     time.Duration // measured in the resolver's process
	Err      string        // empty after success
	NotFound bool          // Err means that the name, or the type, does not exist
}

// Resolve uses Go's stub resolver in a process of its own inside the host, with the host's resolv.conf. A name that
// does not resolve is not an error; see Resolution.
func (h *Host) Resolve(ctx context.Context, l Lookup) ([]Resolution, error) {
	arg, err := json.Marshal(l)
	if err != nil {
		return nil, err
	}
	cmd := exec.CommandContext(ctx, "/proc/self/exe")
	cmd.Args = []string{stageResolve, string(arg)}
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := h.Run(cmd); err != nil {
		return nil, fmt.Errorf("stub resolver in host %s: %w: %s", h.Name, err, strings.TrimSpace(stderr.String()))
	}
	var rs []Resolution
	if err := json.Unmarshal(stdout.Bytes(), &rs); err != nil {
		return nil, fmt.Errorf("stub resolver in host %s wrote %q (does the program call lab.Init first?): %w", h.Name, stdout.String(), err)
	}
	return rs, nil
}

// resolveStage is the process behind Resolve.
func resolveStage(args []string, stdout, stderr io.Writer) int {
	var l Lookup
	if len(args) != 1 {
		fmt.Fprintln(stderr, "one argument expected")
		return 2
	}
	if err := json.Unmarshal([]byte(args[0]), &l); err != nil {
		fmt.Fprintln(stderr, err)
		return 2
	}
	if l.Timeout == 0 {
		l.Timeout = 10 * time.Second
	}
	// The first lookup of a process reads nsswitch.conf, hosts and resolv.conf. This one is answered by
	// hosts, so that the time of the next is the name server's; if it fails, so does the next.
	_, _ = (&net.Resolver{PreferGo: true}).LookupHost(context.Background(), "localhost")
	rs := make([]Resolution, 0, l.Times)
	for range min(max(l.Times, 1), 1000) {
		rs = append(rs, l.ask())
	}
	if err := json.NewEncoder(stdout).Encode(rs); err != nil {
		fmt.Fprintln(stderr, err)
		return 1
	}
	return 0
}

func (l Lookup) ask() Resolution {
	ctx, cancel := context.WithTimeout(context.Background(), l.Timeout)
	defer cancel()
	resolver := &net.Resolver{PreferGo: true}
	var r Resolution
	var err error
	start := time.Now()
	switch l.Network {
	case "", "ip", "ip4", "ip6":
		network := l.Network
		if network == "" {
			network = "ip"
		}
		var ips []net.IP
		ips, err = resolver.LookupIP(ctx, network, l.Name)
		for _, ip := range ips {
			r.Answers = append(r.Answers, ip.String())
		}
	case "srv":
		var srvs []*net.SRV
		_, srvs, err = resolver.LookupSRV(ctx, "", "", l.Name)
		for _, s := range srvs {
			r.Answers = append(r.Answers, fmt.Sprintf("%s %d", s.Target, s.Port))
		}
	case "ptr":
		r.Answers, err = resolver.LookupAddr(ctx, l.Name)
	default:
		err = fmt.Errorf("unknown network %q", l.Network)
	}
	r.Took = time.Since(start)
	if err != nil {
		var d *net.DNSError
		r.NotFound = errors.As(err, &d) && d.IsNotFound
		r.Err = err.Error()
	}
	return r
}

// ErrNoGetent reports that the machine has no getent, as without glibc.
var ErrNoGetent = errors.New("no getent on this machine")

// Getent uses the C library's stub resolver: it returns the addresses of `getent DATABASE NAME` inside the host, with
// database ahosts, ahostsv4, ahostsv6 or hosts. A name that is not found gives no addresses and no error.
func (h *Host) Getent(ctx context.Context, database, name string) ([]string, error) {
	path, err := exec.LookPath("getent")
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrNoGetent, err)
	}
	cmd := exec.CommandContext(ctx, path, database, name)
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	err = h.Run(cmd)
	var exit *exec.ExitError
	if errors.As(err, &exit) && exit.ExitCode() == 2 { // getent(1): the key was not found
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("getent %s %s in host %s: %w: %s", database, name, h.Name, err, strings.TrimSpace(stderr.String()))
	}
	var addrs []string
	for line := range strings.Lines(stdout.String()) {
		fields := strings.Fields(line)
		if len(fields) > 0 && (len(addrs) == 0 || addrs[len(addrs)-1] != fields[0]) {
			addrs = append(addrs, fields[0])
		}
	}
	return addrs, nil
}
