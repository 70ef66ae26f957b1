package apiclient

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/url"
	"strings"

	"localcache.dev/localcache/internal/api"
	"localcache.dev/localcache/internal/apiclient/render"
)

func newRawFlags(stdout, stderr io.Writer) *Command {
	return newRequestCommand("raw", stdout, stderr)
}

// RawHelp writes the help text of the subcommand raw.
func RawHelp(w io.Writer) {
	fmt.Fprint(w, `Print what the cache answers to a path of its API, as JSON in one line. Refusals are JSON too, of the kind Error.

Usage:
  localcache raw PATH[?PARAMETERS] [flags]

Examples:
  localcache raw /openapi.json                              what there is
  localcache raw '/api/v1/events?since=10m'
  localcache raw '/api/v1/summary?window=1h' --all-nodes    the sum of all nodes

The status is 0 with an answer, 1 without one or with a refusal, 2 where path or parameters are wrong.
`)
	printFlags(w, newRawFlags(io.Discard, io.Discard))
}

// Raw runs the subcommand raw and returns its exit status.
func Raw(args []string, stdout, stderr io.Writer) int {
	a := newRawFlags(stdout, stderr)
	rest, status, ok := a.parse(args, 1, RawHelp)
	if !ok {
		return status
	}
	if len(rest) == 0 {
		return a.usage("which path? /openapi.json tells what there is")
	}
	u, err := url.Parse(rest[0])
	if err != nil || u.Host != "" || !strings.HasPrefix(rest[0], "/") || u.Fragment != "" {
		return a.usage(fmt.Sprintf("%q is no path of the API, such as /api/v1/summary?window=1h", rest[0]))
	}
	query, err := url.ParseQuery(u.RawQuery)
	if err != nil {
		return a.usage(fmt.Sprintf("the parameters %q cannot be read: %v", u.RawQuery, err))
	}
	return a.Run(func(ctx context.Context) error {
		var v json.RawMessage
		document, err := a.Document(ctx, u.Path, query, &v)
		var refused *api.Error
		if errors.As(err, &refused) {
			// A program that reads the output gets the error there, in the form of the API.
			var wrong error
			document, wrong = json.Marshal(api.ErrorBody{APIVersion: api.Version, Kind: "Error", Error: *refused})
			err = errors.Join(err, wrong)
		}
		if len(document) > 0 {
			if e := render.PrintLine(a.stdout, document); e != nil {
				return errors.Join(err, e)
			}
		}
		return err
	})
}
