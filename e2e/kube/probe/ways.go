package main

import (
	"errors"
	"net"
	"sync"
	"time"

	"github.com/miekg/dns"
)

// message makes the nth query; its ID tells the queries of one socket apart, because no more than 65536
// are sent within the patience.
func message(n uint64, name string) *dns.Msg {
	m := new(dns.Msg).SetQuestion(name, dns.TypeA)
	m.Id = uint16(n)
	return m
}

// askUDP asks from a socket of its own.
func askUDP(w *way, name string) {
	n := w.current()
	go func() {
		m := message(n, name)
		conn, err := net.Dial("udp", w.target)
		if err != nil {
			return // no socket, no answer
		}
		defer conn.Close()
		c := &dns.Conn{Conn: conn}
		if err := errors.Join(conn.SetDeadline(time.Now().Add(patience)), c.WriteMsg(m)); err != nil {
			return
		}
		for {
			reply, err := c.ReadMsg()
			if err != nil {
				return
			}
			if reply.Id == m.Id {
				w.finish(n, reply.Rcode, false)
				return
			}
		}
	}()
}

// oneSocket asks from one and the same UDP socket, as a resolver with a fixed source port does. It is not
// connected, so that no ICMP error ends the wait.
func oneSocket(target string, w *way) (func(*way, string), error) {
	to, err := net.ResolveUDPAddr("udp4", target)
	if err != nil {
		return nil, err
	}
	conn, err := net.ListenUDP("udp4", nil)
	if err != nil {
		return nil, err
	}
	var waiting sync.Map // number of the query, by ID
	go func() {
		buffer := make([]byte, 65536)
		for {
			size, _, err := conn.ReadFromUDP(buffer)
			if err != nil {
				return
			}
			var m dns.Msg
			if m.Unpack(buffer[:size]) != nil {
				continue
			}
			if n, ok := waiting.LoadAndDelete(m.Id); ok {
				w.finish(n.(uint64), m.Rcode, false)
			}
		}
	}()
	return func(w *way, name string) {
		n := w.current()
		m := message(n, name)
		wire, err := m.Pack()
		if err != nil {
			return
		}
		waiting.Store(m.Id, n)
		_, _ = conn.WriteTo(wire, to) // a query that was not sent is one without an answer
	}, nil
}

// askTCP asks over a connection of its own, and once more where that is closed without an answer.
func askTCP(w *way, name string) {
	n := w.current()
	go func() {
		end := time.Now().Add(patience)
		for again := false; time.Now().Before(end); again = true {
			if again {
				time.Sleep(interval) // a server that is gone refuses at once
			}
			if reply, err := overTCP(w.target, message(n, name), end); err == nil {
				w.finish(n, reply.Rcode, again)
				return
			}
		}
	}()
}

func overTCP(target string, m *dns.Msg, end time.Time) (*dns.Msg, error) {
	conn, err := (&net.Dialer{Deadline: end}).Dial("tcp", target)
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	c := &dns.Conn{Conn: conn}
	if err := errors.Join(conn.SetDeadline(end), c.WriteMsg(m)); err != nil {
		return nil, err
	}
	return c.ReadMsg()
}

// stream is one TCP connection for all queries. Those that it leaves without an answer are asked again on
// the next.
type stream struct {
	target string
	way    *way

	dialing sync.Mutex
	mu      sync.Mutex
	conn    *dns.Conn // nil: none
	waiting map[uint16]*question
}

type question struct {
	n     uint64
	msg   *dns.Msg
	end   time.Time
	again bool
}

func oneConnection(target string, w *way) func(*way, string) {
	s := &stream{target: target, way: w, waiting: make(map[uint16]*question)}
	questions := make(chan *question, 1024)
	go func() {
		for q := range questions {
			s.send(q)
		}
	}()
	return func(w *way, name string) {
		n := w.current()
		q := &question{n: n, msg: message(n, name), end: time.Now().Add(patience)}
		select {
		case questions <- q:
		default: // a second's worth of them and more waits for a connection: this one comes too late anyway
		}
	}
}

// send writes a query to the connection, or to a new one.
func (s *stream) send(q *question) {
	for time.Now().Before(q.end) {
		conn, err := s.connection(q)
		if err != nil {
			q.again = true
			time.Sleep(interval) // a server that is gone refuses at once
			continue
		}
		if errors.Join(conn.SetWriteDeadline(q.end), conn.WriteMsg(q.msg)) == nil {
			return
		}
		left := s.drop(conn) // q is among them, unless the reader found the end first and has taken them
		q.again = true
		for _, other := range left {
			if other != q {
				other.again = true
				s.send(other)
			}
		}
	}
}

// connection notes that the query waits and gives the connection to send it over.
func (s *stream) connection(q *question) (*dns.Conn, error) {
	s.dialing.Lock()
	defer s.dialing.Unlock()
	s.mu.Lock()
	conn := s.conn
	s.mu.Unlock()
	if conn == nil {
		fresh, err := (&net.Dialer{Deadline: q.end}).Dial("tcp", s.target)
		if err != nil {
			return nil, err
		}
		conn = &dns.Conn{Conn: fresh}
		go s.read(conn)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.conn = conn
	s.waiting[q.msg.Id] = q
	return conn, nil
}

// read takes answers until the connection is closed, or has been silent for longer than any query waits:
// then its server is gone without a word.
func (s *stream) read(conn *dns.Conn) {
	for {
		if err := conn.SetReadDeadline(time.Now().Add(patience)); err != nil {
			break
		}
		m, err := conn.ReadMsg()
		if err != nil {
			break
		}
		s.mu.Lock()
		q := s.waiting[m.Id]
		delete(s.waiting, m.Id)
		s.mu.Unlock()
		if q != nil {
			s.way.finish(q.n, m.Rcode, q.again)
		}
	}
	for _, q := range s.drop(conn) {
		q.again = true
		s.send(q)
	}
}

// drop closes a connection and gives the queries that it owes answers to.
func (s *stream) drop(conn *dns.Conn) []*question {
	_ = conn.Close() // it has failed
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.conn != conn {
		return nil
	}
	s.conn = nil
	var left []*question
	for id, q := range s.waiting {
		if time.Now().Before(q.end) {
			left = append(left, q)
		}
		delete(s.waiting, id)
	}
	return left
}
