package api

import (
	"encoding/base64"
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	"localcache.dev/localcache/internal/observe"
)

const (
	maxQuery     = 2048 // bytes of all parameters
	maxValue     = 512  // bytes of one: a name in presentation format with at most half of its bytes escaped
	defaultLimit = 100
	maxLimit     = MaxLimit
	maxAge       = 1000 * time.Hour
)

// MaxLimit is the most that the parameter limit can be: more than there can be clients on a node that Kubernetes supports.
const MaxLimit = 2048

// parameter describes a parameter of a request.
type parameter struct {
	name, text string
	schema     map[string]any // of OpenAPI
	set        func(p *params, v string) error
}

// params are the parameters of a request.
type params struct {
	window      observe.Window
	by          string
	limit       int
	after       *cursor
	namespace   string
	pod         string // NAMESPACE/NAME, an address, host
	name        string
	rcode       string
	outcome     string
	minDuration time.Duration
	since       time.Time
}

var windows = []string{"10s", "1m", "5m", "1h", "start"}

func enum(words ...string) map[string]any { return map[string]any{"type": "string", "enum": words} }

func text(most int) map[string]any { return map[string]any{"type": "string", "maxLength": most} }

// windowParameter lets one of words be chosen.
func windowParameter(words ...string) parameter {
	return parameter{"window", "the time that is looked at, up to now", enum(words...), func(p *params, v string) error {
		if !slices.Contains(words, v) {
			return fmt.Errorf("accepted are %s", strings.Join(words, ", "))
		}
		p.window = observe.Window(slices.Index(windows, v))
		return nil
	}}
}

func byParameter(words ...string) parameter {
	return parameter{"by", "the order; the first is the default", enum(words...), func(p *params, v string) error {
		if !slices.Contains(words, v) {
			return fmt.Errorf("accepted are %s", strings.Join(words, ", "))
		}
		p.by = v
		return nil
	}}
}

var (
	limitParameter = parameter{"limit", fmt.Sprintf("most items of an answer, %d without it", defaultLimit), map[string]any{"type": "integer", "minimum": 1, "maximum": maxLimit},
		func(p *params, v string) error {
			n, err := strconv.Atoi(v)
			if err != nil || n < 1 || n > maxLimit {
				return fmt.Errorf("accepted are numbers from 1 to %d", maxLimit)
			}
			p.limit = n
			return nil
		}}
	continueParameter = parameter{"continue", "metadata.continue of the answer before, with the same other parameters", text(maxValue),
		func(p *params, v string) error {
			c, ok := parseCursor(v)
			if !ok {
				return fmt.Errorf("it is not what an answer's metadata.continue said")
			}
			p.after = &c
			return nil
		}}
	namespaceParameter = parameter{"namespace", "only pods of this namespace", text(63), func(p *params, v string) error {
		if len(v) > 63 || v == "" {
			return fmt.Errorf("a namespace has 1 to 63 characters")
		}
		p.namespace = v
		return nil
	}}
	podParameter = parameter{"pod", "only this client: NAMESPACE/NAME, an IP address, host or ~other", text(maxValue), func(p *params, v string) error {
		if v == "" {
			return fmt.Errorf("accepted are NAMESPACE/NAME, an IP address, host and ~other")
		}
		p.pod = v
		return nil
	}}
	nameParameter = parameter{"name", "only this domain name and those below it", text(maxValue), func(p *params, v string) error {
		if v == "" {
			return fmt.Errorf("a domain name is expected, such as example.org")
		}
		if err := checkName(v); err != nil {
			return err
		}
		if !strings.HasSuffix(v, ".") {
			v += "."
		}
		p.name = strings.ToLower(v)
		return nil
	}}
	rcodeParameter = parameter{"rcode", "only this RCODE: NXDOMAIN, SERVFAIL, …, a number, or NOREPLY", text(16), func(p *params, v string) error {
		if n, err := strconv.ParseUint(v, 10, 12); err == nil {
			p.rcode = rcodeText(int(n))
			return nil
		}
		v = strings.ToUpper(v)
		if !knownRcode(v) {
			return fmt.Errorf("accepted are NOERROR, FORMERR, SERVFAIL, NXDOMAIN, NOTIMP, REFUSED, …, a number, and NOREPLY")
		}
		p.rcode = v
		return nil
	}}
	outcomeParameter = parameter{"outcome", "only queries with an exchange, or events, that ended so", enum(outcomes()...), func(p *params, v string) error {
		if !slices.Contains(outcomes(), v) {
			return fmt.Errorf("accepted are %s", strings.Join(outcomes(), ", "))
		}
		p.outcome = v
		return nil
	}}
	minDurationParameter = parameter{"minDuration", "only what took at least so long, such as 100ms", text(32), func(p *params, v string) error {
		d, err := time.ParseDuration(v)
		if err != nil || d < 0 || d > maxAge {
			return fmt.Errorf("accepted are durations such as 100ms or 1.5s")
		}
		p.minDuration = d
		return nil
	}}
	sinceParameter = parameter{"since", "only what came after that: a time in RFC 3339, or a duration before now such as 5m", text(64), func(p *params, v string) error {
		if d, err := time.ParseDuration(v); err == nil && d >= 0 && d <= maxAge {
			p.since = time.Now().Add(-d)
			return nil
		}
		t, err := time.Parse(time.RFC3339Nano, v)
		if err != nil {
			return fmt.Errorf("accepted are times such as 2006-01-02T15:04:05Z and durations such as 5m")
		}
		p.since = t
		return nil
	}}
)

func outcomes() []string {
	list := make([]string, observe.NumOutcomes)
	for o := range list {
		list[o] = observe.Outcome(o).String()
	}
	return list
}

// CheckParameter returns an error unless a GET of path accepts this value of the parameter. The error says what is
// accepted.
func CheckParameter(path, name, value string) error {
	e := endpointOf(path)
	if e == nil {
		return fmt.Errorf("there is nothing at %s", cut(path))
	}
	for _, q := range e.params {
		if q.name == name && len(value) > maxValue {
			return fmt.Errorf("accepted are at most %d bytes", maxValue)
		}
		if q.name == name {
			return q.set(new(params), value)
		}
	}
	return fmt.Errorf("it is not for %s, which takes %s", path, e.parameterNames())
}

// checkName returns an error unless v is a domain name in presentation format (RFC 1035, section 5.1). Any characters
// are allowed in a label.
func checkName(v string) error {
	whole, label := 1, 0 // bytes on the wire
	for i := 0; v != "." && i < len(v); i++ {
		switch v[i] {
		case '.':
			if label == 0 {
				return fmt.Errorf("a label is empty: a domain name is expected, such as example.org")
			}
			label = 0
			continue
		case '\\':
			if digits := v[i+1:]; len(digits) >= 3 && strings.Trim(digits[:3], "0123456789") == "" {
				i += 3
			} else if i++; i == len(v) {
				return fmt.Errorf("a backslash is at its end")
			}
		}
		if label == 0 {
			whole++
		}
		label++
		whole++
		if label > 63 || whole > 255 {
			return fmt.Errorf("a label has at most 63 bytes, and a domain name 255")
		}
	}
	return nil
}

// parse reads the parameters of a request for e. Unknown ones are refused: a misspelt filter must not look like one
// that matches everything.
func parse(raw string, e *endpoint) (*params, *Error) {
	wrong := func(name, message, hint string) *Error {
		return &Error{Code: http.StatusBadRequest, Reason: "BadParameter", Message: fmt.Sprintf("parameter %s: %s", cut(name), message), Hint: hint}
	}
	p := &params{window: e.window, limit: defaultLimit}
	values, err := url.ParseQuery(raw)
	if err != nil {
		return nil, &Error{Code: http.StatusBadRequest, Reason: "BadParameter", Message: "the parameters cannot be read", Hint: "they are name=value, joined by &, with other bytes as %XX"}
	}
	names := make([]string, 0, len(values))
	for name := range values {
		names = append(names, name)
	}
	slices.Sort(names) // the same request gets the same error
	for _, name := range names {
		i := slices.IndexFunc(e.params, func(q parameter) bool { return q.name == name })
		switch {
		case i < 0:
			return nil, wrong(name, "there is no such parameter here", "there are: "+e.parameterNames())
		case len(values[name]) > 1:
			return nil, wrong(name, "it is there more than once", "one value counts")
		case len(values[name][0]) > maxValue:
			return nil, wrong(name, "it is too long", fmt.Sprintf("at most %d bytes are read", maxValue))
		}
		if err := e.params[i].set(p, values[name][0]); err != nil {
			return nil, wrong(name, fmt.Sprintf("%q is not possible", cut(values[name][0])), err.Error())
		}
	}
	if p.by == "" {
		p.by = e.by
	}
	return p, nil
}

// cut bounds a part of a request that is repeated in an answer.
func cut(s string) string {
	if len(s) > 64 {
		return s[:64] + "…"
	}
	return s
}

// cursor is the place of an item in its list: lists are sorted by falling value, then by key.
type cursor struct {
	value int64
	key   string
}

func (c cursor) String() string {
	return base64.RawURLEncoding.EncodeToString([]byte(strconv.FormatInt(c.value, 36) + "/" + c.key))
}

func parseCursor(s string) (cursor, bool) {
	raw, err := base64.RawURLEncoding.Strict().DecodeString(s)
	if err != nil {
		return cursor{}, false
	}
	value, key, ok := strings.Cut(string(raw), "/")
	n, err := strconv.ParseInt(value, 36, 64)
	return cursor{n, key}, ok && err == nil
}

func (c cursor) compare(o cursor) int {
	switch {
	case c.value > o.value:
		return -1
	case c.value < o.value:
		return 1
	}
	return strings.Compare(c.key, o.key)
}

// page sorts items and returns those that the request asks for. at is an item's place; no two have the same.
func page[T any](items []T, at func(*T) cursor, p *params) (list []T, next string) {
	type placed struct {
		place cursor
		index int
	}
	order := make([]placed, 0, len(items))
	for i := range items {
		place := at(&items[i])
		if p.after == nil || place.compare(*p.after) > 0 {
			order = append(order, placed{place, i})
		}
	}
	slices.SortStableFunc(order, func(a, b placed) int { return a.place.compare(b.place) })
	n := min(len(order), p.limit)
	list = make([]T, n)
	for i := range list {
		list[i] = items[order[i].index]
	}
	if n < len(order) {
		next = order[n-1].place.String()
	}
	return list, next
}
