package api

import (
	"fmt"
	"reflect"
	"strings"
	"time"
)

// openAPI returns the description of the endpoints (https://spec.openapis.org/oas/v3.1.0), made from the code that
// serves them.
func openAPI(version string) map[string]any {
	schemas := map[string]any{}
	metadata := schemaOf(reflect.TypeFor[Metadata](), schemas)
	failure := map[string]any{"description": "what is wrong with the request, with a hint", "content": content(schemaOf(reflect.TypeFor[ErrorBody](), schemas))}
	paths := map[string]any{}
	for _, e := range append(all(), overviewEndpoint(nil)) {
		var params []any
		for _, name := range pathParameters(e.path) {
			params = append(params, map[string]any{"name": name, "in": "path", "required": true, "schema": map[string]any{"type": "string"}})
		}
		for _, p := range e.params {
			params = append(params, map[string]any{"name": p.name, "in": "query", "description": p.text, "schema": p.schema})
		}
		answer := map[string]any{"type": "object"}
		if e.item != nil {
			answer = map[string]any{
				"type": "object", "required": []string{"apiVersion", "kind", "metadata", "items"}, "additionalProperties": false,
				"properties": map[string]any{
					"apiVersion": map[string]any{"type": "string", "enum": []string{Version}},
					"kind":       map[string]any{"type": "string", "enum": []string{e.kind}},
					"metadata":   metadata,
					"items":      map[string]any{"type": "array", "items": schemaOf(e.item, schemas)},
				},
			}
		}
		get := map[string]any{
			"summary": e.text, "operationId": operation(e.path), "x-role": e.role.String(),
			"responses": map[string]any{"200": map[string]any{"description": e.text, "content": content(answer)}, "default": failure},
		}
		if params != nil {
			get["parameters"] = params
		}
		paths[e.path] = map[string]any{"get": get}
	}
	paths[streamPath] = describeStream(failure)
	return map[string]any{
		"openapi": "3.1.0",
		"info":    map[string]any{"title": "localcache diagnostics", "version": Version, "x-program-version": version},
		"paths":   paths,
		"components": map[string]any{
			"schemas":         schemas,
			"securitySchemes": map[string]any{"token": map[string]any{"type": "http", "scheme": "bearer"}},
		},
		// No security on the unix socket and where access is open.
		"security": []any{map[string]any{"token": []string{}}, map[string]any{}},
	}
}

func content(schema map[string]any) map[string]any {
	return map[string]any{"application/json": map[string]any{"schema": schema}}
}

func pathParameters(path string) (names []string) {
	for part := range strings.SplitSeq(path, "/") {
		if name, ok := strings.CutPrefix(part, "{"); ok {
			names = append(names, strings.TrimSuffix(name, "}"))
		}
	}
	return names
}

// operation is an identifier for generators of clients.
func operation(path string) string {
	words := strings.FieldsFunc(path, func(r rune) bool { return strings.ContainsRune("/{}.", r) })
	return "get_" + strings.Join(words, "_")
}

// schemaOf describes a type as encoding/json writes it. Structs go to schemas by name.
func schemaOf(t reflect.Type, schemas map[string]any) map[string]any {
	switch {
	case t == reflect.TypeFor[time.Time]():
		return map[string]any{"type": "string", "format": "date-time"}
	case t.Kind() == reflect.Pointer:
		return schemaOf(t.Elem(), schemas)
	case t.Kind() == reflect.Slice:
		return map[string]any{"type": "array", "items": schemaOf(t.Elem(), schemas)}
	case t.Kind() == reflect.Map:
		return map[string]any{"type": "object", "additionalProperties": schemaOf(t.Elem(), schemas)}
	case t.Kind() == reflect.Struct:
		ref := map[string]any{"$ref": "#/components/schemas/" + t.Name()}
		if _, known := schemas[t.Name()]; known {
			return ref
		}
		properties, required := map[string]any{}, []string{}
		schemas[t.Name()] = map[string]any{} // for a type that contains itself
		for _, f := range reflect.VisibleFields(t) {
			name, options, _ := strings.Cut(f.Tag.Get("json"), ",")
			if f.Anonymous || !f.IsExported() {
				continue // its fields are visible, or it is not written
			}
			properties[name] = schemaOf(f.Type, schemas)
			if options != "omitempty" {
				required = append(required, name)
			}
		}
		schemas[t.Name()] = map[string]any{"type": "object", "properties": properties, "required": required, "additionalProperties": false}
		return ref
	case t.Kind() == reflect.String:
		return map[string]any{"type": "string"}
	case t.Kind() == reflect.Bool:
		return map[string]any{"type": "boolean"}
	case t.Kind() == reflect.Float64:
		return map[string]any{"type": "number"}
	case t.Kind() >= reflect.Int && t.Kind() <= reflect.Uint64:
		return map[string]any{"type": "integer"}
	}
	panic(fmt.Sprintf("no schema for %v", t)) // each test that asks for the description finds it
}
