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
	// maxStreams is the most streams of a server, over all its listeners. Each holds a connection of its listener for
	// as long as the page is open.
	maxStreams = 8
	// streamEvery is the time between two events. One snapshot is made for each, for all streams.
	streamEvery = 2 * time.Second
	// eventTimeout is for a client to take an event.
	eventTimeout = 5 * time.Second
	// recheckEvery is the number of events after which the access of a client is checked again: a token can be
	// withdrawn.
	recheckEvery = 5
)

// streams holds the open streams of events. All get the same events at the same moments, and each event is made once.
// The zero value is ready to use.
type streams struct {
	every, timeout time.Duration // 0 means streamEvery and eventTimeout

	mu   sync.Mutex
	open int
	made map[streamKind]streamEvent
}

// streamKind is what distinguishes events.
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

// enter returns false at the limit.
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

// event returns the event of a tick. The first stream makes it, the others wait for it.
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

// stream sends a client the page's overview as server-sent events
// (https://html.spec.whatwg.org/multipage/server-sent-events.html), until it leaves, does not read, loses access, or
// the listener closes.
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
		return err == nil // otherwise the client left or does not read: it may come again
	}
	if !send(fmt.Appendf(nil, ": one event each %v\nretry: %d\n\n", t.interval(), t.interval().Milliseconds())) || r.Method == http.MethodHead {
		return
	}
	s.sendEvents(r, access, p.window, send)
}

// sendEvents sends an event at each tick. Ticks are the same for all streams.
func (s *Server) sendEvents(r *http.Request, access Access, window observe.Window, send func([]byte) bool) {
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

// kindFor returns what a client may see.
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

// withClosing returns the context of a listener's requests, which tells endless requests that the listener closes.
// Other requests finish: they have a second.
func withClosing(ctx context.Context, closing <-chan struct{}) context.Context {
	return context.WithValue(ctx, closingKey{}, closing)
}

// closing returns nil, which blocks for ever, if there is no listener.
func closing(ctx context.Context) <-chan struct{} {
	c, _ := ctx.Value(closingKey{}).(<-chan struct{})
	return c
}
