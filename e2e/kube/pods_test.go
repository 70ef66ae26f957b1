package kube

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"localcache.dev/localcache/e2e/kube/cluster"
)

// toldClient is a client in the output of the diagnostics.
type toldClient struct {
	Addresses                     []string
	Namespace, Pod, UID, Workload string
	Host, Overflow                bool
	Queries                       uint64
}

// toldBy asks the cache of a node for its clients, as an administrator would: by their names, host, or their addresses.
func (l *lab) toldBy(ctx context.Context, node string) (map[string]toldClient, error) {
	pods, err := l.Pods(ctx, "kube-system", caches[ours].label)
	if err != nil {
		return nil, err
	}
	for _, p := range pods {
		if p.Node != node || p.Deleted {
			continue
		}
		out, err := l.Kubectl(ctx, "-n", "kube-system", "exec", p.Name, "--", "/localcache", "top", "pods", "--window=start", "-o", "json")
		if err != nil {
			return nil, err
		}
		var list struct {
			Metadata struct{ Notes []string }
			Items    []toldClient
		}
		if err := json.Unmarshal([]byte(out), &list); err != nil {
			return nil, err
		}
		if len(list.Metadata.Notes) > 0 {
			return nil, fmt.Errorf("the cache of %s has notes: %q", node, list.Metadata.Notes)
		}
		told := make(map[string]toldClient)
		for _, c := range list.Items {
			switch {
			case c.Host:
				told["host"] = c
			case c.Pod != "":
				told[c.Namespace+"/"+c.Pod] = c
			default:
				told[strings.Join(c.Addresses, " ")] = c
			}
		}
		return told, nil
	}
	return nil, fmt.Errorf("there is no cache on %s", node)
}

// testPods wants the caches to name the pods that testResolve had resolve.
func (l *lab) testPods(ctx context.Context, t *testing.T) {
	clients := l.clients(ctx, t)
	for _, n := range l.Nodes {
		told, err := l.toldBy(ctx, n.Name)
		must(t, err)
		for _, p := range clients {
			c, ok := told["default/"+p.Name]
			switch onHost := strings.HasPrefix(p.Name, "client-host"); {
			case p.Node != n.Name || onHost:
				if ok {
					t.Errorf("%s tells of %s on %s: %+v", n.Name, p.Name, p.Node, c)
				}
			case !ok:
				t.Errorf("%s does not tell of %s: %+v", n.Name, p.Name, told)
			default:
				workload := "DaemonSet/" + p.Name[:strings.LastIndexByte(p.Name, '-')]
				if c.UID != p.UID || c.Workload != workload || c.Queries == 0 || len(c.Addresses) != 1 || c.Addresses[0] != p.IP {
					t.Errorf("%s tells of %s: %+v, want %s with %s and UID %s", n.Name, p.Name, c, workload, p.IP, p.UID)
				}
			}
		}
		if c := told["host"]; c.Queries == 0 {
			t.Errorf("%s does not tell of the clients in the network of the host: %+v", n.Name, told)
		}
		for name, c := range told {
			if name != "host" && c.Pod == "" && !c.Overflow {
				t.Errorf("%s does not name %s", n.Name, name)
			}
		}
	}

	// A pod that is made anew by the same name begins anew.
	peers, err := l.Pods(ctx, "default", "app=db")
	must(t, err)
	old := peers[0]
	_, err = l.lookup(ctx, old.Name, golang, "host:web")
	must(t, err)
	await := func(what string, f func() error) {
		t.Helper()
		ctx, cancel := context.WithTimeoutCause(ctx, time.Minute, errors.New(what))
		defer cancel()
		must(t, cluster.Poll(ctx, 200*time.Millisecond, f))
	}
	name := "default/" + old.Name
	await("the cache does not tell of "+old.Name, func() error {
		told, err := l.toldBy(ctx, old.Node)
		if c := told[name]; err == nil && (c.UID != old.UID || c.Queries == 0 || c.Workload != "StatefulSet/db") {
			err = fmt.Errorf("%+v", told)
		}
		return err
	})
	_, err = l.Kubectl(ctx, "delete", "pod", old.Name, "--wait=true")
	must(t, err)
	l.awaitReady(ctx, t, "app=db", 2)
	peers, err = l.Pods(ctx, "default", "app=db")
	must(t, err)
	for _, p := range peers {
		if p.Name != old.Name {
			continue
		}
		if p.UID == old.UID {
			t.Fatalf("%s is the same pod", p.Name)
		}
		began := time.Now()
		_, err = l.lookup(ctx, p.Name, golang, "host:kubernetes.default.svc.cluster.local.")
		must(t, err)
		await("the cache does not tell of the new "+p.Name, func() error {
			told, err := l.toldBy(ctx, p.Node)
			// One name, of which A and AAAA are asked for.
			if c := told[name]; err == nil && (c.UID != p.UID || c.Queries != 2) {
				err = fmt.Errorf("%+v, want UID %s with two queries", told[name], p.UID)
			}
			return err
		})
		progress("the new %s was told of by its name within %.1f s", p.Name, time.Since(began).Seconds())
	}
}
