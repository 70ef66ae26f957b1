package api

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"sync"
	"time"

	"localcache.dev/localcache/internal/observe"
)

const (
	streamPath = "/api/v1/stream"
	// maxStreams of a server, over all its listeners. Each takes a connection of its listener's for as long as
	// somebody looks at the page.
	maxStreams = 8
	// streamEvery is the distance of two events. A snapshot is made for each, whoever looks on.
	streamEvery = 2 * time.Second
	// eventTimeout is for a client to take an event.
	eventTimeout = 5 * time.Second
	// recheckEvery so many events it is looked whether the client may still ask: a token can be taken back.
	recheckEvery = 5
)

// streams are the streams of events that are open. All are told the same at the same moments, and what they are told
// is made once. The zero value is ready.
type streams struct {
	every, timeout time.Duration // streamEvery and eventTimeout where they are 0

	mu   sync.Mutex
	open int
	made map[streamKind]streamEvent
}

// streamKind is what events differ in.
type streamKind struct {
	window observe.Window
	names  bool   // of clients and of what they asked for
	hidden string // why there are none
}

type streamEvent struct {
	tick int64
	data []byte
}

func (t *streams) interval() time.Duration {
	if t.every > 0 {
		return t.every
	}
	return streamEvery
}

func (t *streams) deadline() time.Duration {
	if t.timeout > 0 {
		return t.timeout
	}
	return eventTimeout
}

// enter is false where there are enough.
func (t *streams) enter() bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.open >= maxStreams {
		return false
	}
	t.open++
	return true
}

func (t *streams) leave() {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.open--; t.open == 0 {
		t.made = nil
	}
}

// event is what is told at a tick. Who comes first makes it, the others wait for that.
func (s *Server) event(kind streamKind, tick int64) ([]byte, error) {
	t := &s.streams
	t.mu.Lock()
	defer t.mu.Unlock()
	if e, ok := t.made[kind]; ok && e.tick == tick {
		return e.data, nil
	}
	for k, e := range t.made {
		if e.tick != tick {
			delete(t.made, k)
		}
	}
	var b bytes.Buffer
	b.WriteString("event: overview\ndata: ")
	encoder := json.NewEncoder(&b)
	encoder.SetEscapeHTML(false)
	if err := encoder.Encode(s.overviewList(kind)); err != nil { // it ends the line
		return nil, err
	}
	b.WriteByte('\n')
	if t.made == nil {
		t.made = map[streamKind]streamEvent{}
	}
	t.made[kind] = streamEvent{tick, b.Bytes()}
	return b.Bytes(), nil
}

// stream tells a client what the page's overview shows, as server-sent events
// (https://html.spec.whatwg.org/multipage/server-sent-events.html), until it goes, does not read, may not ask any
// more, or the listener closes.
func (s *Server) stream(w http.ResponseWriter, r *http.Request, access Access) {
	p, bad := parse(r.URL.RawQuery, &endpoint{params: overviewParams, window: observe.Last5m})
	if bad != nil {
		s.fail(w, streamPath, bad)
		return
	}
	t := &s.streams
	if !t.enter() {
		w.Header().Set("Retry-After", "10")
		s.fail(w, streamPath, &Error{Code: http.StatusServiceUnavailable, Reason: "Busy", Message: fmt.Sprintf("%d streams are open, which is the most", maxStreams),
			Hint: "close another page, or ask " + overviewPath + " now and then"})
		return
	}
	defer t.leave()
	c := http.NewResponseController(w)
	// The deadlines of the server are for a request that is being read, and for an answer that ends.
	if err := c.SetReadDeadline(time.Time{}); err != nil {
		s.fail(w, streamPath, &Error{Code: http.StatusInternalServerError, Reason: "Internal", Message: "the answer cannot be a stream here", Hint: "ask " + overviewPath})
		return
	}
	s.count.add(streamPath, http.StatusOK)
	w.Header().Set("Content-Type", "text/event-stream")
	w.Header().Set("X-Accel-Buffering", "no") // for proxies that would collect events
	send := func(data []byte) bool {
		err := c.SetWriteDeadline(time.Now().Add(t.deadline()))
		if err == nil {
			_, err = w.Write(data)
		}
		if err == nil {
			err = c.Flush()
		}
		return err == nil // else the client went away or does not read: it may come again
	}
	if !send(fmt.Appendf(nil, ": one event each %v\nretry: %d\n\n", t.interval(), t.interval().Milliseconds())) || r.Method == http.MethodHead {
		return
	}
	s.tell(r, access, p.window, send)
}

// tell sends an event at each tick. Ticks are the same for all streams.
func (s *Server) tell(r *http.Request, access Access, window observe.Window, send func([]byte) bool) {
	every := s.streams.interval()
	kind := kindFor(r, access, window)
	for n := 1; ; n++ {
		now := time.Now()
		tick := now.UnixNano() / int64(every)
		data, err := s.event(kind, tick)
		if err != nil || !send(data) {
			return
		}
		next := time.NewTimer(time.Duration((tick+1)*int64(every) - now.UnixNano()))
		select {
		case <-next.C:
		case <-r.Context().Done():
			next.Stop()
			return
		case <-closing(r.Context()):
			next.Stop()
			send([]byte("event: end\ndata: the server ends\n\n"))
			return
		}
		if access != nil && n%recheckEvery == 0 {
			if e := access.check(r, RoleAggregates); e != nil {
				send([]byte("event: end\ndata: access was taken back\n\n"))
				return
			}
			kind = kindFor(r, access, window)
		}
	}
}

// kindFor is what a client may see.
func kindFor(r *http.Request, access Access, window observe.Window) streamKind {
	kind := streamKind{window: window, names: true}
	if access != nil {
		if e := access.check(r, RoleNames); e != nil {
			kind.names, kind.hidden = false, e.Message
		}
	}
	return kind
}

// describeStream is the stream in terms of OpenAPI, which knows no type for the events of one.
func describeStream(failure map[string]any) map[string]any {
	const text = "the overview again and again, as server-sent events of the type overview; an event end says that it ends"
	p := overviewParams[0]
	return map[string]any{"get": map[string]any{
		"summary": text, "operationId": operation(streamPath), "x-role": RoleAggregates.String(),
		"parameters": []any{map[string]any{"name": p.name, "in": "query", "description": p.text, "schema": p.schema}},
		"responses": map[string]any{
			"200":     map[string]any{"description": text, "content": map[string]any{"text/event-stream": map[string]any{"schema": map[string]any{"type": "string"}}}},
			"default": failure,
		},
	}}
}

type closingKey struct{}

// withClosing returns the context of a listener's requests, which tells those that never end by themselves that the
// listener closes. Others go on: they have a second.
func withClosing(ctx context.Context, closing <-chan struct{}) context.Context {
	return context.WithValue(ctx, closingKey{}, closing)
}

// closing is nil, which is for ever, where there is no listener.
func closing(ctx context.Context) <-chan struct{} {
	c, _ := ctx.Value(closingKey{}).(<-chan struct{})
	return c
}
