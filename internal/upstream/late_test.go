package upstream

import (
	"net"
	"syscall"
	"testing"
	"time"

	"localcache.dev/localcache/internal/observe"
)

// TestOwnLatenessOpensNoConnection checks that a late question whose answer has arrived unread opens no connection,
// because this process is late; without an answer it does.
func TestOwnLatenessOpensNoConnection(t *testing.T) {
	f := startFake(t, false, wellBehaved)
	g := openGroup(t, GroupConfig{ForceTCP: true}, f)
	g.mustAnswer(t, "warm.example.", observe.TCP)
	p := g.servers[0].stream.pool.(*streamPool)

	// A connection without a reader.
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	ours, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	theirs, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer theirs.Close()
	now := time.Now()
	conn := newStreamConn(p, now)
	conn.conn, conn.ready = ours, now
	if conn.raw, err = ours.(syscall.Conn).SyscallConn(); err != nil {
		t.Fatal(err)
	}
	q, err := newQuestion(ask("late.example."))
	if err != nil {
		t.Fatal(err)
	}
	late := &call{path: p.path, q: q, wire: q.wire, start: now.Add(-time.Second), expire: now.Add(time.Minute)}
	choose := func() *streamConn {
		p.mu.Lock()
		defer p.mu.Unlock()
		return p.choose(&call{path: p.path, q: q, wire: q.wire, start: now})
	}

	p.mu.Lock()
	for _, other := range p.conns {
		other.retire()
	}
	p.conns = append(p.conns, conn)
	conn.add(late)
	p.mu.Unlock()
	defer func() {
		p.mu.Lock()
		defer p.mu.Unlock()
		conn.take(late.slot, now)
		conn.shut()
	}()

	if _, err := theirs.Write([]byte{0}); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the octet is there", conn.unread)
	if choose() != conn {
		t.Error("another connection was opened though the answer is here")
	}
	if _, err := ours.Read(make([]byte, 1)); err != nil {
		t.Fatal(err)
	}
	if choose() == conn {
		t.Error("a connection that owes an answer got another question")
	}
}
