package kube

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"reflect"
	"strings"
	"testing"
	"time"

	"localcache.dev/localcache/internal/kube/kubetest"
)

type o = kubetest.Object

func pod(namespace, name, uid, node string, more func(meta, spec, status o)) o {
	meta := o{"namespace": namespace, "name": name, "uid": uid}
	spec := o{"nodeName": node, "containers": []o{{"name": "c", "image": "i"}}}
	status := o{"phase": "Running"}
	if more != nil {
		more(meta, spec, status)
	}
	return o{"kind": "Pod", "apiVersion": "v1", "metadata": meta, "spec": spec, "status": status}
}

func ips(list ...string) []o {
	var l []o
	for _, ip := range list {
		l = append(l, o{"ip": ip})
	}
	return l
}

// The pods of this node, as they come, get addresses, end, and come back under the same name.
func TestPods(t *testing.T) {
	yes := true
	s := newServer(t)
	s.Set(kubetest.Pods, pod("shop", "web-7d4b-x", "u1", "n1", func(meta, _, status o) {
		meta["labels"] = o{"pod-template-hash": "7d4b", "app": "web"}
		meta["ownerReferences"] = []o{{"kind": "ConfigMap", "name": "c"}, {"kind": "ReplicaSet", "name": "web-7d4b", "controller": yes}}
		status["podIPs"] = ips("10.1.0.2", "fd00::2")
		status["startTime"] = "2026-01-02T03:04:05Z"
	}))
	s.Set(kubetest.Pods, pod("kube-system", "proxy", "u2", "n1", func(meta, spec, status o) {
		spec["hostNetwork"] = true
		meta["ownerReferences"] = []o{{"kind": "DaemonSet", "name": "kube-proxy", "controller": yes}}
		status["podIPs"] = ips("192.0.2.10")
	}))
	s.Set(kubetest.Pods, pod("shop", "elsewhere", "u3", "n2", nil))
	s.Set(kubetest.Pods, pod("shop", "bare", "u4", "n1", nil))
	log := &testLog{}
	w := clientOf(t, s).WatchPods("n1", log)
	if _, known := w.Pods(); known {
		t.Error("pods are known before the server was asked")
	}
	running(t, w.Run)
	want := func(what string, want ...Pod) {
		t.Helper()
		eventually(t, what, func() error {
			got, known := w.Pods()
			if !known || !reflect.DeepEqual(got, want) {
				return fmt.Errorf("got %+v, known %t, log %q", got, known, log.all())
			}
			return nil
		})
	}
	addrs := func(list ...string) (l []netip.Addr) {
		for _, a := range list {
			l = append(l, netip.MustParseAddr(a))
		}
		return l
	}
	proxy := Pod{"kube-system", "proxy", "u2", Workload{"DaemonSet", "kube-proxy"}, addrs("192.0.2.10"), true, time.Time{}}
	web := Pod{"shop", "web-7d4b-x", "u1", Workload{"Deployment", "web"}, addrs("10.1.0.2", "fd00::2"), false, time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)}
	bare := Pod{Namespace: "shop", Name: "bare", UID: "u4"}
	want("the first list is known", proxy, bare, web)
	<-w.Changed()

	s.Set(kubetest.Pods, pod("shop", "bare", "u4", "n1", func(_, _, status o) { status["podIPs"] = ips("10.1.0.9", "junk") }))
	bare.IPs = addrs("10.1.0.9")
	want("the pod has an address", proxy, bare, web)
	s.Set(kubetest.Pods, pod("shop", "bare", "u4", "n1", func(_, _, status o) {
		status["podIPs"], status["phase"], status["startTime"] = ips("10.1.0.9"), "Succeeded", "junk"
	}))
	bare.IPs = nil
	want("a pod that has ended has no address", proxy, bare, web)
	s.Delete(kubetest.Pods, "shop", "bare")
	want("the pod is gone", proxy, web)
	s.Set(kubetest.Pods, pod("shop", "bare", "u5", "n1", nil))
	bare.UID = "u5"
	want("another has its name", proxy, bare, web)

	// A change of a pod's other fields is ignored.
	<-w.Changed()
	was, _ := w.Pods()
	s.Set(kubetest.Pods, pod("shop", "bare", "u5", "n1", func(meta, _, status o) { status["conditions"] = []o{{"type": "Ready"}} }))
	version := w.State().LastSync
	eventually(t, "the change has been seen", func() error {
		if w.State().LastSync.After(version) {
			return nil
		}
		s.Bookmark()
		return errors.New("not yet")
	})
	if now, _ := w.Pods(); &now[0] != &was[0] || len(w.Changed()) != 0 {
		t.Error("a change of nothing that is kept is a change of Pods")
	}
}

// A pod's owner reference can hold any text: it is kept only if it is a valid object name.
func TestOwnersAreBounded(t *testing.T) {
	for _, owner := range []struct {
		kind, name string
		want       Workload
	}{
		{"StatefulSet", "db", Workload{"StatefulSet", "db"}},
		{"StatefulSet", strings.Repeat("a", 253), Workload{"StatefulSet", strings.Repeat("a", 253)}},
		{"StatefulSet", strings.Repeat("a", 254), Workload{}},
		{"Evil", strings.Repeat("x", 1<<20), Workload{}},
		{strings.Repeat("K", 64), "db", Workload{}},
		{"Evil", "a\u009b31m", Workload{}},
		{"Evil", "a\x7fb", Workload{}},
		{"Evil", "a b", Workload{}},
	} {
		raw, err := json.Marshal(map[string]any{"metadata": map[string]any{
			"namespace": "shop", "name": "web-1", "uid": "u1",
			"ownerReferences": []any{map[string]any{"kind": owner.kind, "name": owner.name, "controller": true}},
		}})
		if err != nil {
			t.Fatal(err)
		}
		_, p, err := decodePod(raw)
		if err != nil || p.Workload != owner.want {
			t.Errorf("%.20q %.20q: %.40q, %v", owner.kind, owner.name, p.Workload, err)
		}
	}
}
