package lab

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"sync"
	"time"

	"github.com/miekg/dns"
)

// Server is a DNS server on port 53 of a host's addresses, over UDP and TCP. It answers correctly unless a fault is
// set with Break, and records every query.
type Server struct {
	Host   *Host
	Record Record

	answer func(*dns.Msg) *dns.Msg
	slots  chan struct{} // bounds the queries in work

	mu     sync.Mutex // guards the fields below
	faults []Fault
	udp    []*net.UDPConn
	tcp    []*net.TCPListener
	conns  map[net.Conn]struct{}
	closed bool
	done   chan struct{} // closed by close: ends delays

	work sync.WaitGroup
}

const (
	// maxInWork bounds the goroutines of one server. Queries beyond it wait in the socket.
	maxInWork = 4096
	// maxUDPSize is the largest UDP answer, whatever the client offers (CoreDNS' bufsize default).
	maxUDPSize = 1232
	// idleTimeout ends idle TCP connections, as CoreDNS' does (10 s by default).
	idleTimeout = 10 * time.Second
)

func newServer(h *Host, answer func(*dns.Msg) *dns.Msg) (*Server, error) {
	s := &Server{Host: h, answer: answer, slots: make(chan struct{}, maxInWork), conns: map[net.Conn]struct{}{}, done: make(chan struct{})}
	s.mu.Lock()
	defer s.mu.Unlock()
	return s, s.adjustSockets()
}

// adjustSockets opens or closes each transport's sockets as its fault demands. s.mu is held.
func (s *Server) adjustSockets() error {
	var errs []error
	refuse := s.faultLocked(UDP).Refuse || s.closed
	switch {
	case refuse && s.udp != nil:
		for _, c := range s.udp {
			errs = append(errs, c.Close())
		}
		s.udp = nil
	case !refuse && s.udp == nil:
		for _, a := range s.addrs() {
			c, err := s.Host.ListenUDP(a)
			if err != nil {
				errs = append(errs, fmt.Errorf("host %s: %w", s.Host.Name, err))
				continue
			}
			s.udp = append(s.udp, c)
			s.work.Go(func() { s.serveUDP(c) })
		}
	}
	refuse = s.faultLocked(TCP).Refuse || s.closed
	switch {
	case refuse && s.tcp != nil:
		for _, l := range s.tcp {
			errs = append(errs, l.Close())
		}
		s.tcp = nil
		for c := range s.conns {
			reset(c)
		}
	case !refuse && s.tcp == nil:
		for _, a := range s.addrs() {
			l, err := s.Host.ListenTCP(a)
			if err != nil {
				errs = append(errs, fmt.Errorf("host %s: %w", s.Host.Name, err))
				continue
			}
			s.tcp = append(s.tcp, l)
			s.work.Go(func() { s.serveTCP(l) })
		}
	}
	return errors.Join(errs...)
}

func (s *Server) addrs() []netip.AddrPort {
	addrs := []netip.AddrPort{netip.AddrPortFrom(s.Host.IPv4, 53)}
	if s.Host.IPv6.IsValid() {
		addrs = append(addrs, netip.AddrPortFrom(s.Host.IPv6, 53))
	}
	return addrs
}

// close ends the server and waits for its goroutines.
func (s *Server) close() error {
	s.mu.Lock()
	if s.closed {
		s.mu.Unlock()
		return nil
	}
	s.closed = true
	close(s.done)
	err := s.adjustSockets()
	s.mu.Unlock()
	s.work.Wait()
	return err
}

func (s *Server) serveUDP(c *net.UDPConn) {
	buf := make([]byte, dns.MaxMsgSize)
	for {
		n, client, err := c.ReadFromUDPAddrPort(buf)
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil {
			continue // an ICMP error about an earlier answer
		}
		query := new(dns.Msg)
		if query.Unpack(buf[:n]) != nil {
			continue
		}
		s.slots <- struct{}{}
		s.work.Go(func() {
			defer func() { <-s.slots }()
			if packed := s.respond(query, UDP, client); packed != nil {
				// The client may be gone, and the socket closed; neither is the server's concern.
				_, _ = c.WriteToUDPAddrPort(packed, client)
			}
		})
	}
}

func (s *Server) serveTCP(l *net.TCPListener) {
	for {
		c, err := l.Accept()
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil {
			continue
		}
		s.Record.addConn()
		s.mu.Lock()
		fault := s.faultLocked(TCP)
		if fault.Close == CloseOnAccept || fault.Refuse || s.closed {
			s.mu.Unlock()
			reset(c)
			continue
		}
		s.conns[c] = struct{}{}
		s.work.Go(func() { s.serveConn(c) })
		s.mu.Unlock()
	}
}

// serveConn answers the queries of one connection, each as soon as it can (RFC 7766 section 6.2.1.1).
func (s *Server) serveConn(c net.Conn) {
	var answers sync.WaitGroup
	var writing sync.Mutex
	defer func() {
		answers.Wait()
		_ = c.Close() // it may be reset already
		s.mu.Lock()
		delete(s.conns, c)
		s.mu.Unlock()
	}()
	client, err := netip.ParseAddrPort(c.RemoteAddr().String())
	if err != nil {
		return
	}
	for {
		if c.SetReadDeadline(time.Now().Add(idleTimeout)) != nil {
			return
		}
		query, err := readTCP(c)
		if err != nil {
			return
		}
		s.slots <- struct{}{}
		answers.Go(func() {
			defer func() { <-s.slots }()
			packed := s.respond(query, TCP, client)
			writing.Lock()
			defer writing.Unlock()
			switch s.fault(TCP).Close {
			case CloseOnQuery:
				reset(c)
			case CloseMidAnswer:
				framed := frame(packed)
				_, _ = c.Write(framed[:2+len(packed)/2])
				_ = c.Close()
			default:
				if packed != nil {
					_, _ = c.Write(frame(packed)) // the client may be gone
				}
			}
		})
	}
}

// respond records a query and returns the packed answer, or nil if a fault suppresses it.
func (s *Server) respond(query *dns.Msg, t Transport, client netip.AddrPort) []byte {
	q := Query{At: time.Now(), Server: s.Host.Name, Transport: t, Client: netip.AddrPortFrom(client.Addr().Unmap(), client.Port()), ID: query.Id}
	if len(query.Question) == 1 {
		q.Name, q.Type = query.Question[0].Name, query.Question[0].Qtype
	}
	opt := query.IsEdns0()
	if opt != nil {
		q.EDNS, q.Size = true, opt.UDPSize()
	}
	s.Record.add(q)

	fault := s.fault(t)
	if fault.drops() {
		return nil
	}
	if fault.Delay > 0 {
		select {
		case <-time.After(fault.Delay):
		case <-s.done:
			return nil
		}
	}
	var answer *dns.Msg
	switch {
	case query.Response:
		return nil
	case fault.Rcode != dns.RcodeSuccess:
		answer = new(dns.Msg).SetRcode(query, fault.Rcode)
	case query.Opcode != dns.OpcodeQuery:
		answer = new(dns.Msg).SetRcode(query, dns.RcodeNotImplemented)
	case len(query.Question) != 1:
		answer = new(dns.Msg).SetRcode(query, dns.RcodeFormatError)
	case query.Question[0].Qclass != dns.ClassINET:
		answer = new(dns.Msg).SetRcode(query, dns.RcodeRefused)
	default:
		answer = s.answer(query)
	}
	return pack(query, answer, t)
}

// pack fits an answer to its transport. An answer that cannot be packed becomes SERVFAIL.
func pack(query, answer *dns.Msg, t Transport) []byte {
	answer.Compress = true
	size := dns.MaxMsgSize
	if t == UDP {
		size = dns.MinMsgSize
	}
	if opt := query.IsEdns0(); opt != nil {
		if t == UDP {
			size = min(max(size, int(opt.UDPSize())), maxUDPSize)
		}
		answer.SetEdns0(maxUDPSize, opt.Do())
	}
	answer.Truncate(size)
	packed, err := answer.Pack()
	if err == nil {
		return packed
	}
	packed, err = new(dns.Msg).SetRcode(query, dns.RcodeServerFailure).Pack()
	if err != nil {
		return nil
	}
	return packed
}

// readTCP reads one message with its length (RFC 1035 section 4.2.2).
func readTCP(r io.Reader) (*dns.Msg, error) {
	var length [2]byte
	if _, err := io.ReadFull(r, length[:]); err != nil {
		return nil, err
	}
	buf := make([]byte, binary.BigEndian.Uint16(length[:]))
	if _, err := io.ReadFull(r, buf); err != nil {
		return nil, err
	}
	m := new(dns.Msg)
	return m, m.Unpack(buf)
}

// frame puts the length before a message.
func frame(packed []byte) []byte {
	return append(binary.BigEndian.AppendUint16(nil, uint16(len(packed))), packed...)
}

// reset closes a connection with RST, as a process that dies with unread data does. Errors mean that it is already
// closed.
func reset(c net.Conn) {
	if t, ok := c.(*net.TCPConn); ok {
		_ = t.SetLinger(0)
	}
	_ = c.Close()
}
