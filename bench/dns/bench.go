package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"runtime"
	"runtime/debug"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"localcache.dev/localcache/bench/internal/machine"
	"localcache.dev/localcache/bench/internal/report"
)

// bench is one run of the benchmark.
type bench struct {
	servers []*contender
	rounds  int
	quick   bool
	out     io.Writer // progress
	dir     string    // for the servers' files

	pid        int
	cores      struct{ server, generator, upstream int }
	serverCore *machine.Launcher
	upstream   *remote
	run        report.Run
}

// weights are the works' shares of the time, about as they need it.
var weights = map[report.Work]float64{
	report.Hits: 10, report.Steady10k: 10, report.Steady1k: 12, report.Mix: 10, report.Miss: 7, report.Memory: 20, report.Start: 3,
}

// measure runs the works one after the other within a time limit. Samples taken before an error are in b.run.
func (b *bench) measure(ctx context.Context, names []report.Work, limit time.Duration) (err error) {
	if err := b.open(); err != nil {
		return errors.Join(err, b.close())
	}
	defer func() { err = errors.Join(err, b.close()) }()

	end := time.Now().Add(limit)
	ctx, cancel := context.WithTimeout(ctx, 2*limit) // a machine that hardly gets anywhere
	defer cancel()
	all := works(b.quick)
	for i, name := range names {
		deadline := time.Now().Add(share(time.Until(end), names[i:]))
		b.progress("\n%s (at most %v)", name, time.Until(deadline).Round(time.Second))
		switch name {
		case report.Memory:
			err = b.memory(ctx, deadline)
		case report.Start:
			err = b.start(ctx, deadline)
		default:
			err = b.contend(ctx, all[name], deadline)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// share is the part of a time that the first of the works may take.
func share(left time.Duration, names []report.Work) time.Duration {
	var sum float64
	for _, n := range names {
		sum += weights[n]
	}
	return time.Duration(float64(max(left, 0)) * weights[names[0]] / sum)
}

// open reserves the cores and starts the upstream.
func (b *bench) open() error {
	b.pid = os.Getpid()
	err := machine.Foremost()
	if err != nil {
		b.progress("not put before other programs: %v", err)
	}
	if b.dir, err = os.MkdirTemp("/run", "bench-"); err != nil { // the private world's own
		return err
	}
	// Before the launchers are created, because their threads would be pinned too.
	if err := machine.PinSelf(b.cores.generator); err != nil {
		return err
	}
	if b.serverCore, err = machine.NewLauncher(b.cores.server); err != nil {
		return err
	}
	upstreamCore, err := machine.NewLauncher(b.cores.upstream)
	if err != nil {
		return err
	}
	// Its thread lives as long as this process, and so does the upstream.
	if b.upstream, err = startUpstream(upstreamCore, selfPath); err != nil {
		return err
	}
	// The generator's thread never sleeps while it measures: everything else needs other threads.
	runtime.GOMAXPROCS(4)
	debug.SetGCPercent(-1)
	debug.SetMemoryLimit(1 << 30)
	return nil
}

func (b *bench) close() error {
	var errs []error
	if b.upstream != nil {
		errs = append(errs, b.upstream.close())
	}
	if b.dir != "" {
		errs = append(errs, os.RemoveAll(b.dir))
	}
	return errors.Join(errs...)
}

// stopAll ends processes and reports those that do not end.
func (b *bench) stopAll(ps []*process) {
	for _, p := range ps {
		if p == nil {
			continue
		}
		if err := p.stop(); err != nil {
			b.progress("  %s: %v", p.Name, err)
		}
	}
}

// skip notes why a server has no figures of a work.
func (b *bench) skip(w report.Work, server string, err error) {
	b.progress("  %-9s %-13s left out: %v", w, server, err)
	if b.run.Skipped == nil {
		b.run.Skipped = map[string]string{}
	}
	first, _, _ := strings.Cut(err.Error(), "\n")
	b.run.Skipped[string(w)+" "+server] = strings.TrimSuffix(first, "; its log ends")
}

func (b *bench) progress(format string, args ...any) { fmt.Fprintf(b.out, format+"\n", args...) }

func (b *bench) progressSample(s report.Sample) {
	v := s.Values
	switch s.Work {
	case report.Memory:
		b.progress("  %-9s %-13s %d  idle %.1f MiB (%.1f anonymous)  10,000 names %.1f  100,000 names %.1f  not kept %.2f %%", s.Work, s.Server, s.Round,
			(v[report.IdleAnonymous]+v[report.IdleFile])/1024, v[report.IdleAnonymous]/1024, v[report.Some]/1024, v[report.Many]/1024, 100*v[report.Forgotten])
	case report.Start:
		b.progress("  %-9s %-13s %d  first answer after %.0f ms, %.0f ms of CPU", s.Work, s.Server, s.Round, v[report.FirstAnswer], v[report.FirstCPU])
	default:
		quiet := ""
		if !s.Quiet {
			quiet = fmt.Sprintf("  disturbed: %.0f %% and %.0f %%", 100*v[report.ForeignServer], 100*v[report.ForeignGen])
		}
		b.progress("  %-9s %-13s %d  %6.2f µs  %7.0f/s  p50 %5.0f  p99 %6.0f  wake-ups %.2f  lost %.0f  wrong %.0f%s", s.Work, s.Server, s.Round,
			v[report.CPU], v[report.Rate], v[report.P50], v[report.P99], v[report.WakeUps], v[report.Lost], v[report.Wrong], quiet)
	}
}

// describeMachine names the processor and the kernel.
func describeMachine() string {
	model := "unknown processor"
	if b, err := os.ReadFile("/proc/cpuinfo"); err == nil {
		for line := range strings.Lines(string(b)) {
			if name, value, ok := strings.Cut(line, ":"); ok && strings.TrimSpace(name) == "model name" {
				model = strings.TrimSpace(value)
				break
			}
		}
	}
	var u unix.Utsname
	kernel := "unknown"
	if err := unix.Uname(&u); err == nil {
		kernel = unix.ByteSliceToString(u.Release[:])
	}
	return fmt.Sprintf("%s, Linux %s, %s", model, kernel, runtime.Version())
}

// parseWorks reads the flag -work: steady means both rates.
func parseWorks(list string) ([]report.Work, error) {
	if list == "" {
		return report.Works(), nil
	}
	var ws []report.Work
	for _, name := range strings.Split(list, ",") {
		switch w := report.Work(name); {
		case name == "steady":
			ws = append(ws, report.Steady10k, report.Steady1k)
		case slices.Contains(report.Works(), w):
			ws = append(ws, w)
		default:
			return nil, fmt.Errorf("unknown work %q; there are hits, steady (steady10k and steady1k), mix, miss, memory, start", name)
		}
	}
	return ws, nil
}
