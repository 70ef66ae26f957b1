package api

import (
	"bytes"
	"encoding/json"
	"fmt"
	"net/http"
	"time"
)

const (
	// maxUnsent is how many bytes of large answers may wait for slow clients: four of the largest. Beyond that,
	// clients are asked to come again.
	maxUnsent = 16 << 20
	// smallAnswer is the size up to which an answer is always kept: the number of connections bounds these.
	smallAnswer = 64 << 10
	// chunk bytes of an answer must be accepted within stallTimeout. A large answer to a slow client takes at most
	// writeTimeout.
	chunk        = 64 << 10
	stallTimeout = 3 * time.Second
)

// sizeKind are answers that are about as long: of an endpoint, with limits of as many binary digits.
type sizeKind struct {
	path   string // empty for errors
	digits int
}

// encode writes v as JSON. Items of a list are written one by one, so that memory is needed for one at a time besides
// the text itself, which is expected to be as long as the last answer of the kind.
func (s *Server) encode(kind sizeKind, code int, v any) ([]byte, int) {
	size := 0
	if last, known := s.sizes.Load(kind); known {
		size = last.(int) + last.(int)/16
	}
	body := bytes.NewBuffer(make([]byte, 0, size))
	encoder := json.NewEncoder(body)
	encoder.SetEscapeHTML(false)
	var err error
	if l, ok := v.(interface {
		encodeTo(*bytes.Buffer, *json.Encoder) error
	}); ok {
		err = l.encodeTo(body, encoder)
	} else {
		err = encoder.Encode(v)
	}
	if err != nil {
		body.Reset()
		fmt.Fprintf(body, `{"apiVersion":%q,"kind":"Error","error":{"code":500,"reason":"Internal","message":"the answer cannot be written","hint":"report this"}}`, Version)
		return body.Bytes(), http.StatusInternalServerError
	}
	if kind.path != "" {
		s.sizes.Store(kind, body.Len())
	}
	if body.Cap() > 2*body.Len()+smallAnswer {
		// The last one was much longer. Only what waits for the client should be counted.
		return bytes.Clone(body.Bytes()), code
	}
	return body.Bytes(), code
}

// encodeTo writes the output of encoding/json, with line ends between the items.
func (l List[T]) encodeTo(body *bytes.Buffer, encoder *json.Encoder) error {
	items := l.Items
	l.Items = []T{}
	if err := encoder.Encode(l); err != nil {
		return err
	}
	if len(items) == 0 {
		return nil
	}
	body.Truncate(body.Len() - len("]}\n")) // items are the last member
	for i := range items {
		if i > 0 {
			body.WriteByte(',')
		}
		if err := encoder.Encode(&items[i]); err != nil {
			return err
		}
	}
	body.WriteString("]}\n")
	return nil
}

// send writes an answer. A client that does not read is disconnected; one that left is no error.
func (s *Server) send(w http.ResponseWriter, path string, code int, body []byte) {
	if n := int64(len(body)); n > smallAnswer {
		if s.unsent.Add(n) > s.room {
			s.unsent.Add(-n)
			w.Header().Set("Retry-After", "3")
			s.fail(w, path, &Error{Code: http.StatusServiceUnavailable, Reason: "Busy", Message: "too many large answers wait for clients that read slowly", Hint: "ask again in some seconds, or for less by limit"})
			return
		}
		defer s.unsent.Add(-n)
	}
	s.count.add(path, code)
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Content-Length", fmt.Sprint(len(body)))
	w.WriteHeader(code)
	c := http.NewResponseController(w)
	end := time.Now().Add(s.whole)
	for len(body) > 0 {
		deadline := time.Now().Add(s.stall)
		if deadline.After(end) {
			deadline = end
		}
		// Not each ResponseWriter has deadlines; a connection that has gone fails at the next write.
		_ = c.SetWriteDeadline(deadline)
		n, err := w.Write(body[:min(len(body), chunk)])
		if err != nil {
			return
		}
		body = body[n:]
	}
}
