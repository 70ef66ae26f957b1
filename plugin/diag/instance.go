package diag

import (
	"errors"
	"net/netip"
	"slices"
	"sync"

	"github.com/coredns/caddy"
	"github.com/coredns/coredns/plugin"
	"github.com/coredns/coredns/plugin/pkg/reuseport"

	"localcache.dev/localcache/internal/api"
)

// instance is one running Corefile's wish.
type instance struct{ config Config } // of all its blocks

// endpoint is a TCP listener and its access rule.
type endpoint struct{ address, access, file string }

type instanceKey struct{}

// onTheWay says what else can be read by those who see the traffic of a listener, by its access.
var onTheWay = map[string]string{
	accessToken:      ", and the token, which is good for all of them",
	accessKubernetes: ", and the clients' tokens, which may give access to more than this",
}

// instanceOf is the state of the instance that c sets up.
func (p *Plugin) instanceOf(c *caddy.Controller) *instance {
	if in, ok := c.Get(instanceKey{}).(*instance); ok {
		return in
	}
	in := &instance{}
	c.Set(instanceKey{}, in)
	c.OnStartup(func() error { return p.start(in) })
	// The old instance runs this when the new one could not be started.
	c.OnRestartFailed(func() error { return p.start(in) })
	c.OnShutdown(func() error { p.stop(in); return nil })
	return in
}

// start puts an instance's configuration in force. It fails only if the configuration makes no sense: an address that
// cannot be opened is no reason not to serve DNS.
func (p *Plugin) start(in *instance) error {
	if err := in.config.Validate(); err != nil {
		return plugin.Error(directive, err)
	}
	if p.options.Off {
		return nil
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed {
		return plugin.Error(directive, errors.New("the process is ending"))
	}
	p.current = in
	p.active.Store(true)
	p.options.Queries.Configure(in.config.bounds())
	p.server.SetRedaction(in.config.redaction())
	p.setPods(in.config.Pods != podsOffWord)
	p.podMetrics.Store(int32(in.config.PodSeries))
	if p.socket == nil {
		p.socket = p.server.ServeSocket(p.options.Socket, p.log)
	}
	var wish []endpoint
	for _, a := range in.config.Listen {
		wish = append(wish, endpoint{a, in.config.Access, in.config.TokenFile})
	}
	p.listen(wish)
	return nil
}

// stop is called for an instance that is no longer needed. Usually the next one has started by now and keeps what is
// served; else the Corefile has no diag any more, or the process ends.
func (p *Plugin) stop(in *instance) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.current == in {
		p.current = nil
		p.active.Store(false)
		p.setPods(false)
		p.podMetrics.Store(0)
		p.end()
	}
}

// setPods opens or closes the way to the pods. It runs with p.mu held.
func (p *Plugin) setPods(on bool) {
	p.pods.off.Store(!on)
	if p.options.OnPods != nil {
		p.options.OnPods(on)
	}
}

// listen closes the listeners that are not wanted and opens those that are. It runs with p.mu held. The port is
// shared with the other process of an upgrade.
func (p *Plugin) listen(wish []endpoint) {
	keep := make(map[endpoint]bool, len(wish))
	for _, e := range wish {
		keep[e] = true
	}
	if !slices.ContainsFunc(wish, func(e endpoint) bool { return e.access == accessKubernetes }) {
		p.forgetKubernetes() // first: requests are waited for, and they may wait for it
	}
	var closing sync.WaitGroup // in parallel: each may wait for a slow reader
	for e, l := range p.listening {
		if !keep[e] {
			closing.Go(l.Close)
			delete(p.listening, e)
		}
	}
	closing.Wait()
	for _, e := range wish {
		if p.listening[e] != nil {
			continue
		}
		if err := p.open(e); err != nil {
			p.log.Warningf("no diagnostics at %s: %v", e.address, err)
		}
	}
}

func (p *Plugin) open(e endpoint) error {
	access := api.Open()
	switch e.access {
	case accessKubernetes:
		k, err := p.kubernetes()
		if err != nil {
			return err
		}
		access = k
	case accessToken:
		token, err := api.NewToken(e.file)
		if err != nil {
			// The file existed when the Corefile was read. Until it is back, access is refused.
			p.log.Warningf("access token: %v", err)
		}
		access = token
	}
	ln, err := reuseport.Listen("tcp", e.address)
	if err != nil {
		return err
	}
	p.listening[e] = p.server.Serve(ln, access, e.address, p.log)
	if addr, err := netip.ParseAddrPort(e.address); err == nil && !addr.Addr().IsLoopback() {
		p.log.Infof("diagnostics at %s are plain HTTP: whoever sees the traffic reads the answers%s", e.address, onTheWay[e.access])
	}
	return nil
}
