package nodenet

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
	"sync"
	"testing"
	"time"

	"localcache.dev/localcache/internal/nodenet/nettest"
	"localcache.dev/localcache/internal/nodenet/process"
	"localcache.dev/localcache/internal/nodenet/rule"
)

// memory is a packet filter in memory, as the kernel of one network namespace would hold it for several
// processes: rules by backend and owner.
type memory struct {
	mu        sync.Mutex
	rules     map[string][]rule.Rule
	calls     []string // calls that changed it, in order
	applyErr  error
	removeErr error
	detectErr error
	noSocket  error
	forgets   bool          // rules are accepted, but not put in place
	slow      chan struct{} // Check waits for it to be closed
	slowCalls int           // how many wait
}

func newMemory() *memory { return &memory{rules: map[string][]rule.Rule{}} }

// set changes a field under the lock.
func (m *memory) set(f func()) {
	m.mu.Lock()
	defer m.mu.Unlock()
	f()
}

// of returns the rules that one backend has for an owner.
func (m *memory) of(name, owner string) []rule.Rule {
	m.mu.Lock()
	defer m.mu.Unlock()
	return slices.Clone(m.rules[name+" "+owner])
}

// takeCalls returns the calls since the last time.
func (m *memory) takeCalls() []string {
	m.mu.Lock()
	defer m.mu.Unlock()
	c := m.calls
	m.calls = nil
	return c
}

func (m *memory) note(format string, v ...any) { m.calls = append(m.calls, fmt.Sprintf(format, v...)) }

// memoryBackend is one backend of memory.
type memoryBackend struct {
	m           *memory
	name, owner string
}

func (f memoryBackend) key() string  { return f.name + " " + f.owner }
func (f memoryBackend) Name() string { return f.name }

func (f memoryBackend) SocketMatch(context.Context, []netip.Addr) error {
	f.m.mu.Lock()
	defer f.m.mu.Unlock()
	return f.m.noSocket
}

func (f memoryBackend) Apply(_ context.Context, rules []rule.Rule) error {
	f.m.mu.Lock()
	defer f.m.mu.Unlock()
	if f.m.applyErr != nil {
		return f.m.applyErr
	}
	kind := "normal"
	for _, dnat := range rules {
		// While draining, an address with a fallback has nothing that keeps packets out of tracking on
		// their way in.
		if dnat.Verdict == rule.DNAT && !slices.ContainsFunc(rules, func(r rule.Rule) bool {
			return r.Hook == rule.RawPrerouting && r.Dst == dnat.Dst
		}) {
			kind = "draining"
		}
	}
	f.m.note("apply %s %s", f.name, kind)
	if !f.m.forgets {
		f.m.rules[f.key()] = slices.Clone(rules)
	}
	return nil
}

func (f memoryBackend) Check(_ context.Context, rules []rule.Rule) ([]string, error) {
	f.m.mu.Lock()
	if slow := f.m.slow; slow != nil {
		f.m.slowCalls++
		f.m.mu.Unlock()
		<-slow
		f.m.mu.Lock()
	}
	defer f.m.mu.Unlock()
	has := f.m.rules[f.key()]
	if sameRules(has, rules) {
		return nil, nil
	}
	return []string{fmt.Sprintf("%d rules, not %d", len(has), len(rules))}, nil
}

func (f memoryBackend) Fallback(_ context.Context, like rule.Rule) (servers []netip.AddrPort, err error) {
	for _, r := range f.m.of(f.name, f.owner) {
		if r.Verdict == rule.DNAT && r.Dst == like.Dst && r.Proto == like.Proto {
			servers = append(servers, r.Targets...)
		}
	}
	return servers, nil
}

func (memoryBackend) RemoveNodeCache(context.Context) ([]string, error) { return nil, nil }

func (f memoryBackend) Remove(context.Context) ([]string, error) {
	f.m.mu.Lock()
	defer f.m.mu.Unlock()
	if f.m.removeErr != nil {
		return nil, f.m.removeErr
	}
	n := len(f.m.rules[f.key()])
	delete(f.m.rules, f.key())
	if n == 0 {
		return nil, nil
	}
	f.m.note("remove %s", f.name)
	return []string{fmt.Sprintf("%d rules", n)}, nil
}

func sameRules(a, b []rule.Rule) bool {
	return slices.EqualFunc(a, b, func(x, y rule.Rule) bool { return fmt.Sprint(x) == fmt.Sprint(y) })
}

func (m *memory) detect(_ context.Context, c Choice, owner string, _ rule.Logger) (rule.Backend, string, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.detectErr != nil {
		return nil, "", m.detectErr
	}
	return memoryBackend{m, "memory-" + string(c), owner}, "the test asks for it", nil
}

func (m *memory) All(_ context.Context, owner string) []rule.Backend {
	return []rule.Backend{memoryBackend{m, "memory-auto", owner}, memoryBackend{m, "memory-nftables", owner}}
}

// process is a Keeper as one localcache process has it.
type testProcess struct {
	t   *testing.T
	k   *Keeper
	m   *memory
	log *nettest.Log
}

func newProcess(t *testing.T, n *nettest.Namespace, m *memory) *testProcess {
	t.Helper()
	log := nettest.NewLog(t)
	k, err := NewKeeper(KeeperConfig{Log: log, Detect: m.detect, All: m.All, Go: n.Go})
	nettest.Must(t, err)
	p := &testProcess{t, k, m, log}
	// Names in the namespace live until the process ends or closes them; a test must not leave them to the next use
	// of their descriptors.
	t.Cleanup(func() {
		if k.presence != nil {
			k.presence.Leave()
		}
	})
	return p
}

// run starts Run in the namespace. The returned func ends it and waits; it may be called twice.
func (p *testProcess) Run(n *nettest.Namespace) (stop func()) {
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	n.Go(func() {
		defer close(done)
		if err := p.k.Run(ctx); err != nil {
			p.t.Errorf("Run: %v", err)
		}
	})
	stop = func() { cancel(); <-done }
	p.t.Cleanup(stop)
	return stop
}

// start prepares and commits.
func (p *testProcess) start(s Spec) {
	p.t.Helper()
	nettest.Must(p.t, p.k.Prepare(context.Background(), s))
	nettest.Must(p.t, p.k.Commit(context.Background()))
}

// die acts like SIGKILL for others: the names are gone, everything else stays.
func (p *testProcess) die() {
	p.t.Helper()
	nettest.Must(p.t, p.k.presence.Leave())
}

// keeperSpec is the Spec of most tests: two addresses and a fallback for one of them.
func keeperSpec() Spec {
	return Spec{
		Interface:       "nodelocaldns",
		ManageInterface: true,
		Addresses:       slices.Clone(nettest.Both),
		Port:            53,
		Health:          []netip.AddrPort{netip.MustParseAddrPort("169.254.25.10:9254")},
		Notrack:         ChoiceAuto,
		Fallback:        []netip.AddrPort{netip.MustParseAddrPort("10.244.1.2:53")},
		Check:           time.Second,
		OnExit:          ExitKeep,
	}
}

// eventually waits for a state, far longer than it should take.
func eventually(t *testing.T, what string, f func() bool) time.Duration {
	t.Helper()
	began := time.Now()
	for time.Since(began) < 15*time.Second {
		if f() {
			return time.Since(began)
		}
		time.Sleep(2 * time.Millisecond)
	}
	t.Fatalf("it never came to be that %s", what)
	return 0
}

// peerRoles returns the roles of the other processes, for comparison.
func peerRoles(t *testing.T, p *process.Presence) []process.PeerRole {
	t.Helper()
	peers, err := p.Others()
	nettest.Must(t, err)
	var roles []process.PeerRole
	for _, q := range peers {
		roles = append(roles, q.Role)
	}
	return roles
}
