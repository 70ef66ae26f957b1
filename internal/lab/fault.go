package lab

import (
	"math/rand/v2"
	"slices"
	"time"

	"github.com/google/nftables"
)

// Transport is UDP or TCP; the zero value means both.
type Transport string

// The transports.
const (
	UDP Transport = "udp"
	TCP Transport = "tcp"
)

// Fault is a misbehaviour of a server. Its fields combine; the zero Fault is none.
type Fault struct {
	Transport Transport // the transport it applies to; both where empty

	Refuse bool          // no socket is open: ICMP port unreachable, or RST
	Delay  time.Duration // before each answer; on a TCP connection answers do not wait for one another
	Drop   float64       // share of queries without an answer, 0 to 1
	Rcode  int           // answer with this code and nothing else, unless 0 (NOERROR)
	Close  CloseFault    // TCP only
}

// CloseFault says when a server closes a TCP connection that it should have kept.
type CloseFault int

// When a server closes a TCP connection.
const (
	CloseNever     CloseFault = iota
	CloseOnAccept             // at once, before any query is read
	CloseOnQuery              // after a query was read, without an answer
	CloseMidAnswer            // after the length and half of an answer
)

// Break makes the server misbehave until the next Break or Mend. With several faults the first one for a transport
// applies.
func (s *Server) Break(faults ...Fault) error { return s.setFaults(faults) }

// Mend ends all faults; sockets that were closed are open when it returns.
func (s *Server) Mend() error { return s.setFaults(nil) }

func (s *Server) setFaults(faults []Fault) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.faults = slices.Clone(faults)
	return s.adjustSockets()
}

// fault returns the fault that applies to a transport.
func (s *Server) fault(t Transport) Fault {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.faultLocked(t)
}

func (s *Server) faultLocked(t Transport) Fault {
	for _, f := range s.faults {
		if f.Transport == "" || f.Transport == t {
			return f
		}
	}
	return Fault{}
}

// drops reports whether this query gets no answer.
func (f Fault) drops() bool {
	return f.Drop > 0 && (f.Drop >= 1 || rand.Float64() < f.Drop)
}

// Isolate drops every packet that reaches the host, as when its machine hangs: no ICMP and no RST.
// Rejoin ends it.
func (h *Host) Isolate() error {
	return h.Do(func() error {
		c, err := nftables.New()
		if err != nil {
			return err
		}
		drop := nftables.ChainPolicyDrop
		table := c.AddTable(&nftables.Table{Name: isolation, Family: nftables.TableFamilyINet})
		c.AddChain(&nftables.Chain{Name: "input", Table: table, Type: nftables.ChainTypeFilter,
			Hooknum: nftables.ChainHookInput, Priority: nftables.ChainPriorityFirst, Policy: &drop})
		return c.Flush()
	})
}

// Rejoin ends Isolate.
func (h *Host) Rejoin() error {
	return h.Do(func() error {
		c, err := nftables.New()
		if err != nil {
			return err
		}
		c.DelTable(&nftables.Table{Name: isolation, Family: nftables.TableFamilyINet})
		return c.Flush()
	})
}

const isolation = "lab-isolation"
