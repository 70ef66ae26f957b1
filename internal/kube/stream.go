package kube

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
)

const (
	// maxObject bounds one object of a list or watch, in octets of JSON. etcd accepts at most 1.5 MiB in its own,
	// denser form (--max-request-bytes).
	maxObject = 4 << 20
	// maxList bounds one page of a list.
	maxList = 64 << 20
)

// errTooLarge reports that a response has more octets than any requested data can have.
var errTooLarge = errors.New("the API server sent more than an answer can have")

// errNotAPI says that an answer is no JSON, or not that of a list or watch.
var errNotAPI = errors.New("the API server's answer is not what was asked for")

func notAPI(format string, v ...any) error {
	return fmt.Errorf("%w: %w", errNotAPI, fmt.Errorf(format, v...))
}

// broken interprets an error of a decoder: a stream that ends or breaks differs from one with unexpected content.
func broken(err error) error {
	var syntax *json.SyntaxError
	var kind *json.UnmarshalTypeError
	switch {
	case err == nil:
		return nil
	case errors.Is(err, io.EOF):
		return io.ErrUnexpectedEOF
	case errors.As(err, &kind):
		return notAPI("%s in place of %s", kind.Value, kind.Field) // the original text names Go types
	case errors.As(err, &syntax):
		return notAPI("%w", err)
	}
	return err
}

// meter bounds what is read between two calls of next, and in total if total is not 0.
type meter struct {
	r     io.Reader
	left  int64
	total int64
}

func newMeter(r io.Reader, total int64) *meter { return &meter{r: r, left: maxObject, total: total} }

// next begins another object. What the decoder has read ahead counts for the previous one.
func (m *meter) next() { m.left = maxObject }

func (m *meter) Read(p []byte) (int, error) {
	if m.left <= 0 || m.total < 0 {
		return 0, errTooLarge
	}
	if int64(len(p)) > m.left {
		p = p[:m.left]
	}
	n, err := m.r.Read(p)
	m.left -= int64(n)
	if m.total > 0 {
		if m.total -= int64(n); m.total == 0 {
			m.total = -1
		}
	}
	return n, err
}

// objectMeta is meta/v1 ObjectMeta, as far as it is read.
type objectMeta struct {
	Namespace       string            `json:"namespace"`
	Name            string            `json:"name"`
	UID             string            `json:"uid"`
	ResourceVersion string            `json:"resourceVersion"`
	Labels          map[string]string `json:"labels"`
	OwnerReferences []ownerReference  `json:"ownerReferences"`
}

type ownerReference struct {
	Kind       string `json:"kind"`
	Name       string `json:"name"`
	Controller *bool  `json:"controller"`
}

// key is the object's name among those of its kind.
func (m objectMeta) key() string { return m.Namespace + "/" + m.Name }

// listMeta is meta/v1 ListMeta, as far as it is read.
type listMeta struct {
	ResourceVersion string `json:"resourceVersion"`
	Continue        string `json:"continue"`
}

// readList reads one page of a list and passes each object to each, which must not keep it. Objects are decoded one
// at a time: a list is never completely in memory.
func readList(r io.Reader, each func(object json.RawMessage) error) (listMeta, error) {
	var meta listMeta
	m := newMeter(r, maxList)
	dec := json.NewDecoder(m)
	if err := wantDelim(dec, '{'); err != nil {
		return meta, err
	}
	for dec.More() {
		key, err := dec.Token()
		if err != nil {
			return meta, broken(err)
		}
		switch key {
		case "metadata":
			err = broken(dec.Decode(&meta))
		case "items":
			err = readItems(dec, m, each)
		default:
			var skipped json.RawMessage
			err = broken(dec.Decode(&skipped))
		}
		if err != nil {
			return meta, err
		}
		m.next()
	}
	if err := wantDelim(dec, '}'); err != nil {
		return meta, err
	}
	if meta.ResourceVersion == "" {
		return meta, notAPI("a list without resourceVersion")
	}
	return meta, nil
}

// readItems reads the array of a list; null is an empty one.
func readItems(dec *json.Decoder, m *meter, each func(json.RawMessage) error) error {
	open, err := dec.Token()
	if err != nil {
		return broken(err)
	}
	if open == nil {
		return nil
	}
	if open != json.Delim('[') {
		return notAPI("items is %v, not an array", open)
	}
	var object json.RawMessage
	for dec.More() {
		m.next()
		object = object[:0]
		if err := dec.Decode(&object); err != nil {
			return broken(err)
		}
		if err := each(object); err != nil {
			return err
		}
	}
	return wantDelim(dec, ']')
}

func wantDelim(dec *json.Decoder, want json.Delim) error {
	got, err := dec.Token()
	if err != nil {
		return broken(err)
	}
	if got != want {
		return notAPI("%v in place of %v", got, want)
	}
	return nil
}

// The types of a watch's events (meta/v1 WatchEvent).
const (
	eventAdded    = "ADDED"
	eventModified = "MODIFIED"
	eventDeleted  = "DELETED"
	eventBookmark = "BOOKMARK" // nothing but a newer resourceVersion to go on from
	eventError    = "ERROR"    // the object is a Status
)

// watchEvent is one event. Object belongs to the reader and is valid until the next event is read.
type watchEvent struct {
	Type   string          `json:"type"`
	Object json.RawMessage `json:"object"`
}

// events reads the stream of a watch.
type events struct {
	m   *meter
	dec *json.Decoder
	ev  watchEvent
}

func newEvents(r io.Reader) *events {
	m := newMeter(r, 0)
	return &events{m: m, dec: json.NewDecoder(m)}
}

// next reads an event. io.EOF is an end between two events, as the server makes it when the time is over.
func (e *events) next() (*watchEvent, error) {
	e.m.next()
	e.ev.Type, e.ev.Object = "", e.ev.Object[:0]
	err := e.dec.Decode(&e.ev)
	switch {
	case err == io.EOF: //nolint:errorlint // exactly io.EOF: a wrapped one comes from the connection
		return nil, io.EOF
	case err != nil:
		return nil, broken(err)
	}
	switch e.ev.Type {
	case eventAdded, eventModified, eventDeleted, eventBookmark, eventError:
		return &e.ev, nil
	}
	return nil, notAPI("an event of type %q", printable(e.ev.Type))
}

// statusOf reads the Status in an event of type ERROR.
func statusOf(object json.RawMessage, res resource) error {
	var s apiStatus
	if err := json.Unmarshal(object, &s); err != nil {
		return broken(err)
	}
	return s.err("watch", res)
}
