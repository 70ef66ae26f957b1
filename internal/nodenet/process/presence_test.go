package process

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"
	"time"

	"localcache.dev/localcache/internal/nodenet/nettest"
)

const unixTable = `Num       RefCount Protocol Flags    Type St Inode Path
0000000000000000: 00000002 00000000 00000000 0001 01  1001 @localcache/nodelocaldns/present/00000000000000ff/7
0000000000000000: 00000002 00000000 00000000 0001 01  1002 @localcache/nodelocaldns/keeper/0000000000000100/7
0000000000000000: 00000002 00000000 00010000 0001 01  1003 /run/systemd/private
0000000000000000: 00000003 00000000 00000000 0001 03  1004
0000000000000000: 00000002 00000000 00000000 0001 01  1005 @localcache/localcache/present/00000000000000ff/8
0000000000000000: 00000002 00000000 00000000 0001 01  1006 @localcache/nodelocaldns/lock
0000000000000000: 00000002 00000000 00000000 0001 01  1007 localcache/nodelocaldns/present/00000000000000ff/9
0000000000000000: 00000002 00000000 00000000 0001 01  1008 @localcache/nodelocaldns/present/00000000000000FF/9
0000000000000000: 00000002 00000000 00000000 0001 01  1009 @localcache/nodelocaldns/present/00000000000000ff/+9
0000000000000000: 00000002 00000000 00000000 0001 01  1010 @localcache/nodelocaldns/present/00000000000000ff/9/9
0000000000000000: 00000002 00000000 00000000 0001 01  1011 @localcache/nodelocaldns/chief/00000000000000ff/9
0000000000000000: 00000002 00000000 00000000 0001 01  1012 /run/with space @localcache/nodelocaldns/present/00000000000000ff/9
`

func TestParseUnixTable(t *testing.T) {
	long := "0: 2 0 0 1 01 1013 /" + strings.Repeat("x", 10_000) + "\n" +
		"0: 2 0 0 1 01 1014 @localcache/nodelocaldns/present/0000000000000101/10\n"
	// The rest of a line that is longer than the buffer is not a line of its own, whatever it looks like.
	long += "0: 2 0 0 1 01 1015 /" + strings.Repeat("x", 4096-20) +
		"0: 2 0 0 1 01 1016 @localcache/nodelocaldns/present/0000000000000101/11\n"
	r, err := parseUnixTable(strings.NewReader(unixTable+long), "nodelocaldns")
	nettest.Must(t, err)
	if r.lock != 1006 {
		t.Errorf("the lock is held by the socket with inode %d", r.lock)
	}
	peers := r.peers
	want := []Peer{{RolePresent, 0xff, 7, 1001}, {RoleKeeper, 0x100, 7, 1002}, {RolePresent, 0x101, 10, 1014}}
	if !slices.Equal(peers, want) {
		t.Errorf("found %+v\nof    %+v", peers, want)
	}
}

func FuzzParseUnixTable(f *testing.F) {
	f.Add(unixTable, "nodelocaldns")
	f.Add("\n\n0: 2 0 0 1 01 5 @localcache//present/0000000000000000/0", "")
	f.Fuzz(func(t *testing.T, table, owner string) {
		r, err := parseUnixTable(strings.NewReader(table), owner)
		if err != nil {
			t.Fatal(err)
		}
		for _, p := range r.peers {
			if name := p.name(owner); !strings.Contains(table, "@"+name) {
				t.Errorf("%q is not in the table", name)
			}
			if p.start == 0 && p.pid < 0 {
				t.Errorf("impossible peer %+v", p)
			}
		}
	})
}

// rolesOf returns the roles of the other processes, for comparison.
func rolesOf(t *testing.T, p *Presence) []PeerRole {
	t.Helper()
	peers, err := p.Others()
	nettest.Must(t, err)
	var roles []PeerRole
	for _, q := range peers {
		roles = append(roles, q.Role)
	}
	return roles
}

func TestPresence(t *testing.T) {
	nettest.NewNamespace(t)
	a, b := &Presence{Owner: "nodelocaldns"}, &Presence{Owner: "nodelocaldns"}
	stranger := &Presence{Owner: "localcache"}
	nettest.Must(t, a.Join())
	nettest.Must(t, a.Join()) // a second time is the same
	if r := rolesOf(t, a); r != nil {
		t.Errorf("alone, but sees %v", r)
	}
	if r := rolesOf(t, b); !slices.Equal(r, []PeerRole{RolePresent}) {
		t.Errorf("one that has not joined sees %v", r)
	}
	nettest.Must(t, b.Join())
	nettest.Must(t, a.Keep())
	nettest.Must(t, b.Keep())
	nettest.Must(t, stranger.Join())
	if r := rolesOf(t, a); !slices.Equal(r, []PeerRole{RolePresent, RoleKeeper}) {
		t.Errorf("a sees %v", r)
	}
	for _, c := range []struct {
		p    *Presence
		want bool
	}{{a, true}, {b, false}} {
		peers, err := c.p.Others()
		nettest.Must(t, err)
		if _, older := c.p.Newer(peers); older != c.want {
			t.Errorf("a newer one: %v, of %v", older, c.want)
		}
	}
	peers, err := a.Others()
	nettest.Must(t, err)
	want := fmt.Sprintf("(pid %d)", os.Getpid())
	if s := DescribePeers("/proc", peers); !strings.Contains(s, want) || strings.Count(s, "pid") != 1 {
		t.Errorf("described as %q", s)
	}
	if s := DescribePeers(t.TempDir(), peers[:1]); !strings.Contains(s, "another container") {
		t.Errorf("one that cannot be seen is described as %q", s)
	}

	// Another network namespace is another node.
	nettest.NewPod(t).Do(func() {
		if peers, err := (&Presence{Owner: "nodelocaldns"}).Others(); err != nil || len(peers) > 0 {
			t.Errorf("from another namespace: %v, error %v", peers, err)
		}
	})
	nettest.Must(t, b.Leave())
	if r := rolesOf(t, a); r != nil {
		t.Errorf("after the other left, a sees %v", r)
	}
	nettest.Must(t, a.Leave())
	nettest.Must(t, stranger.Leave())
}

// A tool that a process has started does not stand for it when it is dead.
func TestPresenceNotInherited(t *testing.T) {
	nettest.NewNamespace(t)
	a := &Presence{Owner: "nodelocaldns"}
	nettest.Must(t, a.Join())
	cmd := exec.Command("sleep", "60")
	nettest.Must(t, cmd.Start())
	defer cmd.Wait()
	defer cmd.Process.Kill()
	nettest.Must(t, a.Leave())
	if r := rolesOf(t, a); r != nil {
		t.Errorf("still there: %v", r)
	}
}

// A name from the future, which would be the newest for ever, is not believed.
func TestPresenceFuture(t *testing.T) {
	nettest.NewNamespace(t)
	now, err := boottime()
	nettest.Must(t, err)
	fake := &nameSocket{peer: Peer{Role: RoleKeeper, start: now + uint64(time.Hour), pid: 1}}
	fake.fd, err = bindAbstract(fake.peer.name("nodelocaldns"))
	nettest.Must(t, err)
	squatter := &Presence{Owner: "nodelocaldns", keeper: fake}
	defer squatter.Leave()
	if r := rolesOf(t, &Presence{Owner: "nodelocaldns"}); r != nil {
		t.Errorf("believed: %v", r)
	}
}

func TestPresenceLock(t *testing.T) {
	nettest.NewNamespace(t)
	ctx := context.Background()
	a, b := &Presence{Owner: "nodelocaldns"}, &Presence{Owner: "nodelocaldns"}
	unlock, err := a.Lock(ctx)
	nettest.Must(t, err)
	short, cancel := context.WithTimeout(ctx, 50*time.Millisecond)
	defer cancel()
	nothing, err := b.Lock(short)
	if !errors.Is(err, ErrLockBusy) {
		t.Errorf("a held lock: %v", err)
	}
	nothing()
	other, err := (&Presence{Owner: "localcache"}).Lock(ctx)
	nettest.Must(t, err)
	other()
	time.AfterFunc(100*time.Millisecond, unlock)
	unlock, err = b.Lock(ctx)
	nettest.Must(t, err)
	unlock()
}
