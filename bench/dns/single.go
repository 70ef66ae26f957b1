package main

import (
	"context"
	"time"

	"localcache.dev/localcache/bench/internal/load"
	"localcache.dev/localcache/bench/internal/report"
)

// settle is the pause before a server's memory is read: some return temporary memory only after seconds.
const settle = 4 * time.Second

// memory measures each server's memory, idle and with names in its cache. There are at most two rounds, because the
// figures hardly vary.
func (b *bench) memory(ctx context.Context, deadline time.Time) error {
	if err := b.upstream.setDelay(0); err != nil {
		return err
	}
	some, many := load.Services(report.SomeNames, false), load.Services(report.ManyNames, false)
	for round := range min(b.rounds, 2) {
		for _, c := range b.servers {
			if c.Absent != "" || c.Echo {
				continue
			}
			if round > 0 && time.Now().After(deadline) {
				b.progress("%s: the time is up", report.Memory)
				return nil
			}
			s, err := b.footprint(ctx, c, some, many)
			if ctx.Err() != nil {
				return ctx.Err()
			}
			if err != nil {
				b.skip(report.Memory, c.Name, err)
				continue
			}
			s.Round = round
			b.run.Samples = append(b.run.Samples, s)
			b.progressSample(s)
		}
	}
	return nil
}

// footprint measures one server.
func (b *bench) footprint(ctx context.Context, c *contender, some, many []load.Query) (s report.Sample, err error) {
	p, err := b.launch(ctx, c, false)
	if err != nil {
		return s, err
	}
	defer b.stopAll([]*process{p})
	if err := pause(ctx, settle); err != nil {
		return s, err
	}
	idle, err := p.memory()
	if err != nil {
		return s, err
	}
	s = report.Sample{Work: report.Memory, Server: c.Name, Quiet: true, Values: map[report.Metric]float64{
		report.IdleAnonymous: float64(idle.Anonymous), report.IdleFile: float64(idle.File),
	}}
	for _, fill := range []struct {
		queries []load.Query
		metric  report.Metric
	}{{some, report.Some}, {many, report.Many}} {
		if fill.metric == report.Many && b.quick {
			break
		}
		forgotten, err := b.prime(ctx, p, fill.queries)
		if err != nil {
			return s, err
		}
		if err := pause(ctx, settle); err != nil {
			return s, err
		}
		now, err := p.memory()
		if err != nil {
			return s, err
		}
		s.Values[fill.metric] = float64(now.Total())
		s.Values[report.Forgotten] = forgotten
		if fill.metric == report.Many {
			s.Values[report.Entry] = float64(now.Total()-idle.Total()) * 1024 / report.ManyNames
		}
	}
	return s, nil
}

// start measures the time to the first answer.
func (b *bench) start(ctx context.Context, deadline time.Time) error {
	if err := b.upstream.setDelay(0); err != nil {
		return err
	}
	for round := range b.rounds {
		for _, c := range b.servers {
			if c.Absent != "" || c.Echo {
				continue
			}
			if round > 0 && time.Now().After(deadline) {
				b.progress("%s: the time is up after %d rounds", report.Start, round)
				return nil
			}
			p, err := b.launch(ctx, c, false)
			if ctx.Err() != nil {
				b.stopAll([]*process{p})
				return ctx.Err()
			}
			if err != nil {
				b.skip(report.Start, c.Name, err)
				continue
			}
			b.stopAll([]*process{p})
			s := report.Sample{Work: report.Start, Server: c.Name, Round: round, Quiet: true, Values: map[report.Metric]float64{
				report.FirstAnswer: micros(p.firstAnswer) / 1e3, report.FirstCPU: micros(p.firstCPU) / 1e3,
			}}
			b.run.Samples = append(b.run.Samples, s)
			b.progressSample(s)
		}
	}
	return nil
}

// pause waits, but not longer than the run.
func pause(ctx context.Context, d time.Duration) error {
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(d):
		return nil
	}
}
