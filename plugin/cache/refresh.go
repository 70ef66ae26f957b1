package cache

import (
	"context"
	"runtime/debug"
	"time"

	"github.com/coredns/coredns/plugin"
	"github.com/coredns/coredns/plugin/metadata"
	"github.com/coredns/coredns/plugin/metrics/vars"
	"github.com/coredns/coredns/plugin/pkg/response"
	"github.com/miekg/dns"

	"localcache.dev/localcache/internal/answers"
)

// refresh fetches e anew, in the background. One that is stale stays if nothing better comes.
func (c *Cache) refresh(ctx context.Context, e *entry, r *dns.Msg, q *answers.Question, now time.Time, counted *series) {
	stale, recheck := e.Left(now) <= 0, time.Duration(0)
	used := now
	if stale {
		recheck = c.config.Stale.Recheck
		// As in CoreDNS: uses of a stale answer do not count, and the last one before them is taken to be when its TTL ended.
		used = now.Add(time.Duration(e.Left(now)) * time.Second)
	}
	if !e.beginRefresh(now, recheck) {
		return
	}
	counted.prefetches.Inc()
	c.refreshing.Add(1)
	// Its handlers set metadata of their own.
	k := &keeper{cache: c, counted: counted, ctx: metadata.ContextWithMetadata(ctx), question: *q, ad: true, silent: true}
	req := k.ask(r)
	go func() {
		defer c.refreshing.Add(-1)
		refreshed := true
		if stale {
			v := verifier{keeper: k}
			_, _ = c.ask(k.ctx, &v, req)
			refreshed = v.refreshed
		} else {
			_, _ = c.ask(k.ctx, k, req)
		}
		if refreshed {
			c.carryOver(e, &k.question, used)
		}
		e.endRefresh(c.now(), recheck, refreshed)
	}()
}

// ask has the handlers behind c answer, in a goroutine of the cache's own: there is no server's around it that would
// keep the process alive after a panic.
func (c *Cache) ask(ctx context.Context, w dns.ResponseWriter, req *dns.Msg) (rcode int, err error) {
	defer func() {
		if p := recover(); p != nil {
			vars.Panic.Inc()
			log.Errorf("A refresh panicked: %v\n%s", p, debug.Stack())
			rcode = dns.RcodeServerFailure
		}
	}()
	return plugin.NextOrFailure(c.Name(), c.Next, ctx, w, req)
}

// carryOver has the new entry count on from the old one's uses, the last of which was at used.
func (c *Cache) carryOver(old *entry, q *answers.Question, used time.Time) {
	key := c.key(q)
	for _, store := range [...]int{negatives, positives} {
		if e := c.entry(store, key, q); e != nil {
			e.SetUses(old.Uses(), used)
			return
		}
	}
}

// verify asks for e anew, which is stale, before it is given. It is done when the client has its reply: what was fetched.
func (c *Cache) verify(ctx context.Context, w dns.ResponseWriter, r *dns.Msg, e *entry, q *answers.Question, now time.Time, counted *series) (done bool, rcode int, err error) {
	s := &c.config.Stale
	if s.refreshesOnce() && !e.beginRefresh(now, s.Recheck) {
		return false, 0, nil
	}
	v := verifier{keeper: &keeper{ResponseWriter: w, cache: c, counted: counted, ctx: ctx, question: *q, ad: r.AuthenticatedData}}
	if s.VerifyTimeout > 0 {
		return c.verifyInTime(r, e, &v)
	}
	if s.refreshesOnce() {
		defer func() { e.endRefresh(c.now(), s.Recheck, v.refreshed) }() // also after a panic, which is the server's
	}
	rcode, err = plugin.NextOrFailure(c.Name(), c.Next, ctx, &v, v.ask(r))
	return v.refreshed, rcode, err
}

// verifyInTime gives up waiting after the timeout. What comes later is kept.
func (c *Cache) verifyInTime(r *dns.Msg, e *entry, v *verifier) (done bool, rcode int, err error) {
	s := &c.config.Stale
	client := v.ctx
	v.ctx = metadata.ContextWithMetadata(client) // which others read meanwhile
	for label, f := range metadata.ValueFuncs(client) {
		metadata.SetValueFunc(v.ctx, label, f)
	}
	v.silent = true
	w, req := v.ResponseWriter, v.ask(r)
	ended := make(chan struct{})
	c.refreshing.Add(1)
	go func() {
		defer c.refreshing.Add(-1)
		defer close(ended)
		rcode, err := c.ask(v.ctx, v, req)
		v.rcode, v.err = rcode, err
		e.endRefresh(c.now(), s.Recheck, v.refreshed)
	}()
	timer := time.NewTimer(s.VerifyTimeout)
	defer timer.Stop()
	select {
	case <-timer.C:
		return false, 0, nil
	case <-ended:
	}
	if !v.refreshed {
		return false, 0, nil
	}
	reply := v.last
	switch {
	case v.kept != nil:
		ttl := c.ttl(v.kept, v.kept.Left(c.now()))
		if reply, err = v.kept.reply(r, ttl, v.question.DO || v.ad); err != nil {
			return false, 0, err
		}
	case reply == nil:
		return true, v.rcode, v.err
	}
	if err := w.WriteMsg(reply); err != nil {
		return true, dns.RcodeServerFailure, err
	}
	return true, dns.RcodeSuccess, nil
}

// verifier keeps, and sends, only what is better than a stale answer (RFC 8767, section 4): a whole response that is
// NOERROR or NXDOMAIN. Where positive answers are preferred it has to answer the question, and others are kept beside
// the stale one.
type verifier struct {
	*keeper
	refreshed bool // by the last message

	rcode int // the handlers', for verifyInTime
	err   error
}

// WriteMsg implements dns.ResponseWriter.
func (v *verifier) WriteMsg(res *dns.Msg) error {
	v.refreshed, v.last, v.kept = false, nil, nil
	if res == nil || res.Truncated || !v.matches(res) {
		return nil
	}
	kind := kindOf(res, v.cache.now())
	if v.cache.config.Stale.PreferPositive {
		if kind == response.NoError && answers.Answered(res) {
			v.refreshed = true
			return v.keeper.WriteMsg(res)
		}
		silent := v.silent
		v.silent = true
		err := v.keeper.WriteMsg(res)
		v.silent = silent
		return err
	}
	if kind == response.OtherError || kind == response.Meta || kind == response.Update ||
		res.Rcode != dns.RcodeSuccess && res.Rcode != dns.RcodeNameError {
		return nil
	}
	v.refreshed = true
	return v.keeper.WriteMsg(res)
}
