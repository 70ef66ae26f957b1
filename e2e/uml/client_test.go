package uml

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"github.com/miekg/dns"
)

// patience is how long a client waits for one answer. An answer normally takes some milliseconds, so that a slow
// machine loses none; a lost one never comes, because clients do not ask twice.
const patience = 2 * time.Second

// workers is how many clients ask at the same time where the order does not matter.
const workers = 100

// ask sends one query from a fresh socket, once, and reports why there was no good answer.
func (h *host) ask(network string, server netip.Addr, name string) error {
	return h.do(func() error { return ask(network, server, name) })
}

// ask works in the calling thread's namespace.
func ask(network string, server netip.Addr, name string) error {
	client := dns.Client{Net: network, Timeout: patience}
	answer, _, err := client.Exchange(new(dns.Msg).SetQuestion(name, dns.TypeA), netip.AddrPortFrom(server, 53).String())
	if err != nil {
		return err
	}
	if answer.Rcode != dns.RcodeSuccess || len(answer.Answer) != 1 {
		return fmt.Errorf("%s: %s with %d records", name, dns.RcodeToString[answer.Rcode], len(answer.Answer))
	}
	return nil
}

// losses are the results of a number of queries.
type losses struct {
	tries, lost int
	first       error // the first reason of a loss
}

func (l losses) String() string {
	if l.first == nil {
		return fmt.Sprintf("%d of %d lost", l.lost, l.tries)
	}
	return fmt.Sprintf("%d of %d lost (the first: %v)", l.lost, l.tries, l.first)
}

// askMany asks for name(0) to name(tries-1), each once from a socket of its own, as a pod's stub resolver does. It
// returns an error if the host could not be entered.
func (h *host) askMany(network string, server netip.Addr, tries int, name func(i int) string) (losses, error) {
	var next, lost atomic.Int64
	var mu sync.Mutex
	var first error
	var all sync.WaitGroup
	failed := make([]error, workers)
	for w := range workers {
		all.Go(func() {
			failed[w] = h.do(func() error {
				for i := int(next.Add(1)) - 1; i < tries; i = int(next.Add(1)) - 1 {
					if err := ask(network, server, name(i)); err != nil {
						lost.Add(1)
						mu.Lock()
						if first == nil {
							first = err
						}
						mu.Unlock()
					}
				}
				return nil
			})
		})
	}
	all.Wait()
	return losses{tries: tries, lost: int(lost.Load()), first: first}, errors.Join(failed...)
}

// connect opens n TCP connections to an address.
func (h *host) connect(n int, to netip.AddrPort) ([]net.Conn, error) {
	var conns []net.Conn
	err := h.do(func() error {
		for range n {
			c, err := net.DialTimeout("tcp4", to.String(), 10*time.Second)
			if err != nil {
				return err
			}
			conns = append(conns, c)
		}
		return nil
	})
	return conns, err
}
