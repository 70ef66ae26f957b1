package corefile

import (
	"bytes"
	"context"
	"time"
)

// maxReported bounds the memory of problems that were reported since the last good state. An edited ConfigMap causes
// a few; beyond this number they are forgotten and may be reported again.
const maxReported = 64

// Load returns what to serve now: the name for messages (the path of the Corefile, or "stdin") and the content, which
// the caller owns. With a template it writes the rendered file first, if its content changed.
//
// Until the first success every error is returned. After that Load does not fail: it returns the last good content,
// and the problem goes to Options.OnError.
func (s *Source) Load() (name string, content []byte, err error) {
	s.mu.Lock()
	err = s.refresh()
	content = bytes.Clone(s.good)
	s.mu.Unlock()
	s.deliver()
	if err != nil {
		return s.name, nil, err
	}
	return s.name, content, nil
}

// Watch loads at every Options.Interval and calls Options.OnChange when the content to serve differs
// from that of the first successful Load, then from that of its last call. It returns when ctx ends.
// One Watch at a time is enough.
func (s *Source) Watch(ctx context.Context) {
	ticker := time.NewTicker(s.opt.Interval)
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
			s.look()
		}
	}
}

// look is one tick of Watch.
func (s *Source) look() {
	s.mu.Lock()
	// There is an error only before the first success, and the caller of Load gets it; nothing can have changed then.
	_ = s.refresh()
	changed := s.notified != s.generation
	s.notified = s.generation
	s.mu.Unlock()
	s.deliver()
	if changed && s.opt.OnChange != nil {
		s.opt.OnChange()
	}
}

// refresh brings s.good up to date. It fails only as long as there was no success; s.mu is held.
func (s *Source) refresh() error {
	content, err := s.build()
	if err != nil {
		if !s.loaded {
			return err
		}
		s.report(err)
		return nil
	}
	if len(s.reported) > 0 {
		clear(s.reported)
		if s.opt.OnRecovered != nil {
			s.events = append(s.events, s.opt.OnRecovered)
		}
	}
	if s.loaded && !bytes.Equal(content, s.good) {
		s.generation++
	}
	s.good, s.loaded = content, true
	return nil
}

// build reads, renders and, with a template, writes.
func (s *Source) build() ([]byte, error) {
	in, err := s.read()
	if err != nil {
		return nil, err
	}
	content, err := s.opt.render(in)
	if err != nil || s.rendered == "" {
		return content, err
	}
	return content, publish(s.rendered, s.template, content)
}

// report lets OnError know of err, once.
func (s *Source) report(err error) {
	msg := err.Error()
	if s.reported[msg] {
		return
	}
	if len(s.reported) >= maxReported {
		clear(s.reported)
	}
	s.reported[msg] = true
	if s.opt.OnError != nil {
		s.events = append(s.events, func() { s.opt.OnError(err) })
	}
}

// deliver calls the callbacks that are due, in order and without holding s.mu, so that they may call Load. If another
// goroutine is delivering, that one delivers these too.
func (s *Source) deliver() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.delivering {
		return
	}
	s.delivering = true
	for len(s.events) > 0 {
		event := s.events[0]
		s.events = s.events[1:]
		s.mu.Unlock()
		event()
		s.mu.Lock()
	}
	s.delivering = false
}
