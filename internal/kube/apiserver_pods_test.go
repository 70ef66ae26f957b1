package kube

import (
	"encoding/json"
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"
)

const podsIn = "/api/v1/namespaces/kube-system/pods"

// bind creates a pod of a node, as a DaemonSet's is bound.
func (c *cluster) bind(name, node string, spec o) (uid string) {
	c.t.Helper()
	if spec == nil {
		spec = o{}
	}
	spec["nodeName"], spec["containers"] = node, []o{{"name": "c", "image": "i"}}
	var made struct{ Metadata struct{ UID string } }
	said := c.do(http.MethodPost, podsIn, o{"metadata": o{"name": name, "namespace": "kube-system"}, "spec": spec})
	if err := json.Unmarshal(said, &made); err != nil || made.Metadata.UID == "" {
		c.t.Fatalf("%v: %s", err, said)
	}
	return made.Metadata.UID
}

// report plays the kubelet.
func (c *cluster) report(name, phase, ip string, started time.Time) {
	c.t.Helper()
	status := o{"phase": phase, "podIP": ip, "podIPs": []o{{"ip": ip}}, "startTime": started.UTC().Format(time.RFC3339)}
	c.do(http.MethodPatch, podsIn+"/"+name+"/status", o{"status": status})
}

func (c *cluster) remove(name string) {
	c.t.Helper()
	c.do(http.MethodDelete, podsIn+"/"+name+"?gracePeriodSeconds=0", nil)
}

// podsOf continues TestAPIServer, whose service account has no right to pods yet.
func podsOf(t *testing.T, c *cluster, client *Client) {
	log := &testLog{}
	w := client.WatchPods("n1", log)
	running(t, w.Run)
	logged := func(n int, text string) {
		t.Helper()
		eventually(t, "it is logged: "+text, func() error {
			if log.count(text) < n {
				return fmt.Errorf("%q", log.all())
			}
			return nil
		})
	}
	want := func(what string, want ...string) {
		t.Helper()
		eventually(t, what, func() error {
			list, known := w.Pods()
			got := []string{}
			for _, p := range list {
				got = append(got, fmt.Sprint(p.Name, " ", p.UID, " ", p.IPs, " ", p.HostNetwork))
			}
			if !known || strings.Join(got, "\n") != strings.Join(want, "\n") {
				return fmt.Errorf("%q, want %q, log %q", got, want, log.all())
			}
			return nil
		})
	}
	const rights = `a ClusterRole and a ClusterRoleBinding must allow the pod's service account verbs [list, watch] on resources [pods] of apiGroups [""]`
	logged(1, `list pods: the API server says 403 Forbidden: pods is forbidden: User "system:serviceaccount:kube-system:nodelocaldns" cannot list resource "pods" in API group "" at the cluster scope`)
	logged(1, rights)
	if s := w.State(); !s.Forbidden || s.Synced {
		t.Errorf("state %+v", s)
	}

	c.apply(rbacIn+"/clusterroles", "components/pods/clusterrole.yaml")
	verbs := func(list ...string) {
		t.Helper()
		c.do(http.MethodPatch, rbacIn+"/clusterroles/nodelocaldns-pods", o{"rules": []o{{"apiGroups": []string{""}, "resources": []string{"pods"}, "verbs": list}}})
	}
	verbs("list") // one right of two
	c.apply(rbacIn+"/clusterrolebindings", "components/pods/clusterrolebinding.yaml")
	want("nothing is on this node, so far as can be listed")
	eventually(t, "the right to watch is missed", func() error {
		if s := w.State(); !s.Forbidden || !strings.HasPrefix(s.LastError, "watch pods: ") || !strings.Contains(s.LastError, rights) {
			return fmt.Errorf("state %+v", s)
		}
		return nil
	})
	verbs("list", "watch")
	eventually(t, "it is watched", func() error {
		if s := w.State(); !s.Connected || s.LastError != "" || s.Forbidden {
			return fmt.Errorf("state %+v", s)
		}
		return nil
	})

	// Pods come, of this node and another.
	started := time.Now().Add(-time.Minute).Truncate(time.Second)
	here := c.bind("here", "n1", nil)
	c.bind("there", "n2", nil)
	want("a pod without an address", "here "+here+" [] false")
	changed := time.Now()
	c.report("here", "Running", "10.1.0.2", started)
	c.report("there", "Running", "10.1.0.2", started)
	want("the pod has its address", "here "+here+" [10.1.0.2] false")
	t.Logf("an address is known %v after it was reported", time.Since(changed).Round(time.Millisecond))
	if got, _ := w.Pods(); !got[0].Started.Equal(started) {
		t.Errorf("started at %s, want %s", got[0].Started, started)
	}
	host := c.bind("host", "n1", o{"hostNetwork": true})
	c.report("host", "Running", "192.0.2.10", started)
	want("one of the node's network", "here "+here+" [10.1.0.2] false", "host "+host+" [192.0.2.10] true")

	// It ends, and is made anew by the same name with the same address.
	c.report("here", "Failed", "10.1.0.2", started)
	want("a pod that has ended has no address", "here "+here+" [] false", "host "+host+" [192.0.2.10] true")
	c.remove("here")
	again := c.bind("here", "n1", nil)
	c.report("here", "Running", "10.1.0.2", started)
	want("another has its name and address", "here "+again+" [10.1.0.2] false", "host "+host+" [192.0.2.10] true")
	c.remove("host")
	want("the other is gone", "here "+again+" [10.1.0.2] false")
	if again == here {
		t.Error("the same UID twice")
	}

	// The server is away, and the token has changed when it comes back.
	stop(c.api)
	eventually(t, "the watch has ended", func() error {
		if s := w.State(); s.Connected || s.LastError == "" {
			return fmt.Errorf("state %+v", s)
		}
		return nil
	})
	want("what was known stays", "here "+again+" [10.1.0.2] false")
	c.startAPI()
	c.write("token", []byte(c.token()))
	c.remove("here")
	third := c.bind("third", "n1", nil)
	c.report("third", "Running", "10.1.0.2", started)
	want("the address has gone over", "third "+third+" [10.1.0.2] false")
}
