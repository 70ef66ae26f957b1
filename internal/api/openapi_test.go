package api

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"
)

// TestOpenAPI checks that each answer matches the description, that each field is described, and that exactly the
// described parameters are accepted.
func TestOpenAPI(t *testing.T) {
	h := world(t, directory()).Handler(nil)
	var d struct {
		OpenAPI string
		Paths   map[string]map[string]struct {
			Parameters []struct {
				Name, In string
				Schema   map[string]any
			}
			Responses map[string]struct {
				Content map[string]struct{ Schema map[string]any }
			}
		}
		Components struct{ Schemas map[string]any }
	}
	get(t, h, "/openapi.json", 200, &d)
	if !strings.HasPrefix(d.OpenAPI, "3.1") || len(d.Paths) != len(all())+2 {
		t.Fatalf("%d paths are described of %d, the overview and its stream", len(d.Paths), len(all()))
	}
	samples := map[string]string{
		"window": "start", "limit": "5", "namespace": "shop", "pod": "shop/web-1", "name": "example.org", "rcode": "NOERROR",
		"minDuration": "1ms", "since": "1h", "continue": cursor{1 << 62, "x"}.String(),
	}
	v := validator{schemas: d.Components.Schemas}
	for path, methods := range d.Paths {
		if len(methods) != 1 {
			t.Errorf("%s: %d methods", path, len(methods))
		}
		get1 := methods["get"]
		if path == streamPath {
			continue // it does not end: TestStreamDescribed
		}
		target := strings.NewReplacer("{namespace}", "shop", "{name}", "web-1", "{client}", "host").Replace(path)
		schema := get1.Responses["200"].Content["application/json"].Schema
		check := func(target string, want int, schema map[string]any) {
			t.Helper()
			var body any
			get(t, h, target, want, &body)
			for _, e := range v.check(schema, body, target) {
				t.Error(e)
			}
		}
		check(target, 200, schema)
		described := []string{}
		for _, p := range get1.Parameters {
			if p.In != "query" {
				continue
			}
			described = append(described, p.Name)
			value := samples[p.Name]
			if words, ok := p.Schema["enum"].([]any); ok {
				for _, w := range words {
					check(target+"?"+p.Name+"="+fmt.Sprint(w), 200, schema)
				}
				continue
			}
			check(target+"?"+p.Name+"="+value, 200, schema)
		}
		for name := range samples {
			if !slices.Contains(described, name) {
				check(target+"?"+name+"=1", 400, get1.Responses["default"].Content["application/json"].Schema)
			}
		}
	}
}

// TestValidator: the test above can fail.
func TestValidator(t *testing.T) {
	v := validator{schemas: map[string]any{}}
	object := map[string]any{"type": "object", "required": []any{"a"}, "additionalProperties": false, "properties": map[string]any{"a": map[string]any{"type": "integer"}}}
	for _, body := range []any{nil, map[string]any{}, map[string]any{"a": "x"}, map[string]any{"a": 1.5}, map[string]any{"a": 1.0, "b": 1.0}} {
		if len(v.check(object, body, "")) == 0 {
			t.Errorf("%v is found to be right", body)
		}
	}
	if e := v.check(object, map[string]any{"a": 1.0}, ""); len(e) > 0 {
		t.Error(e)
	}
}

// validator checks values against the part of JSON Schema that the description uses.
type validator struct{ schemas map[string]any }

func (v *validator) check(schema map[string]any, value any, at string) (wrong []string) {
	if ref, ok := schema["$ref"].(string); ok {
		s, known := v.schemas[strings.TrimPrefix(ref, "#/components/schemas/")].(map[string]any)
		if !known {
			return []string{at + ": " + ref + " is not described"}
		}
		return v.check(s, value, at)
	}
	say := func(format string, args ...any) { wrong = append(wrong, at+": "+fmt.Sprintf(format, args...)) }
	if words, ok := schema["enum"].([]any); ok && !slices.Contains(words, value) {
		say("%v is none of %v", value, words)
	}
	switch schema["type"] {
	case "object":
		object, ok := value.(map[string]any)
		if !ok {
			say("%T is no object", value)
			return wrong
		}
		properties, _ := schema["properties"].(map[string]any)
		required, _ := schema["required"].([]any)
		for _, name := range required {
			if _, there := object[name.(string)]; !there {
				say("%v is missing", name)
			}
		}
		for name, member := range object {
			if p, known := properties[name].(map[string]any); known {
				wrong = append(wrong, v.check(p, member, at+"."+name)...)
			} else if more, ok := schema["additionalProperties"].(map[string]any); ok {
				wrong = append(wrong, v.check(more, member, at+"."+name)...)
			} else if schema["additionalProperties"] == false {
				say("%s is not described", name)
			}
		}
	case "array":
		list, ok := value.([]any)
		if !ok {
			say("%T is no array", value)
		}
		for i, item := range list {
			wrong = append(wrong, v.check(schema["items"].(map[string]any), item, fmt.Sprintf("%s[%d]", at, i))...)
		}
	case "string":
		s, ok := value.(string)
		if !ok {
			say("%T is no string", value)
		}
		if schema["format"] == "date-time" {
			if _, err := time.Parse(time.RFC3339Nano, s); err != nil {
				say("%v", err)
			}
		}
	case "integer":
		if n, ok := value.(float64); !ok || n != float64(int64(n)) {
			say("%v is no integer", value)
		}
	case "number":
		if _, ok := value.(float64); !ok {
			say("%v is no number", value)
		}
	case "boolean":
		if _, ok := value.(bool); !ok {
			say("%v is no boolean", value)
		}
	default:
		say("the type %v is not one that the description uses", schema["type"])
	}
	return wrong
}

// FuzzParameters checks that any parameters are parsed within their bounds or refused with a complete error.
func FuzzParameters(f *testing.F) {
	for _, s := range []string{
		"window=5m&by=queries&limit=10", "continue=" + cursor{5, "a/b"}.String(), "name=%00%ff", "since=1h&minDuration=1.5s", "rcode=3&outcome=timeout&pod=a%2Fb", "limit=-1", "a=b;c=d", "since=2006-01-02T15:04:05.999999999Z",
	} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, raw string) {
		for _, e := range all() {
			p, bad := parse(raw, &e)
			if bad != nil {
				if b, err := json.Marshal(bad); err != nil || bad.Code != 400 || bad.Message == "" || bad.Hint == "" || len(b) > 8<<10 {
					t.Errorf("%q: %+v, %v", raw, bad, err)
				}
				continue
			}
			if p.limit < 1 || p.limit > maxLimit || p.minDuration < 0 || len(p.pod) > maxValue || len(p.name) > maxValue+1 {
				t.Errorf("%q: %+v", raw, p)
			}
		}
	})
}

// FuzzCursor: a place that was read is written the same.
func FuzzCursor(f *testing.F) {
	f.Add("", int64(0))
	f.Add("a/b c", int64(-5))
	f.Fuzz(func(t *testing.T, key string, value int64) {
		c := cursor{value, key}
		if got, ok := parseCursor(c.String()); !ok || got != c {
			t.Errorf("%+v became %+v", c, got)
		}
		_, _ = parseCursor(key)
	})
}
