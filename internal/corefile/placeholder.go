package corefile

import (
	"bytes"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"strings"
)

// The placeholders in Corefiles of node-cache's users. The manifests of Kubernetes fill some in at deployment with
// sed; the process fills in the rest.
const (
	placeDomain     = "__PILLAR__DNS__DOMAIN__"       // the cluster domain
	placeLocal      = "__PILLAR__LOCAL__DNS__"        // the local addresses
	placeServer     = "__PILLAR__DNS__SERVER__"       // empty: placeLocal beside it has all addresses
	placeCluster    = "__PILLAR__CLUSTER__DNS__"      // the Service of the cluster's DNS
	placeUpstream   = "__PILLAR__UPSTREAM__SERVERS__" // where other names are resolved
	placePrometheus = "__PROMETHEUS__ENDPOINT__"      // where metrics are served
)

// placeholders lists the known ones in the order of messages.
var placeholders = []string{placeDomain, placeLocal, placeServer, placeCluster, placeUpstream, placePrometheus}

// prefixes begin every placeholder.
var prefixes = [][]byte{[]byte("__PILLAR__"), []byte("__PROMETHEUS__")}

// nodeResolvConf lists the resolvers of external names unless upstreamNameservers is set.
const nodeResolvConf = "/etc/resolv.conf"

// place is one occurrence of a placeholder: a run of letters, digits and underscores in a token that begins with one
// of prefixes.
type place struct {
	name       string
	start, end int
	line       int
	alone      bool // the token has nothing else, except quotes
	port       bool // a colon follows, as in "__PILLAR__LOCAL__DNS__:8080"
}

// findPlaces returns the placeholders of src in order. Comments have no tokens, so placeholders in them are not
// found.
func findPlaces(src []byte, tokens []token) []place {
	var places []place
	for _, t := range tokens {
		line := t.line
		for i := t.start; i < t.end; i++ {
			if src[i] == '\n' {
				line++
			}
			if !slices.ContainsFunc(prefixes, func(p []byte) bool { return bytes.HasPrefix(src[i:t.end], p) }) {
				continue
			}
			end := i
			for end < t.end && isWord(src[end]) {
				end++
			}
			places = append(places, place{
				name: string(src[i:end]), start: i, end: end, line: line,
				alone: t.text == string(src[i:end]),
				port:  end < t.end && src[end] == ':',
			})
			i = end - 1
		}
	}
	return places
}

func isWord(c byte) bool {
	return c == '_' || '0' <= c && c <= '9' || 'A' <= c && c <= 'Z' || 'a' <= c && c <= 'z'
}

// expand returns the edits that fill in places. Its error lists everything that cannot be filled in, each placeholder
// once, with the file, its lines, and the missing flag or variable.
func (o *Options) expand(file string, places []place, upstreams []string) ([]edit, error) {
	var edits []edit
	var failed []string // names in order of appearance
	lines := map[string][]int{}
	causes := map[string]error{}
	for _, p := range places {
		text, err := o.value(p, upstreams)
		if err == nil {
			edits = append(edits, edit{p.start, p.end, text})
			continue
		}
		if causes[p.name] == nil {
			failed = append(failed, p.name)
			causes[p.name] = err
		}
		if !slices.Contains(lines[p.name], p.line) {
			lines[p.name] = append(lines[p.name], p.line)
		}
	}
	var errs []error
	for _, name := range failed {
		errs = append(errs, fmt.Errorf("%s:%d: %w%s", file, lines[name][0], causes[name], alsoLines(lines[name][1:])))
	}
	return edits, errors.Join(errs...)
}

// alsoLines names the further lines of a problem.
func alsoLines(lines []int) string {
	if len(lines) == 0 {
		return ""
	}
	const most = 10 // a template has a handful of blocks; more would hide the message
	var b strings.Builder
	if len(lines) == 1 {
		return fmt.Sprintf(" (also on line %d)", lines[0])
	}
	b.WriteString(" (also on lines ")
	for i, n := range lines {
		if i == most {
			fmt.Fprintf(&b, " and %d more", len(lines)-most)
			break
		}
		if i > 0 {
			b.WriteString(", ")
		}
		b.WriteString(strconv.Itoa(n))
	}
	b.WriteByte(')')
	return b.String()
}

// value returns the text for p, on one line.
func (o *Options) value(p place, upstreams []string) (string, error) {
	switch p.name {
	case placeDomain:
		return o.clusterDomain()
	case placeLocal:
		return o.localIPs(p)
	case placeServer:
		if len(o.LocalIPs) == 0 {
			return "", fmt.Errorf("%s needs -localip", p.name)
		}
		return "", nil
	case placeCluster:
		return o.clusterDNS(p)
	case placeUpstream:
		if len(upstreams) > 0 {
			return strings.Join(upstreams, " "), nil
		}
		return nodeResolvConf, nil
	case placePrometheus:
		return o.prometheus()
	}
	return "", fmt.Errorf("unknown placeholder %s; known are %s", p.name, strings.Join(placeholders, ", "))
}

// clusterDomain returns the domain in the environment variable CLUSTER_DOMAIN. node-cache leaves this placeholder to
// the deployment, and Kubernetes has no variable for it.
func (o *Options) clusterDomain() (string, error) {
	d := o.Getenv("CLUSTER_DOMAIN")
	if d == "" {
		return "", fmt.Errorf("%s needs the environment variable CLUSTER_DOMAIN, for example cluster.local", placeDomain)
	}
	if err := checkDomain(d); err != nil {
		return "", fmt.Errorf("%s: environment variable CLUSTER_DOMAIN=%q: %w", placeDomain, d, err)
	}
	return strings.TrimSuffix(d, "."), nil
}

// localIPs returns the list of local addresses if the placeholder is a word of its own. Within a word, as in the
// add-on's "health __PILLAR__LOCAL__DNS__:8080", it returns the first address, as the add-on's deployment does,
// because a list would break the word.
func (o *Options) localIPs(p place) (string, error) {
	if len(o.LocalIPs) == 0 {
		return "", fmt.Errorf("%s needs -localip", p.name)
	}
	if !p.alone {
		return hostPart(o.LocalIPs[0], p.port), nil
	}
	ips := make([]string, len(o.LocalIPs))
	for i, ip := range o.LocalIPs {
		ips[i] = ip.String()
	}
	return strings.Join(ips, " "), nil
}

// clusterDNS is the cluster IP of -upstreamsvc, from the variable that the kubelet sets for each Service
// of the pod's namespace (kubernetes.io, "Discovering services").
func (o *Options) clusterDNS(p place) (string, error) {
	name := strings.ToUpper(strings.ReplaceAll(o.UpstreamSvc, "-", "_")) + "_SERVICE_HOST"
	v := o.Getenv(name)
	if v == "" {
		return "", fmt.Errorf("%s needs the environment variable %s, which the kubelet sets in pods of the namespace of "+
			"Service %q if that is older than the pod: create the Service, or name another with -upstreamsvc", p.name, name, o.UpstreamSvc)
	}
	ip, err := netip.ParseAddr(v)
	if err != nil || ip.Zone() != "" {
		return "", fmt.Errorf("%s: environment variable %s=%q is not an IP address: Service %q must have a cluster IP, "+
			"or name another with -upstreamsvc", p.name, name, v, o.UpstreamSvc)
	}
	return hostPart(ip, p.port), nil
}

// prometheus returns the address for metrics. The flag belongs to this process, so it is only checked for being one
// word.
func (o *Options) prometheus() (string, error) {
	if o.PrometheusAddr == "" {
		return "", fmt.Errorf("%s needs -prometheus-listen-address, for example :9253", placePrometheus)
	}
	_, port, err := net.SplitHostPort(o.PrometheusAddr)
	if err != nil || port == "" || strings.ContainsAny(o.PrometheusAddr, " \t\r\n\"#{}") {
		return "", fmt.Errorf("%s: -prometheus-listen-address %q is not HOST:PORT", placePrometheus, o.PrometheusAddr)
	}
	return o.PrometheusAddr, nil
}

// hostPart writes ip so that a port may follow.
func hostPart(ip netip.Addr, port bool) string {
	if port && ip.Is6() {
		return "[" + ip.String() + "]"
	}
	return ip.String()
}
