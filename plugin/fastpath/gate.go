package fastpath

import (
	"fmt"
	"reflect"
	"runtime"

	"github.com/coredns/coredns/plugin"
	"github.com/coredns/coredns/plugin/loadbalance"
)

// passes are the handlers that may stand before cache, by name. What each does to a hit is a function of the
// replay key: name, type, class, the flags RD, AD, CD and DO, and EDNS buffer size. Read in CoreDNS v1.15.0:
//
//	metadata   collects what other handlers ask for; nothing in a reply
//	cancel     gives the chain a deadline
//	nsid       acts on queries with an EDNS option, which are no plain queries
//	bufsize    lowers the buffer size, by a constant
//	shed       drops queries when the chain is too slow; a hit does not add to that
//	prometheus counts, and so do we
//	errors     logs errors, and a hit is none
//	local      answers fixed names by itself: they never come to cache
//	any        answers ANY by itself
//	loop       looks at its own HINFO questions
//
// loadbalance passes with its random policy only. dns64 is not here: it depends on the client's address family.
var passes = map[string]bool{
	"metadata": true, "cancel": true, "nsid": true, "bufsize": true, "shed": true, "prometheus": true,
	"errors": true, "local": true, "any": true, "loop": true, "forward_explain": true,
}

// admit is why h may not stand before the cache of a block that is replayed; empty where it may.
func (b *block) admit(h plugin.Handler) string {
	name := h.Name()
	switch {
	case passes[name]:
		return ""
	case name == "loadbalance":
		if !shufflesAtRandom(h) {
			return "its loadbalance has another policy than round_robin"
		}
		b.rotate = true
		return ""
	}
	return fmt.Sprintf("its handler %q stands before cache, and what that does may depend on more than the query", name)
}

// randomShuffle is the function behind loadbalance's policy round_robin.
const randomShuffle = "github.com/coredns/coredns/plugin/loadbalance.randomShuffle"

// shufflesAtRandom reads the unexported function of loadbalance: other policies, and preferred subnets on top of
// this one, are closures of another name.
func shufflesAtRandom(h plugin.Handler) bool {
	lb, ok := h.(loadbalance.LoadBalance)
	if !ok {
		return false
	}
	f := reflect.ValueOf(lb).FieldByName("shuffle")
	if !f.IsValid() || f.Kind() != reflect.Func || f.IsNil() {
		return false
	}
	fn := runtime.FuncForPC(f.Pointer())
	return fn != nil && fn.Name() == randomShuffle
}
