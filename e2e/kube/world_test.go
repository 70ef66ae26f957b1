package kube

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"localcache.dev/localcache/e2e/kube/cluster"
)

// The world outside of the cluster: the resolver in the nodes' resolv.conf, which knows example.org and has
// names for documentation addresses, and at another address the server of the stub domain acme.example.
const worldCorefile = `
. {
    bind 10.200.0.1
    template ANY ANY {
        rcode NXDOMAIN
    }
}
example.org {
    bind 10.200.0.1
    errors
    template IN A {
        match ^www[.]
        fallthrough
        answer "{{ .Name }} 60 IN A 203.0.113.80"
    }
    template IN AAAA {
        match ^www[.]
        fallthrough
        answer "{{ .Name }} 60 IN AAAA 2001:db8:80::80"
    }
    template IN A {
        match ^other[.]
        fallthrough
        answer "{{ .Name }} 60 IN A 203.0.113.81"
    }
    template IN A {
        match ^_under_score[.]
        fallthrough
        answer "{{ .Name }} 60 IN A 203.0.113.82"
    }
    template ANY ANY {
        match ^(www|other|_under_score)[.]example[.]org[.]$
        fallthrough
        rcode NOERROR
    }
    template ANY ANY {
        rcode NXDOMAIN
    }
}
long.example.org {
    bind 10.200.0.1
    errors
    template IN TXT {
        answer "{{ .Name }} 60 IN TXT \"LONG\""
    }
}
alias.example.org {
    bind 10.200.0.1
    template IN A {
        answer "{{ .Name }} 60 IN CNAME www.example.org."
        answer "www.example.org. 60 IN A 203.0.113.80"
    }
    template IN AAAA {
        answer "{{ .Name }} 60 IN CNAME www.example.org."
        answer "www.example.org. 60 IN AAAA 2001:db8:80::80"
    }
}
113.0.203.in-addr.arpa {
    bind 10.200.0.1
    template IN PTR {
        match ^80[.]
        fallthrough
        answer "{{ .Name }} 60 IN PTR www.example.org."
    }
    template ANY ANY {
        rcode NXDOMAIN
    }
}
acme.example {
    bind 10.200.0.3
    template IN A {
        answer "{{ .Name }} 60 IN A 198.51.100.7"
    }
    template ANY ANY {
        rcode NOERROR
    }
}
`

// startWorld starts the DNS servers outside of the cluster.
func (l *lab) startWorld(ctx context.Context, t *testing.T) {
	t.Helper()
	folder := t.TempDir()
	corefile := filepath.Join(folder, "Corefile")
	must(t, os.WriteFile(corefile, []byte(withLongText(worldCorefile)), 0o644))
	log, err := os.Create(filepath.Join(l.Logs, "world.log"))
	must(t, err)
	defer log.Close()
	cmd := exec.Command(l.artifacts.coredns, "-conf", corefile)
	cmd.Stdout, cmd.Stderr = log, log
	must(t, l.World.Start(cmd))
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		<-ended
	})
	ctx, cancel := context.WithTimeoutCause(ctx, 20*time.Second, errors.New("the DNS server of the world has not started within 20 s"))
	defer cancel()
	must(t, cluster.Poll(ctx, 100*time.Millisecond, func() error {
		conn, err := l.World.DialContext(ctx, "tcp", cluster.WorldAddress+":53")
		if err != nil {
			return err
		}
		return conn.Close()
	}))
}
