package corefile

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"path/filepath"
	"slices"
	"strings"
)

// The keys of the kube-dns ConfigMap that are used here; its others (federations) concern kube-dns only.
const (
	keyStubDomains = "stubDomains"
	keyUpstreams   = "upstreamNameservers"
)

const (
	// maxUpstreams is Kubernetes' own limit ("Customizing DNS Service": at most three).
	maxUpstreams = 3
	// maxStubServers is forward's limit of upstreams.
	maxStubServers = 15
	// stubCacheTTL is the time in seconds that answers of stub domains are cached at most, node-cache's.
	stubCacheTTL = 30
)

// kubeDNS is the kube-dns ConfigMap.
type kubeDNS struct {
	dir       string
	stubs     map[string][]string // canonical domain → servers
	upstreams []string
}

// parseKubeDNS reads the two files of the ConfigMap in dir; nil means that a file does not exist. The error lists
// everything that is wrong, each with file, key and value.
func (o *Options) parseKubeDNS(dir string, stubs, upstreams []byte) (*kubeDNS, error) {
	k := &kubeDNS{dir: dir}
	var stubErr, upstreamErr error
	k.stubs, stubErr = o.parseStubDomains(filepath.Join(dir, keyStubDomains), stubs)
	k.upstreams, upstreamErr = o.parseUpstreams(filepath.Join(dir, keyUpstreams), upstreams)
	if err := errors.Join(stubErr, upstreamErr); err != nil {
		return nil, err
	}
	return k, nil
}

// parseUpstreams reads the JSON list of name servers in data. A blank file is an empty list, since a ConfigMap key
// without a value is an empty file.
func (o *Options) parseUpstreams(file string, data []byte) ([]string, error) {
	if len(bytes.TrimSpace(data)) == 0 {
		return nil, nil
	}
	var raw json.RawMessage
	if err := json.Unmarshal(data, &raw); err != nil {
		return nil, jsonError(file, data, err)
	}
	var list []string
	if err := json.Unmarshal(raw, &list); err != nil {
		return nil, fmt.Errorf(`%s: want a list of servers like ["10.0.0.1"], found %s`, file, excerpt(raw))
	}
	if len(list) > maxUpstreams {
		return nil, fmt.Errorf("%s: %d servers, at most %d are allowed", file, len(list), maxUpstreams)
	}
	return o.servers(file, list)
}

// parseStubDomains reads the JSON object of domains and their servers in data, with a blank file as the
// empty object.
func (o *Options) parseStubDomains(file string, data []byte) (map[string][]string, error) {
	if len(bytes.TrimSpace(data)) == 0 {
		return nil, nil
	}
	var raw json.RawMessage
	if err := json.Unmarshal(data, &raw); err != nil {
		return nil, jsonError(file, data, err)
	}
	if string(bytes.TrimSpace(raw)) == "null" {
		return nil, nil
	}
	// The object is read token by token, because a map would hide a domain that is given twice.
	dec := json.NewDecoder(bytes.NewReader(raw))
	if t, err := dec.Token(); err != nil || t != json.Delim('{') {
		return nil, fmt.Errorf(`%s: want an object like {"example.com": ["10.0.0.1"]}, found %s`, file, excerpt(raw))
	}
	stubs := map[string][]string{}
	spelled := map[string]string{}
	var errs []error
	for dec.More() {
		t, err := dec.Token()
		if err != nil {
			return nil, jsonError(file, data, err)
		}
		key, _ := t.(string) // the keys of an object that parsed are strings
		var value json.RawMessage
		if err := dec.Decode(&value); err != nil {
			return nil, jsonError(file, data, err)
		}
		domain := canonicalDomain(key)
		where := fmt.Sprintf("%s: %q", file, key)
		servers, err := o.stubServers(where, key, value)
		if err == nil && spelled[domain] != "" {
			err = fmt.Errorf("%s: the domain is given twice, before as %q", where, spelled[domain])
		}
		if err != nil {
			errs = append(errs, err)
			continue
		}
		stubs[domain], spelled[domain] = servers, key
	}
	if err := errors.Join(errs...); err != nil {
		return nil, err
	}
	return stubs, nil
}

// stubServers checks one stub domain and returns its servers. Errors begin with where.
func (o *Options) stubServers(where, domain string, value json.RawMessage) ([]string, error) {
	if domain == "." {
		return nil, fmt.Errorf("%s: the root is not a stub domain; servers for all other names belong into %s", where, keyUpstreams)
	}
	if err := checkDomain(domain); err != nil {
		return nil, fmt.Errorf("%s: %w", where, err)
	}
	var list []string
	if err := json.Unmarshal(value, &list); err != nil {
		return nil, fmt.Errorf(`%s: want a list of servers like ["10.0.0.1"], found %s`, where, excerpt(value))
	}
	if len(list) == 0 {
		return nil, fmt.Errorf("%s: no servers", where)
	}
	if len(list) > maxStubServers {
		return nil, fmt.Errorf("%s: %d servers, at most %d are allowed", where, len(list), maxStubServers)
	}
	return o.servers(where, list)
}

// servers checks a list of servers and returns them in the syntax of forward. An address of this process would be a
// loop. Errors begin with where.
func (o *Options) servers(where string, list []string) ([]string, error) {
	var servers []string
	var errs []error
	for _, s := range list {
		server, err := parseServer(s)
		if err == nil && server.Port() == o.Port && slices.Contains(o.LocalIPs, server.Addr()) {
			err = fmt.Errorf("server %q is this cache itself (-localip %s): its queries would go round in a loop", s, server.Addr())
		}
		if err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", where, err))
			continue
		}
		servers = append(servers, formatServer(server))
	}
	return servers, errors.Join(errs...)
}

// jsonError says where data stops being JSON.
func jsonError(file string, data []byte, err error) error {
	var syntax *json.SyntaxError
	if errors.As(err, &syntax) {
		before := data[:min(int(syntax.Offset), len(data))]
		line := 1 + bytes.Count(before, []byte("\n"))
		return fmt.Errorf("%s:%d: not valid JSON: %w", file, line, err)
	}
	return fmt.Errorf("%s: not valid JSON: %w", file, err)
}

// excerpt returns the valid JSON that was found, on one line and of at most 40 octets.
func excerpt(found json.RawMessage) string {
	const most = 40
	var b bytes.Buffer
	if err := json.Compact(&b, found); err != nil {
		return "something else"
	}
	if b.Len() <= most {
		return b.String()
	}
	return string(bytes.ToValidUTF8(b.Bytes()[:most], nil)) + "…"
}

// appendStubs appends a server block for each stub domain to the Corefile content, sorted by name. file
// is the source of content, for messages: a domain that has a server block there already is an error,
// since CoreDNS would refuse the whole Corefile for it, and neither of the two is clearly the one
// that is meant.
func (o *Options) appendStubs(file string, content []byte, k *kubeDNS) ([]byte, error) {
	if len(k.stubs) == 0 {
		return content, nil
	}
	stubFile := filepath.Join(k.dir, keyStubDomains)
	if err := o.checkRoom(file, stubFile, content, k); err != nil {
		return nil, err
	}
	var b bytes.Buffer
	b.Write(content)
	if n := len(content); n > 0 && content[n-1] != '\n' {
		b.WriteByte('\n')
	}
	b.WriteString("\n# Stub domains of the kube-dns ConfigMap.\n")
	for _, domain := range slices.Sorted(maps.Keys(k.stubs)) {
		fmt.Fprintf(&b, "%s:%d {\n    errors\n    cache %d\n", domain, o.Port, stubCacheTTL)
		if len(o.LocalIPs) > 0 {
			b.WriteString("    bind")
			for _, ip := range o.LocalIPs {
				b.WriteByte(' ')
				b.WriteString(ip.String())
			}
			b.WriteByte('\n')
		}
		fmt.Fprintf(&b, "    forward . %s\n}\n", strings.Join(k.stubs[domain], " "))
	}
	return b.Bytes(), nil
}

// checkRoom finds out whether blocks can follow content, and whether one of the stub domains is there
// already.
func (o *Options) checkRoom(file, stubFile string, content []byte, k *kubeDNS) error {
	tokens, unclosed := scan(content)
	if unclosed > 0 {
		return fmt.Errorf("%s:%d: the quote that begins here is not closed: the stub domains of %s cannot follow", file, unclosed, stubFile)
	}
	var errs []error
	taken := map[string]bool{} // each domain is reported once
	for _, b := range serverBlocks(tokens) {
		switch {
		case !b.braces:
			errs = append(errs, fmt.Errorf("%s:%d: the server block has no braces: put them round its directives, so that the stub domains of %s can follow", file, b.line(), stubFile))
		case !b.closed:
			errs = append(errs, fmt.Errorf("%s:%d: the server block is not closed: the stub domains of %s cannot follow", file, b.line(), stubFile))
		case len(o.LocalIPs) == 0 && len(b.binds) > 0:
			errs = append(errs, fmt.Errorf("%s:%d: bind listens on chosen addresses, and the stub domains of %s need the same: give them with -localip", file, b.binds[0].line, stubFile))
		case b.reaches(o.LocalIPs):
			for _, key := range b.keys {
				domain, port, ok := splitKey(key.text, o.Port)
				if ok && port == o.Port && k.stubs[domain] != nil && !taken[domain] {
					taken[domain] = true
					errs = append(errs, fmt.Errorf("stub domain %q of %s has a server block of its own at %s:%d: remove one of the two", domain, stubFile, file, key.line))
				}
			}
		}
	}
	return errors.Join(errs...)
}
