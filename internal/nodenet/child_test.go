package nodenet

import (
	"context"
	"testing"

	"localcache.dev/localcache/internal/nodenet/nettest"
	"localcache.dev/localcache/internal/nodenet/process"
)

// TestChild is the main function of the processes that startChild starts.
func TestChild(t *testing.T) {
	nettest.RunChild(t, func(s nettest.ChildSpec) error {
		if s.Owner == "" {
			return nil
		}
		p := &process.Presence{Owner: s.Owner}
		if err := p.Join(); err != nil {
			return err
		}
		if err := p.Keep(); err != nil {
			return err
		}
		if s.Lock {
			_, err := p.Lock(context.Background())
			return err
		}
		return nil
	})
}
