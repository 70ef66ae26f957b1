package corefile

import (
	"errors"
	"slices"
)

// inputs are the bytes that a Corefile is made of, read at one moment.
type inputs struct {
	file      string // where template was read
	template  []byte
	dir       string // of the kube-dns ConfigMap; empty without one
	stubs     []byte // nil if there is no such key
	upstreams []byte
}

// render returns the Corefile made of in. The lines of the template keep their numbers; the blocks of stub domains
// follow them. Without placeholders and stub domains the template stays unchanged.
func (o *Options) render(in inputs) ([]byte, error) {
	k, kubeErr := o.parseKubeDNS(in.dir, in.stubs, in.upstreams)
	if kubeErr != nil {
		k = &kubeDNS{} // to go on and find the template's problems too
	}
	tokens, _ := scan(in.template)
	edits, err := o.expand(in.file, findPlaces(in.template, tokens), k.upstreams)
	if err := errors.Join(kubeErr, err); err != nil {
		return nil, err
	}
	if len(k.upstreams) > 0 {
		edits = append(edits, dropForceTCP(tokens)...)
	}
	return o.appendStubs(in.file, applyEdits(in.template, edits), k)
}

// edit replaces the octets [start, end) of a source. Neither side contains a line break.
type edit struct {
	start, end int
	text       string
}

// applyEdits returns src with the edits, which must not overlap.
func applyEdits(src []byte, edits []edit) []byte {
	if len(edits) == 0 {
		return src
	}
	slices.SortFunc(edits, func(a, b edit) int { return a.start - b.start })
	out := make([]byte, 0, len(src)+64*len(edits))
	at := 0
	for _, e := range edits {
		out = append(append(out, src[at:e.start]...), e.text...)
		at = e.end
	}
	return append(out, src[at:]...)
}
