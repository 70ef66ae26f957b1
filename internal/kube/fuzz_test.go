package kube

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"strings"
	"testing"
	"testing/iotest"
)

const sampleSlice = `{"metadata":{"namespace":"kube-system","name":"a","uid":"u","resourceVersion":"5","labels":{"k":"v"}},"addressType":"IPv4","endpoints":[{"addresses":["10.0.0.1"],"conditions":{"ready":true}}],"ports":[{"name":"dns","protocol":"UDP","port":53}]}`

// For any input, a list is complete or an error, and the chunking of the bytes makes no difference.
func FuzzReadList(f *testing.F) {
	f.Add([]byte(`{"kind":"EndpointSliceList","metadata":{"resourceVersion":"9","continue":"x"},"items":[` + sampleSlice + `,` + sampleSlice + `]}`))
	f.Add([]byte(`{"items":null,"metadata":{"resourceVersion":"9"}}`))
	f.Add([]byte(`{"items":[`))
	f.Add([]byte(`[{}]`))
	f.Add([]byte(``))
	f.Fuzz(func(t *testing.T, data []byte) {
		read := func(r io.Reader) (listMeta, []string, error) {
			var objects []string
			meta, err := readList(r, func(raw json.RawMessage) error {
				if !json.Valid(raw) {
					t.Fatalf("an object that is no JSON: %q", raw)
				}
				objects = append(objects, string(raw))
				return nil
			})
			return meta, objects, err
		}
		meta, objects, err := read(bytes.NewReader(data))
		slow, again, slowErr := read(iotest.OneByteReader(bytes.NewReader(data)))
		if (err == nil) != (slowErr == nil) || meta != slow || strings.Join(objects, "\n") != strings.Join(again, "\n") {
			t.Fatalf("%v, %v, %v at once and %v, %v, %v octet by octet", meta, len(objects), err, slow, len(again), slowErr)
		}
		if err == nil && meta.ResourceVersion == "" {
			t.Fatal("a list without a version")
		}
		if errors.Is(err, io.EOF) {
			t.Fatalf("%v: an end in the middle is taken for an end", err)
		}
	})
}

// For any input of a watch, the known records are bounded, and the reader ends.
func FuzzWatch(f *testing.F) {
	f.Add([]byte(`{"type":"ADDED","object":` + sampleSlice + `}` + "\n" + `{"type":"BOOKMARK","object":{"metadata":{"resourceVersion":"6"}}}{"type":"DELETED","object":` + sampleSlice + `}`))
	f.Add([]byte(`{"type":"ERROR","object":{"code":410,"reason":"Expired","message":"too old"}}`))
	f.Add([]byte(`{"type":"MODIFIED","object":null}`))
	f.Add([]byte("\x00{"))
	f.Fuzz(func(t *testing.T, data []byte) {
		w := NewClient(Config{}).WatchEndpoints(kubeDNS, "n1", &testLog{})
		r := w.reflect
		r.records, r.most = map[string]slice{}, 2
		stream := newEvents(bytes.NewReader(data))
		for {
			ev, err := stream.next()
			if err == nil {
				err = r.take(ev)
			}
			if err != nil {
				break
			}
			if r.version == "" {
				t.Fatal("an event without a version was taken")
			}
		}
		if e, _ := w.Endpoints(); len(r.records) > 2 || len(e.UDP) > 2*MaxEndpoints || len(e.TCP) > 2*MaxEndpoints {
			t.Fatalf("%d records, %+v", len(r.records), e)
		}
		for _, s := range r.records {
			for _, ep := range s.endpoints {
				if !usable(ep.addr) {
					t.Fatalf("endpoint %v", ep.addr)
				}
			}
		}
	})
}

func FuzzDecodePod(f *testing.F) {
	f.Add([]byte(`{"metadata":{"namespace":"a","name":"web-1-x","uid":"u","labels":{"pod-template-hash":"1"},"ownerReferences":[{"kind":"ReplicaSet","name":"web-1","controller":true}]},"spec":{"hostNetwork":true},"status":{"phase":"Running","podIPs":[{"ip":"10.0.0.1"}]}}`))
	f.Add([]byte(`null`))
	f.Fuzz(func(t *testing.T, data []byte) {
		m, p, err := decodePod(data)
		if err != nil {
			return
		}
		if m.Name != p.Name || len(p.IPs) > maxPodIPs {
			t.Fatalf("%+v %+v", m, p)
		}
		for _, a := range p.IPs {
			if !a.IsValid() || a.Is4In6() {
				t.Fatalf("address %v", a)
			}
		}
	})
}

// For any body of an error, its message is one line of bounded length.
func FuzzStatus(f *testing.F) {
	f.Add(403, "", []byte(`{"code":1,"reason":"Forbidden","message":"no\nno","details":{"retryAfterSeconds":3,"causes":[{"reason":"ResourceVersionTooLarge"}]}}`))
	f.Add(429, "7", []byte(`<html>`))
	f.Fuzz(func(t *testing.T, code int, after string, body []byte) {
		resp := &http.Response{StatusCode: code, Header: http.Header{"Retry-After": {after}}, Body: io.NopCloser(bytes.NewReader(body))}
		e := readStatus(resp, "list", resource{name: "pods", version: "v1"})
		if e.Code != code || e.RetryAfter < 0 || e.RetryAfter > maxRetryAfter {
			t.Fatalf("%+v", e)
		}
		if text := e.Error(); strings.ContainsAny(text, "\n\r\x00") || len(text) > 4*maxMessage {
			t.Fatalf("%q", text)
		}
	})
}
