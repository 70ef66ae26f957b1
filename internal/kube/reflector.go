package kube

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"net/url"
	"strconv"
	"sync"
	"time"
)

// State is the state of a watch.
type State struct {
	Synced    bool      // the API server has answered with a whole list at least once
	Connected bool      // the server sends changes at this moment
	LastSync  time.Time // when it last said something: a list, a change, a bookmark, the begin of a watch
	Objects   int       // that are kept
	Dropped   uint64    // objects that were not kept, because there are more than the bound
	Failures  uint64    // attempts to list or watch that ended with an error
	LastError string    // of the last such attempt; "" while all is well
	Forbidden bool      // LastError is that of a right that is missing
}

// reflector keeps a map of records, one for each object of a resource, equal to the API server's.
//
// It lists once and then watches from the list's version on. A stream that ends or breaks is resumed: only a version
// that the server cannot continue from, or a response that makes no sense, costs another list. Known records stay
// until a newer response is complete.
type reflector[R any] struct {
	client *Client
	log    Logger
	res    resource
	most   int // objects kept
	// decode turns an object into its key and record. It must keep nothing of raw.
	decode func(raw []byte) (objectMeta, R, error)
	// changed is called with all records after each change, by the goroutine of run. It must not keep the map.
	changed func(map[string]R)

	// Only run's goroutine touches these.
	records map[string]R
	version string // to go on from; "" before the first list
	relist  bool   // no watch can go on from version
	newest  bool   // the next list must be of the newest version, whatever that costs the server
	heard   bool   // the server has said something new since the last failure
	fails   int    // in a row
	woe     string // kind of the failure that was logged last

	mu    sync.Mutex
	state State
}

// State is a snapshot, for any goroutine at any time.
func (r *reflector[R]) State() State {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.state
}

func (r *reflector[R]) update(f func(*State)) {
	r.mu.Lock()
	defer r.mu.Unlock()
	f(&r.state)
}

// lasting is how long a silent watch must have lasted to count as one that works.
const lasting = 10 * time.Second

// run lists and watches until ctx ends.
func (r *reflector[R]) run(ctx context.Context) {
	for ctx.Err() == nil {
		r.heard = false
		err := r.turn(ctx)
		r.update(func(s *State) { s.Connected = false })
		if ctx.Err() != nil {
			return
		}
		if r.heard {
			r.fails = 0
		}
		if err == nil && r.heard {
			continue // the time that the watch was asked for is up
		}
		r.fails++
		r.failed(err)
		timer := time.NewTimer(r.client.time.after(r.fails, err))
		select {
		case <-ctx.Done():
		case <-timer.C:
		}
		timer.Stop()
	}
}

// turn is a list where one is due, and a watch until it ends.
func (r *reflector[R]) turn(ctx context.Context) error {
	if r.version == "" || r.relist {
		if err := r.list(ctx); err != nil {
			return err
		}
	}
	return r.watch(ctx)
}

// failed records err and logs it if it is of another kind than the previous one. The texts of errors are not
// compared, because they differ in details such as a port.
func (r *reflector[R]) failed(err error) {
	if err == nil {
		return // a watch that the server ended at once; the backoff does the rest
	}
	kind := "connection"
	var status *StatusError
	var credentials *credentialsError
	switch {
	case errors.As(err, &credentials):
		kind = "credentials"
	case errors.As(err, &status):
		kind = strconv.Itoa(status.Code)
	case errors.Is(err, errNotAPI), errors.Is(err, errTooLarge):
		kind = "content"
	}
	r.update(func(s *State) {
		s.Failures++
		s.LastError = err.Error()
		s.Forbidden = status != nil && status.Code == http.StatusForbidden
	})
	if kind == r.woe {
		return
	}
	r.woe = kind
	consequence := "what is known stays in use"
	if !r.State().Synced {
		consequence = "nothing is known yet"
	}
	r.log.Warningf("%v; %s, trying again", err, consequence)
}

// answered notes that the server has said something.
func (r *reflector[R]) answered() {
	r.update(func(s *State) {
		s.LastSync = time.Now()
		s.LastError, s.Forbidden = "", false
		s.Objects = len(r.records)
	})
}

// maxSeen is the most objects in a list, as a multiple of those that are kept.
const maxSeen = 16

// page is the requested number of objects in a page of a list.
const page = 500

// list replaces the records by the server's objects.
//
// The first list accepts cached data of the server, which may be slightly old, because all nodes of a cluster may ask
// at once. A later one must not be older than what is known. The newest version, which costs the server a read in
// etcd, is requested only if the server cannot guarantee that.
func (r *reflector[R]) list(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, r.client.time.list)
	defer cancel()
	q := r.selectors()
	q.Set("limit", strconv.Itoa(page))
	switch {
	case r.newest:
	case r.version == "":
		q.Set("resourceVersion", "0")
	default:
		q.Set("resourceVersion", r.version)
		q.Set("resourceVersionMatch", "NotOlderThan")
	}
	records := make(map[string]R)
	var dropped, seen uint64
	for range 1 + r.most/page {
		meta, err := r.listPage(ctx, q, records, &dropped, &seen)
		if err != nil {
			var s *StatusError
			// A page can expire as well; then it is the list that cannot go on.
			r.newest = errors.As(err, &s) && s.stale()
			return err
		}
		if meta.Continue == "" {
			r.records, r.version, r.relist, r.newest = records, meta.ResourceVersion, false, false
			r.update(func(s *State) { s.Synced = true; s.Dropped += dropped })
			r.answered()
			r.changed(r.records)
			return nil
		}
		// The token holds the version too (https://kubernetes.io/docs/reference/using-api/api-concepts/#retrieving-large-results-sets-in-chunks).
		q.Del("resourceVersion")
		q.Del("resourceVersionMatch")
		q.Set("continue", meta.Continue)
	}
	return fmt.Errorf("list %s: %w: more than %d pages", r.res, errTooLarge, 1+r.most/page)
}

func (r *reflector[R]) listPage(ctx context.Context, q url.Values, into map[string]R, dropped, seen *uint64) (listMeta, error) {
	body, err := r.client.get(ctx, "list", r.res, q)
	if err != nil {
		return listMeta{}, err
	}
	defer body.Close()
	meta, err := readList(body, func(raw json.RawMessage) error {
		m, record, err := r.decode(raw)
		if err != nil {
			return broken(err)
		}
		if m.Name == "" {
			return notAPI("an object without a name")
		}
		if *seen++; *seen > uint64(maxSeen*r.most) {
			return fmt.Errorf("%w: more than %d objects", errTooLarge, maxSeen*r.most)
		}
		if _, there := into[m.key()]; !there && len(into) >= r.most {
			*dropped++
			return nil
		}
		into[m.key()] = record
		return nil
	})
	if err != nil {
		return meta, fmt.Errorf("list %s: %w", r.res, err)
	}
	return meta, nil
}

func (r *reflector[R]) selectors() url.Values {
	q := url.Values{}
	if r.res.labels != "" {
		q.Set("labelSelector", r.res.labels)
	}
	if r.res.fields != "" {
		q.Set("fieldSelector", r.res.fields)
	}
	return q
}

// watch follows changes until the stream ends. It returns nil for a regular end by the server.
func (r *reflector[R]) watch(ctx context.Context) error {
	// Each watch has a limited length, so that the nodes spread over the API servers again after one was away, and so
	// that a connection that is dead without notice does not stay for ever.
	length := r.client.time.watch + rand.N(r.client.time.watch)
	ctx, cancel := context.WithTimeout(ctx, length+r.client.time.watchGrace)
	defer cancel()
	q := r.selectors()
	q.Set("watch", "1")
	q.Set("allowWatchBookmarks", "true")
	q.Set("resourceVersion", r.version)
	q.Set("timeoutSeconds", strconv.Itoa(int(length.Seconds())))
	body, err := r.client.get(ctx, "watch", r.res, q)
	if err != nil {
		return r.ended(err)
	}
	defer body.Close()
	began := time.Now()
	r.answered()
	r.update(func(s *State) { s.Connected = true })
	if r.woe != "" {
		r.woe = ""
		r.log.Infof("watch %s: in order again", r.res)
	}
	stream := newEvents(body)
	for {
		ev, err := stream.next()
		if err == nil {
			err = r.take(ev)
		}
		switch {
		case err == nil:
			r.heard = true
			r.answered()
			continue
		case time.Since(began) >= min(lasting, length/2):
			r.heard = true
		}
		if err == io.EOF { //nolint:errorlint // exactly io.EOF: the server ended the stream
			return nil
		}
		return r.ended(fmt.Errorf("watch %s: %w", r.res, err))
	}
}

// ended decides what to do with the version after a watch ended with err.
func (r *reflector[R]) ended(err error) error {
	var s *StatusError
	if errors.As(err, &s) && s.stale() || errors.Is(err, errNotAPI) || errors.Is(err, errTooLarge) {
		r.relist = true
	}
	return err
}

// take applies one event.
func (r *reflector[R]) take(ev *watchEvent) error {
	if ev.Type == eventError {
		return statusOf(ev.Object, r.res)
	}
	meta, record, err := r.decode(ev.Object)
	if err != nil {
		return broken(err)
	}
	if meta.ResourceVersion == "" {
		return notAPI("an event of type %s without resourceVersion", ev.Type)
	}
	r.version = meta.ResourceVersion
	if ev.Type == eventBookmark {
		return nil
	}
	if meta.Name == "" {
		return notAPI("an event of type %s without a name", ev.Type)
	}
	_, there := r.records[meta.key()]
	switch {
	case ev.Type == eventDeleted:
		delete(r.records, meta.key())
	case !there && len(r.records) >= r.most:
		r.update(func(s *State) { s.Dropped++ })
		return nil
	default:
		r.records[meta.key()] = record
	}
	r.changed(r.records)
	return nil
}
