package kube

import (
	"net"
	"sync"
	"testing"
)

// proxy passes connections on, until it is closed or frozen.
type proxy struct {
	t      testing.TB
	target string

	mu     sync.Mutex
	l      net.Listener
	addr   string
	conns  []net.Conn
	frozen chan struct{} // closed while not frozen
	owned  sync.WaitGroup
}

func newProxy(t testing.TB, target string) *proxy {
	p := &proxy{t: t, target: target, addr: "127.0.0.1:0", frozen: make(chan struct{})}
	close(p.frozen)
	p.open()
	t.Cleanup(func() { p.freeze(false); p.close(); p.owned.Wait() })
	return p
}

func (p *proxy) address() string { return p.addr }

func (p *proxy) open() {
	l, err := net.Listen("tcp", p.addr)
	if err != nil {
		p.t.Fatal(err)
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.l, p.addr = l, l.Addr().String()
	p.owned.Go(func() {
		for {
			in, err := l.Accept()
			if err != nil {
				return
			}
			out, err := net.Dial("tcp", p.target)
			if err != nil {
				in.Close()
				continue
			}
			p.mu.Lock()
			p.conns = append(p.conns, in, out)
			p.mu.Unlock()
			for _, pair := range [][2]net.Conn{{in, out}, {out, in}} {
				p.owned.Go(func() { p.pass(pair[0], pair[1]) })
			}
		}
	})
}

func (p *proxy) pass(from, to net.Conn) {
	defer to.Close()
	buf := make([]byte, 4096)
	for {
		n, err := from.Read(buf)
		p.mu.Lock()
		frozen := p.frozen
		p.mu.Unlock()
		<-frozen
		if n > 0 {
			if _, err := to.Write(buf[:n]); err != nil {
				return
			}
		}
		if err != nil {
			return
		}
	}
}

func (p *proxy) freeze(yes bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	select {
	case <-p.frozen:
		if yes {
			p.frozen = make(chan struct{})
		}
	default:
		if !yes {
			close(p.frozen)
		}
	}
}

func (p *proxy) close() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.l.Close()
	for _, c := range p.conns {
		c.Close()
	}
	p.conns = nil
}
