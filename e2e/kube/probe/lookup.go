package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"slices"
	"strings"
	"time"
)

// lookup answers each question, KIND:NAME, on a line of its own: the question, a tab, and the sorted answers
// with commas between them, "none" for a name that is not there, or "error" and why. libc/lookup.c does the same with
// the C library's resolver.
func lookup(questions []string) {
	for _, q := range questions {
		kind, name, _ := strings.Cut(q, ":")
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		answers, err := ask(ctx, kind, name)
		cancel()
		result := strings.Join(slices.Compact(slices.Sorted(slices.Values(answers))), ",")
		var failed *net.DNSError
		switch {
		case errors.As(err, &failed) && failed.IsNotFound:
			result = "none"
		case err != nil:
			result = "error " + err.Error()
		}
		fmt.Printf("%s\t%s\n", q, result)
	}
}

func ask(ctx context.Context, kind, name string) ([]string, error) {
	r := &net.Resolver{PreferGo: true}
	switch kind {
	case "resolver":
		server, err := nameserver("/etc/resolv.conf")
		return []string{server}, err
	case "host":
		return r.LookupHost(ctx, name)
	case "srv":
		_, records, err := r.LookupSRV(ctx, "", "", name)
		var answers []string
		for _, s := range records {
			answers = append(answers, fmt.Sprintf("%s:%d", s.Target, s.Port))
		}
		return answers, err
	case "ptr":
		return r.LookupAddr(ctx, name)
	case "txt":
		records, err := r.LookupTXT(ctx, name)
		// Long texts are only weighed.
		for i, s := range records {
			if len(s) > 100 {
				records[i] = fmt.Sprintf("%d bytes", len(s))
			}
		}
		return records, err
	}
	return nil, fmt.Errorf("no kind of question %q", kind)
}
