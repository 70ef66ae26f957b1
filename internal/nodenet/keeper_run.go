package nodenet

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"sync"
	"time"

	"localcache.dev/localcache/internal/nodenet/link"
	"localcache.dev/localcache/internal/nodenet/status"
)

const (
	// passTimeout bounds one check and repair of the rules, so that a hanging tool is given up.
	passTimeout = 30 * time.Second
	// linkGap is the least time between two looks at the link, however many events there are: a program
	// that keeps deleting it must not take the processor with it.
	linkGap = 100 * time.Millisecond
)

// Run maintains the interface and the rules of the committed state until ctx ends: a deleted link, a link that was
// set down and a deleted address are back within a second, changed rules within one Check. Sockets bound to an
// address that is restored keep working, because a socket holds the address and not the link. Run also deletes
// connection tracking entries that the fallback left.
func (k *Keeper) Run(ctx context.Context) error {
	var others sync.WaitGroup
	for _, f := range []func(context.Context){k.keepRules, k.forgetOld} {
		others.Add(1)
		k.cfg.Go(func() {
			defer others.Done()
			f(ctx)
		})
	}
	k.keepLink(ctx)
	others.Wait()
	return nil
}

// keepRules checks the rules every Check, and after a failure sooner.
func (k *Keeper) keepRules(ctx context.Context) {
	timer := time.NewTimer(0)
	defer timer.Stop()
	pause := retryFirst
	for {
		select {
		case <-ctx.Done():
			return
		case <-k.wakeRules:
			// A Commit has just checked; the next check is due after Check, or sooner if it failed.
			timer.Stop()
			pause = retryFirst
			k.mu.Lock()
			committed, applied := k.committed, k.applied
			k.mu.Unlock()
			switch {
			case committed == nil:
			case applied && k.Status().RulesInPlace:
				timer.Reset(committed.spec.Check)
			default:
				timer.Reset(min(pause, committed.spec.Check))
			}
			continue
		case <-timer.C:
		}
		k.mu.Lock()
		committed := k.committed
		k.mu.Unlock()
		if committed == nil {
			continue // Commit wakes us
		}
		passCtx, cancel := context.WithTimeout(ctx, passTimeout)
		err := k.checkRules(passCtx)
		cancel()
		if ctx.Err() != nil {
			return
		}
		k.complain(woeRules, err)
		// Events may have been lost, so the link is looked at too.
		err = errors.Join(err, k.checkLink())
		wait := committed.spec.Check
		if err != nil {
			wait = min(pause, wait)
			pause = min(2*pause, committed.spec.Check)
		} else {
			pause = retryFirst
		}
		timer.Reset(wait)
	}
}

// keepLink follows the kernel's events about the link and its addresses, and subscribes again when
// they end.
func (k *Keeper) keepLink(ctx context.Context) {
	pause := retryFirst
	for ctx.Err() == nil {
		ev, err := link.Watch(&k.interest, 0)
		if err == nil {
			k.complain(woeEvents, nil)
			pause = retryFirst
			err = k.followLink(ctx, ev)
			ev.Stop()
		}
		if ctx.Err() != nil {
			return
		}
		k.complain(woeEvents, k.board.Failed(err))
		_ = k.checkLink() // it counts and logs its error itself; the next check is near
		select {
		case <-ctx.Done():
		case <-time.After(pause):
		}
		pause = min(2*pause, DefaultCheck)
	}
}

// followLink looks at the link whenever something happened to it, until ctx or the events end.
func (k *Keeper) followLink(ctx context.Context, ev *link.Events) error {
	retry := time.NewTimer(0) // the first check finds what happened before the subscription
	defer retry.Stop()
	pause := retryFirst
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-ev.Done:
			return &status.SetupError{Type: status.ErrorInterfaceCheck, Err: fmt.Errorf("link and address events ended: %w", ev.Err)}
		case <-ev.Changed:
		case <-k.wakeLink:
		case <-retry.C:
		}
		retry.Stop()
		if err := k.checkLink(); err != nil {
			retry.Reset(pause)
			pause = min(2*pause, DefaultCheck)
		} else {
			pause = retryFirst
		}
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(linkGap):
		}
	}
}

// checkLink brings the interface into the desired state, and logs and counts repairs. Its error is already counted
// and logged.
func (k *Keeper) checkLink() error {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.closed || k.committed == nil && k.prepared == nil {
		return nil
	}
	want := k.wanted()
	if len(want) == 0 {
		return k.checkForeignLink()
	}
	s, done, err := k.link.Ensure(want, k.mine)
	k.mine = union(k.mine, done.Added)
	k.watch(s, want)
	name := k.link.Name
	switch {
	case done.Created:
		k.board.Repaired(status.RepairLink)
		k.cfg.Log.Warningf("interface %s had been deleted and was made again, of kind %s, with %s", name, s.Kind(), join(done.Added))
	default:
		if done.SetUp {
			k.board.Repaired(status.RepairLinkDown)
			k.cfg.Log.Warningf("interface %s had been set down and was set up again", name)
		}
		if len(done.Added) > 0 {
			k.board.Repaired(status.RepairAddress)
			k.cfg.Log.Warningf("put back on interface %s: %s", name, join(done.Added))
		}
	}
	text := ""
	if err != nil {
		text = k.board.Failed(err).Error()
	}
	k.complainLocked(woeLink, text)
	return err
}

// checkForeignLink looks for the addresses of an interface that others make. mu is held.
func (k *Keeper) checkForeignLink() error {
	var addrs []netip.Addr
	for _, w := range []*desiredState{k.committed, k.prepared} {
		if w != nil {
			addrs = union(addrs, w.spec.Addresses)
		}
	}
	missing, err := link.MissingAnywhere(addrs)
	if err != nil {
		k.complainLocked(woeLink, k.board.Failed(err).Error())
		return err
	}
	k.complainLocked(woeLink, "")
	k.interest.Store(&link.Interest{Addrs: addrs})
	was := k.board.Snapshot().AddressesMissing
	k.board.Update(func(s *status.Status) { s.Kind, s.Up, s.AddressesMissing = "", true, missing })
	if len(missing) > 0 && !slices.Equal(was, missing) {
		k.cfg.Log.Warningf("on no interface of this node: %s", join(missing))
	}
	return nil
}

// watch sets the link and addresses that events concern, and updates the Status. mu is held.
func (k *Keeper) watch(s link.State, addrs []netip.Addr) {
	in := &link.Interest{Name: k.link.Name, Addrs: addrs}
	if s.Link != nil {
		in.Index = int32(s.Link.Attrs().Index)
	}
	k.interest.Store(in)
	k.board.Update(func(st *status.Status) {
		st.Kind, st.Up, st.AddressesMissing = s.Kind(), s.Link != nil && s.Up, s.Missing
	})
}
