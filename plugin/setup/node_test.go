package setup

import (
	"testing"
	"time"

	"github.com/coredns/caddy"
)

// Two reloads of one instance, by the reload directive and by a signal: the second must neither run beside
// the first nor after it, on sockets that are closed by then.
func TestReloadsTakeTurns(t *testing.T) {
	n, err := New(Flags{Port: 53})
	if err != nil {
		t.Fatal(err)
	}
	first, second := &caddy.Instance{}, &caddy.Instance{}
	started := func(inst *caddy.Instance) {
		if err := n.onEvent(caddy.InstanceStartupEvent, inst); err != nil {
			t.Fatal(err)
		}
	}
	started(first)
	n.beginReload(first)

	went, ended := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(ended)
		n.beginReload(first)
		close(went)
	}()
	select {
	case <-went:
		t.Fatal("the second reload runs beside the first")
	case <-ended:
		t.Fatal("the second reload ended before the first did")
	case <-time.After(50 * time.Millisecond):
	}
	started(second) // the first reload has come to its end
	<-ended
	select {
	case <-went:
		t.Fatal("the second reload went on with an instance that does not serve any more")
	default:
	}

	// The turn is free again, for a reload that fails too.
	n.beginReload(second)
	if err := n.reloadFailed(); err != nil {
		t.Fatal(err)
	}
	n.beginReload(second)
	started(first)
	if n.Serving() != first {
		t.Error("Serving is not the instance that started last")
	}
}
