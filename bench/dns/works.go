package main

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"runtime"
	"time"

	"localcache.dev/localcache/bench/internal/load"
	"localcache.dev/localcache/bench/internal/machine"
	"localcache.dev/localcache/bench/internal/report"
	"localcache.dev/localcache/bench/internal/upstream"
)

// A sample is quiet if other programs use less than this share of the server's and of the generator's core. The
// kernel accounts for cores in ticks, which alone causes a few percent.
const (
	foreignServer    = 0.10
	foreignGenerator = 0.12
)

// hotNames are asked for in the works with hits, hotLookups in the mix.
const (
	hotNames   = 1000
	hotLookups = 200
)

// upstreamDelay is the delay of the upstream for missed names.
const upstreamDelay = time.Millisecond

// work is a load that runs against all servers in turns.
type work struct {
	name    report.Work
	length  time.Duration // of a sample
	rate    float64       // queries a second, 0 for as fast as they are answered
	window  int
	timeout time.Duration
	misses  bool // names reach the upstream: it needs the generator's core too, and echoes make no sense
	tcp     bool // the upstream is asked over TCP for all names
	// hot are the queries that are in the cache beforehand; source gives those of a sample.
	hot    func() []load.Query
	source func(*load.Serial, *rand.Rand) load.Source
}

func services() []load.Query { return load.Services(hotNames, true) }

func randomServices(_ *load.Serial, r *rand.Rand) load.Source {
	return &load.Random{Queries: services(), Rand: r}
}

// works are the loads by name.
func works(quick bool) map[report.Work]work {
	second := time.Second
	if quick {
		second /= 2
	}
	all := []work{
		{name: report.Hits, length: 2 * second, window: 128, timeout: time.Second, hot: services, source: randomServices},
		{name: report.Steady10k, length: 2 * second, rate: 10_000, window: 2048, timeout: time.Second, hot: services, source: randomServices},
		{name: report.Steady1k, length: 3 * second, rate: 1_000, window: 2048, timeout: time.Second, hot: services, source: randomServices},
		{
			name: report.Mix, length: 2 * second, window: 128, timeout: 3 * time.Second, misses: true,
			hot: func() []load.Query { return load.NewMix(hotLookups, 1, nil, nil).Hot() },
			source: func(s *load.Serial, r *rand.Rand) load.Source {
				return load.NewMix(hotLookups, 0.8, s, r)
			},
		},
		{
			name: report.Miss, length: 2 * second, window: 128, timeout: 3 * time.Second, misses: true, tcp: true,
			hot:    func() []load.Query { return nil },
			source: func(s *load.Serial, _ *rand.Rand) load.Source { return load.NewUnique(s) },
		},
	}
	m := map[report.Work]work{}
	for _, w := range all {
		m[w.name] = w
	}
	return m
}

// warm is how long a load runs before it counts.
const warm = 300 * time.Millisecond

// contend runs a work against all servers, in turns, until each has as many quiet samples as there are
// rounds, at most twice as many rounds. Past the deadline only the first of them is completed.
func (b *bench) contend(ctx context.Context, w work, deadline time.Time) error {
	if err := b.upstream.setDelay(0); err != nil {
		return err
	}
	running, err := b.launchAll(ctx, w)
	defer func() { b.stopAll(running) }()
	if err != nil {
		return err
	}
	if w.misses {
		if err := b.upstream.setDelay(upstreamDelay); err != nil {
			return err
		}
	}
	serial := &load.Serial{}
	quiet := map[string]int{}
	for round := 0; round < 2*b.rounds; round++ {
		for i := range running {
			// Each round begins with another server, so that no server is always the first.
			p := running[(i+round)%len(running)]
			if p == nil || round >= b.rounds && quiet[p.Name] >= b.rounds {
				continue
			}
			// One round is for all, or there is nothing to compare.
			if round > 0 && time.Now().After(deadline) {
				b.progress("%s: the time is up after %d rounds", w.name, round)
				return nil
			}
			s, err := b.sample(ctx, w, p, serial, round)
			if ctx.Err() != nil {
				return ctx.Err()
			}
			if err != nil {
				b.skip(w.name, p.Name, fmt.Errorf("%w; its log ends\n  %s", err, tail(p.log)))
				b.stopAll([]*process{p})
				running[(i+round)%len(running)] = nil
				continue
			}
			b.run.Samples = append(b.run.Samples, s)
			if s.Quiet {
				quiet[p.Name]++
			}
			b.progressSample(s)
		}
	}
	return nil
}

// launchAll starts all servers that can do a work, checks that they answer rightly and cache, and fills their
// caches. Those that fail are left out, with the reason in the report.
func (b *bench) launchAll(ctx context.Context, w work) ([]*process, error) {
	var running []*process
	for _, c := range b.servers {
		if c.Absent != "" || w.misses && c.Echo {
			continue
		}
		if w.tcp && c.noTCP {
			b.skip(w.name, c.Name, errors.New("cannot ask its upstream over TCP"))
			continue
		}
		p, err := b.ready(ctx, c, w)
		if ctx.Err() != nil {
			b.stopAll([]*process{p})
			return running, ctx.Err()
		}
		if err != nil {
			b.skip(w.name, c.Name, err)
			b.stopAll([]*process{p})
			continue
		}
		running = append(running, p)
	}
	return running, nil
}

// ready starts and checks one server. It may return a process together with an error.
func (b *bench) ready(ctx context.Context, c *contender, w work) (*process, error) {
	p, err := b.launch(ctx, c, w.tcp)
	if err != nil {
		return nil, err
	}
	if err := p.check(ctx); err != nil {
		return p, err
	}
	hot := w.hot()
	if len(hot) == 0 {
		hot = load.Services(100, true) // that it caches is checked all the same
	}
	forgotten, err := b.prime(ctx, p, hot)
	if err != nil {
		return p, err
	}
	if forgotten > 0.01 {
		return p, fmt.Errorf("does not cache: of %d queries it asked its upstream for %.0f %% again", len(hot), 100*forgotten)
	}
	return p, nil
}

// edge holds the readings at the start and the end of a sample.
type edge struct {
	server, generator, upstream time.Duration // CPU time
	switches                    machine.Switches
	cores                       map[int]machine.Core
	asked                       upstream.Counters
}

// edge reads it. The server's CPU time is read last at the start and first at the end, so that the reading
// of the others does not count.
func (b *bench) edge(p *process, start, asked bool) (e edge, err error) {
	server := func() error {
		var err error
		e.server, err = machine.CPUTime(p.pid())
		return err
	}
	others := func() error {
		var errs [5]error
		if asked {
			e.asked, errs[0] = b.upstream.counters()
		}
		e.switches, errs[1] = machine.SwitchesOf(p.pid())
		e.cores, errs[2] = machine.Cores()
		e.generator, errs[3] = machine.CPUTime(b.pid)
		e.upstream, errs[4] = machine.CPUTime(b.upstream.cmd.Process.Pid)
		return errors.Join(errs[:]...)
	}
	if start {
		return e, errors.Join(others(), server())
	}
	return e, errors.Join(server(), others())
}

// sample measures one server once.
func (b *bench) sample(ctx context.Context, w work, p *process, serial *load.Serial, round int) (report.Sample, error) {
	r := rand.New(rand.NewPCG(uint64(round), 1)) // the same queries for all servers of a round
	cfg := load.Config{
		Server: p.addr, Source: p.source(w.source(serial, r)),
		Window: w.window, Sockets: 8, Rate: w.rate, Warm: warm, Length: w.length, Timeout: w.timeout,
		Spin: !w.misses || b.cores.generator != b.cores.upstream,
	}
	var edges []edge
	var edgeErr error
	cfg.Edge = func() {
		e, err := b.edge(p, len(edges) == 0, w.misses)
		edges, edgeErr = append(edges, e), errors.Join(edgeErr, err)
	}
	runtime.GC() // it is off otherwise, and must not come in between
	res, err := load.Run(ctx, cfg)
	if err = errors.Join(err, edgeErr); err != nil {
		return report.Sample{}, err
	}
	if res.Answered == 0 {
		return report.Sample{}, fmt.Errorf("%s: none of %d queries was answered", p.Name, res.Sent)
	}
	first, last := edges[0], edges[1]
	wall, answers := res.Between.Seconds(), float64(res.Answered)
	cpu := last.server - first.server
	mine := last.generator - first.generator
	if b.cores.generator == b.cores.upstream {
		mine += last.upstream - first.upstream
	}
	s := report.Sample{Work: w.name, Server: p.Name, Round: round, Values: map[report.Metric]float64{
		report.CPU:           float64(cpu.Nanoseconds()) / 1e3 / answers,
		report.Rate:          answers / wall,
		report.P50:           micros(res.Latency.Quantile(0.5)),
		report.P99:           micros(res.Latency.Quantile(0.99)),
		report.Sent:          float64(res.Sent),
		report.Lost:          float64(res.Lost),
		report.Wrong:         float64(res.Wrong),
		report.WakeUps:       float64(last.switches.Voluntary-first.switches.Voluntary) / answers,
		report.ForeignServer: foreign(first, last, b.cores.server, cpu, wall),
		report.ForeignGen:    foreign(first, last, b.cores.generator, mine, wall),
	}}
	if w.misses {
		asked := last.asked.UDP + last.asked.TCP - first.asked.UDP - first.asked.TCP
		s.Values[report.Asked] = float64(asked) / answers
		s.Values[report.Connections] = float64(last.asked.Connections - first.asked.Connections)
	}
	s.Quiet = s.Values[report.ForeignServer] < foreignServer && s.Values[report.ForeignGen] < foreignGenerator
	return s, nil
}

// foreign returns the share of a core that other programs used, or that the hypervisor took.
func foreign(first, last edge, core int, known time.Duration, wall float64) float64 {
	a, b := first.cores[core], last.cores[core]
	used := b.Busy - a.Busy - known + b.Stolen - a.Stolen
	return max(0, used.Seconds()/wall)
}

func micros(d time.Duration) float64 { return float64(d.Nanoseconds()) / 1e3 }
