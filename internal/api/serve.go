package api

import (
	"context"
	"errors"
	"log"
	"net"
	"net/http"
	"slices"
	"sync"
	"time"
)

const (
	// maxConnections of one listener: others wait in its queue.
	maxConnections = 32
	// headerTimeout and the bounds below fit a request of two lines; an answer of a full state is a few megabytes.
	headerTimeout = 3 * time.Second
	writeTimeout  = 15 * time.Second
	idleTimeout   = 30 * time.Second
	maxHeader     = 8 << 10
	// closeTimeout is for requests that are being answered.
	closeTimeout = time.Second
)

// Listening is a listener that is being served.
type Listening struct {
	server *http.Server
	forget func()
	end    func() // ends long-running requests
	done   chan struct{}
}

// Serve serves ln and closes it at the end; access decides about requests. name is shown in Status as the listening
// address.
func (s *Server) Serve(ln net.Listener, access Access, name string, logger Logger) *Listening {
	admits := access
	if admits == nil {
		// The file mode guards the unix socket, but not if somebody forwards it to a port: then other sites may
		// direct a browser there.
		admits = Open()
	}
	closing := make(chan struct{})
	l := &Listening{end: sync.OnceFunc(func() { close(closing) }), done: make(chan struct{}), server: &http.Server{
		Handler:           s.Handler(admits),
		BaseContext:       func(net.Listener) context.Context { return withClosing(context.Background(), closing) },
		ReadHeaderTimeout: headerTimeout, ReadTimeout: headerTimeout, WriteTimeout: writeTimeout, IdleTimeout: idleTimeout,
		MaxHeaderBytes: maxHeader,
		ErrorLog:       log.New(discard{}, "", 0), // errors of clients, which may be frequent
	}}
	if access != nil {
		name += " (" + access.String() + ")"
	}
	s.listening.Store(l, name)
	l.forget = func() { s.listening.Delete(l) }
	go func() {
		defer close(l.done)
		if err := l.server.Serve(&limited{Listener: ln, free: make(chan struct{}, maxConnections), closed: make(chan struct{})}); !errors.Is(err, http.ErrServerClosed) {
			logger.Warningf("%s is not served any more: %v", name, err)
		}
	}()
	return l
}

// Close ends it: streams at once, other requests under way have a second.
func (l *Listening) Close() {
	l.forget()
	l.end()
	ctx, cancel := context.WithTimeout(context.Background(), closeTimeout)
	defer cancel()
	if l.server.Shutdown(ctx) != nil {
		_ = l.server.Close() // of a listener that is closed by now
	}
	<-l.done
}

// Close frees the last snapshot. Listeners are closed separately.
func (s *Server) Close() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.drop != nil {
		s.drop.Stop()
	}
	s.latest, s.drop = nil, nil
}

// listeners lists where the server listens.
func (s *Server) listeners() []string {
	list := []string{}
	s.listening.Range(func(_, name any) bool {
		list = append(list, name.(string))
		return true
	})
	slices.Sort(list)
	return list
}

type discard struct{}

func (discard) Write(b []byte) (int, error) { return len(b), nil }

// limited accepts as many connections as may be open at a time.
type limited struct {
	net.Listener
	free   chan struct{}
	once   sync.Once
	closed chan struct{}
}

func (l *limited) Accept() (net.Conn, error) {
	select {
	case l.free <- struct{}{}:
	case <-l.closed:
		return nil, net.ErrClosed
	}
	c, err := l.Listener.Accept()
	if err != nil {
		<-l.free
		return nil, err
	}
	return &limitedConn{Conn: c, release: sync.OnceFunc(func() { <-l.free })}, nil
}

func (l *limited) Close() error {
	l.once.Do(func() { close(l.closed) })
	return l.Listener.Close()
}

type limitedConn struct {
	net.Conn
	release func()
}

func (c *limitedConn) Close() error {
	defer c.release()
	return c.Conn.Close()
}

// requestCounts counts answers by endpoint and status: both are few.
type requestCounts struct {
	mu sync.Mutex
	n  map[RequestKind]uint64
}

// RequestKind is the key by which answers are counted.
type RequestKind struct {
	Path string // of the endpoint, not of the request; "other" where there is none
	Code int    // HTTP status
}

func (c *requestCounts) add(path string, code int) {
	if path == "" {
		path = "other"
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.n == nil {
		c.n = map[RequestKind]uint64{}
	}
	c.n[RequestKind{path, code}]++
}

// Requests counts the answers since the start.
func (s *Server) Requests() map[RequestKind]uint64 {
	s.count.mu.Lock()
	defer s.count.mu.Unlock()
	n := make(map[RequestKind]uint64, len(s.count.n))
	for k, v := range s.count.n {
		n[k] = v
	}
	return n
}
