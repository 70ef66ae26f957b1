package iptables

import (
	"os"
	"testing"

	"localcache.dev/localcache/internal/nodenet/nettest"
)

// TestMain runs the tests in namespaces of their own.
func TestMain(m *testing.M) { os.Exit(nettest.Main(m)) }
