package report

import "fmt"

// Goal is something that localcache promises in comparison with others.
type Goal struct {
	Text     string
	Measured string
	Reached  bool
	Noisy    bool
}

// limits on CPU time, as multiples of another server's.
var limits = []struct {
	work  Work
	to    string
	ratio float64
}{
	{Hits, BatchedEcho, 1.2},
	{Hits, Stock, 1. / 6},
	{Steady10k, BatchedEcho, 1.2},
	{Steady10k, Stock, 0.4},
	{Mix, Stock, 0.35},
	{Mix, "dnsdist", 1},
}

// Goals compares the run with the project's goals. Goals about what was not measured are left out.
func (r *Run) Goals() []Goal {
	var goals []Goal
	for _, l := range limits {
		ours, ok1 := r.Value(l.work, Subject, CPU)
		theirs, ok2 := r.Value(l.work, l.to, CPU)
		if !ok1 || !ok2 || theirs == 0 {
			continue
		}
		goals = append(goals, Goal{
			Text:     fmt.Sprintf("%s: CPU at most %.2f × %s", titles[l.work], l.ratio, l.to),
			Measured: fmt.Sprintf("%.2f ×", ours/theirs),
			Reached:  ours <= l.ratio*theirs,
			Noisy:    r.Noisy(l.work, Subject) || r.Noisy(l.work, l.to),
		})
	}
	goals = append(goals, r.everyPeer(Hits, CPU, "CPU less than each peer's", "µs")...)
	goals = append(goals, r.everyPeer(Steady10k, P99, "p99 at most each peer's", "µs")...)
	ours, ok1 := r.idle(Subject)
	theirs, ok2 := r.idle(Stock)
	if ok1 && ok2 {
		goals = append(goals, Goal{
			Text:     "memory: idle at most 5 MB more than " + Stock,
			Measured: fmt.Sprintf("%+.1f MB", (ours-theirs)*1024/1e6),
			Reached:  ours-theirs <= 5e6/1024,
		})
	}
	return goals
}

// everyPeer compares with the best of the peers: every DNS server but localcache.
func (r *Run) everyPeer(w Work, m Metric, text, unit string) []Goal {
	ours, ok := r.Value(w, Subject, m)
	if !ok {
		return nil
	}
	best, name := 0., ""
	noisy := r.Noisy(w, Subject)
	for _, s := range r.measured(w) {
		if s.Echo || s.Subject {
			continue
		}
		v, ok := r.Value(w, s.Name, m)
		if !ok {
			continue
		}
		noisy = noisy || r.Noisy(w, s.Name)
		if name == "" || v < best {
			best, name = v, s.Name
		}
	}
	if name == "" {
		return nil
	}
	return []Goal{{
		Text:     titles[w] + ": " + text,
		Measured: fmt.Sprintf("%s %s, the best peer (%s) %s", number(ours), unit, name, number(best)),
		Reached:  ours <= best,
		Noisy:    noisy,
	}}
}
