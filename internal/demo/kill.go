package demo

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"localcache.dev/localcache/internal/cli"
	"localcache.dev/localcache/internal/lab"
)

// The kill's timetable. One pod asks from one socket, the other from a fresh one for each query.
const (
	killQPS     = 1000
	beforeKill  = time.Second
	deadFor     = 1500 * time.Millisecond
	afterReturn = time.Second
	// settle is how long a query may take and still count for the phase in which it was sent.
	settle = 200 * time.Millisecond
	// patience is how long glibc's resolver waits for an answer (resolv.conf(5), timeout). A query without an answer
	// by then is lost.
	patience = 5 * time.Second
)

// kill kills localcache in the middle of a stream of queries, and starts it again.
func (d *demonstration) kill(ctx context.Context) error {
	d.title("SIGKILL in the middle of 2 x %d queries a second", killQPS)
	var streams []*lab.Streaming
	defer func() {
		_, _ = stopTogether(streams) // after an error, which is what matters
	}()
	for i, fresh := range []bool{false, true} {
		s, err := lab.Stream{From: d.lab.Pods[i], QPS: killQPS, Fresh: fresh, Timeout: patience}.Start()
		if err != nil {
			return err
		}
		streams = append(streams, s)
	}
	if err := pause(ctx, beforeKill); err != nil {
		return err
	}
	d.lab.ResetRecords()
	killed := time.Now()
	if err := d.node.program.Kill(); err != nil {
		return err
	}
	<-d.node.program.Done()
	dead := time.Now() // its sockets are closed
	if err := pause(ctx, deadFor); err != nil {
		return err
	}
	byFallback := d.lab.KubeDNSTotal(lab.UDP)
	restarted := time.Now()
	if _, err := d.node.start(ctx); err != nil {
		return err
	}
	back := time.Now()
	if err := pause(ctx, settle); err != nil {
		return err
	}
	settled := d.lab.KubeDNSTotal(lab.UDP)
	if err := pause(ctx, afterReturn); err != nil {
		return err
	}
	strays := d.lab.KubeDNSTotal(lab.UDP) - settled

	results, err := stopTogether(streams)
	streams = nil
	if err != nil {
		return err
	}
	row := func(what string, share func(lab.Samples) lab.Samples) []string {
		cells := []string{what}
		for _, ss := range results {
			s := share(ss)
			cells = append(cells, fmt.Sprintf("%d sent, %d lost", len(s), len(s.Lost())))
		}
		return cells
	}
	d.table([][]string{
		{"", "ONE SOCKET", "FRESH SOCKETS"},
		row("sent before", func(ss lab.Samples) lab.Samples {
			return ss.SentBefore(killed)[:len(ss.SentBefore(killed))-len(ss.InFlight(killed, patience))]
		}),
		row(fmt.Sprintf("in flight, or sent while it died (%v)", round(dead.Sub(killed))), func(ss lab.Samples) lab.Samples {
			return append(ss.InFlight(killed, patience), ss.SentAfter(killed).SentBefore(dead)...)
		}),
		row(fmt.Sprintf("sent after: dead, for %v", round(restarted.Sub(dead))), func(ss lab.Samples) lab.Samples { return ss.SentAfter(dead).SentBefore(restarted) }),
		row(fmt.Sprintf("sent after: starting, for %v", round(back.Sub(restarted))), func(ss lab.Samples) lab.Samples { return ss.SentAfter(restarted).SentBefore(back) }),
		row("sent after: back", func(ss lab.Samples) lab.Samples { return ss.SentAfter(back) }),
	})
	sent, lost, wrong, local := 0, 0, 0, 0
	for _, ss := range results {
		sent += len(ss.SentAfter(dead))
		local += len(ss.SentAfter(back)) - len(ss.SentAfter(back).Lost())
		lost += len(ss.SentAfter(dead).Lost())
		for rcode, n := range ss.Rcodes() {
			if rcode != 0 {
				wrong += n
			}
		}
	}
	d.promise(lost == 0 && sent > 0, "no query sent after the kill was lost: %d of %d", lost, sent)
	d.promise(wrong == 0, "no answer carried an error: %d did", wrong)
	d.promise(byFallback > 0, "while localcache was dead the kernel's fallback had kube-dns answer: %d queries over UDP", byFallback)
	d.promise(strays == 0 && local > 0, "after the restart localcache answered again: %d queries; %d still went to kube-dns over UDP", local, strays)
	return nil
}

// pause lets the streams run for a while.
func pause(ctx context.Context, d time.Duration) error {
	if !cli.WaitFor(ctx, d) {
		return ctx.Err()
	}
	return nil
}

// stopTogether stops streams that run side by side. Each waits for its last answers.
func stopTogether(streams []*lab.Streaming) ([]lab.Samples, error) {
	results, errs := make([]lab.Samples, len(streams)), make([]error, len(streams))
	var stopping sync.WaitGroup
	for i, s := range streams {
		stopping.Go(func() { results[i], errs[i] = s.Stop() })
	}
	stopping.Wait()
	return results, errors.Join(errs...)
}
