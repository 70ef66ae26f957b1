package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"time"

	"github.com/miekg/dns"

	"localcache.dev/localcache/bench/internal/load"
	"localcache.dev/localcache/bench/internal/machine"
	"localcache.dev/localcache/bench/internal/upstream"
)

const (
	startTimeout = 15 * time.Second // to the first answer
	endTimeout   = 5 * time.Second  // from SIGTERM to SIGKILL
	askAgain     = time.Millisecond // while there is no first answer
)

// process is a contender that runs.
type process struct {
	*contender
	cmd   *exec.Cmd
	log   string
	ended chan struct{} // closed when the process has ended

	firstAnswer time.Duration // from its start
	firstCPU    time.Duration // CPU time until then
}

// launch starts a contender on the server's core and waits for its first answer.
func (b *bench) launch(ctx context.Context, c *contender, tcp bool) (*process, error) {
	dir, err := os.MkdirTemp(b.dir, c.Name+"-")
	if err != nil {
		return nil, err
	}
	args, err := c.command(site{dir: dir, addr: c.addr, upstream: upstreamAddr, tcp: tcp})
	if err != nil {
		return nil, err
	}
	p := &process{contender: c, cmd: exec.Command(c.program, args...), log: filepath.Join(dir, "log"), ended: make(chan struct{})}
	log, err := os.Create(p.log)
	if err != nil {
		return nil, err
	}
	defer log.Close()
	p.cmd.Dir, p.cmd.Stdout, p.cmd.Stderr = dir, log, log
	started := time.Now()
	if err := b.serverCore.Start(p.cmd); err != nil {
		return nil, fmt.Errorf("start %s: %w", c.Name, err)
	}
	go func() {
		// The exit status does not matter; the code that measures notices the end.
		_ = p.cmd.Wait()
		close(p.ended)
	}()
	if err := p.awaitFirst(ctx, started); err != nil {
		err = fmt.Errorf("%s: %w; its log ends\n  %s", c.Name, err, tail(p.log))
		return nil, errors.Join(err, p.stop())
	}
	return p, nil
}

func (p *process) pid() int { return p.cmd.Process.Pid }

// awaitFirst asks every millisecond until there is an answer.
func (p *process) awaitFirst(ctx context.Context, started time.Time) error {
	conn, err := net.DialUDP("udp4", nil, net.UDPAddrFromAddrPort(p.addr))
	if err != nil {
		return err
	}
	defer conn.Close()
	q := load.NewQuery(load.ServiceName(0), load.A, load.Records).Wire
	buf := make([]byte, 2048)
	for time.Since(started) < startTimeout {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-p.ended:
			return errors.New("ended at once")
		default:
		}
		q[1]++
		// Until the server listens, errors of both are expected.
		_, _ = conn.Write(q)
		next := time.Now().Add(askAgain)
		if err := conn.SetReadDeadline(next); err != nil {
			return err
		}
		n, err := conn.Read(buf)
		if err != nil {
			time.Sleep(time.Until(next))
			continue
		}
		if n >= len(q) && buf[3]&15 == dns.RcodeSuccess && (p.Echo || buf[7] > 0) {
			p.firstAnswer = time.Since(started)
			p.firstCPU, err = machine.CPUTime(p.pid())
			return err
		}
	}
	return fmt.Errorf("no answer within %v", startTimeout)
}

// stop ends the process and waits for it.
func (p *process) stop() error {
	select {
	case <-p.ended:
		return nil
	default:
	}
	if err := p.cmd.Process.Signal(syscall.SIGTERM); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return err
	}
	select {
	case <-p.ended:
		return nil
	case <-time.After(endTimeout):
	}
	err := p.cmd.Process.Kill()
	<-p.ended
	if errors.Is(err, os.ErrProcessDone) {
		return nil
	}
	return err
}

// check asks a server for names of each kind and compares the answers with the expected data, so that no broken
// server is measured.
func (p *process) check(ctx context.Context) error {
	if p.Echo {
		return nil // its first answer was all that it can do
	}
	client := &dns.Client{Timeout: 2 * time.Second}
	for _, name := range []string{load.ServiceName(1), "www.example.com", "www.example.com.svc.cluster.local"} {
		for _, qtype := range []uint16{dns.TypeA, dns.TypeAAAA} {
			q := new(dns.Msg).SetQuestion(dns.Fqdn(name), qtype)
			m, _, err := client.ExchangeContext(ctx, q, p.addr.String())
			if err != nil {
				return fmt.Errorf("%s: %s %s: %w", p.Name, dns.TypeToString[qtype], name, err)
			}
			if err := right(m, name, qtype); err != nil {
				return fmt.Errorf("%s: %s %s: %w", p.Name, dns.TypeToString[qtype], name, err)
			}
		}
	}
	return nil
}

// right returns what is wrong with an answer.
func right(m *dns.Msg, name string, qtype uint16) error {
	wire := make([]byte, 255)
	n, err := dns.PackDomainName(dns.Fqdn(name), wire, 0, nil, false)
	if err != nil {
		return err
	}
	if !upstream.Exists(wire[:n]) {
		if m.Rcode != dns.RcodeNameError || len(m.Answer) != 0 {
			return fmt.Errorf("%s with %d records, want NXDOMAIN", dns.RcodeToString[m.Rcode], len(m.Answer))
		}
		return nil
	}
	want := net.IP(upstream.Address(wire[:n], qtype).AsSlice())
	if m.Rcode != dns.RcodeSuccess || len(m.Answer) != 1 {
		return fmt.Errorf("%s with %d records, want %v", dns.RcodeToString[m.Rcode], len(m.Answer), want)
	}
	var got net.IP
	switch rr := m.Answer[0].(type) {
	case *dns.A:
		got = rr.A
	case *dns.AAAA:
		got = rr.AAAA
	}
	if !got.Equal(want) {
		return fmt.Errorf("%v, want %v", got, want)
	}
	return nil
}

// prime makes a server ask its upstream for each query once, and returns the share of them that it asks for again
// when it is asked a second time.
func (b *bench) prime(ctx context.Context, p *process, queries []load.Query) (forgotten float64, err error) {
	var asked int64
	for range 2 {
		before, err := b.upstream.counters()
		if err != nil {
			return 0, err
		}
		res, err := load.Run(ctx, load.Config{
			Server: p.addr, Source: p.source(&load.Once{Queries: queries}), Window: 64, Sockets: 8,
			Timeout: 500 * time.Millisecond, Retry: 10,
		})
		if err != nil {
			return 0, err
		}
		if res.Lost+res.Wrong > 0 {
			return 0, fmt.Errorf("%s: of %d first queries %d were lost and %d answered wrongly (by rcode: %v)", p.Name, len(queries), res.Lost, res.Wrong, res.Rcodes)
		}
		after, err := b.upstream.counters()
		if err != nil {
			return 0, err
		}
		asked = after.UDP + after.TCP - before.UDP - before.TCP
	}
	return float64(asked) / float64(len(queries)), nil
}

// source returns a source that expects the answers which this server can give.
func (p *process) source(s load.Source) load.Source {
	if p.Echo {
		return load.Echo{Source: s}
	}
	return s
}

// memory returns the process's resident memory.
func (p *process) memory() (machine.Memory, error) {
	m, err := machine.MemoryOf(p.pid())
	if err != nil {
		return m, fmt.Errorf("%s: %w", p.Name, err)
	}
	return m, nil
}
