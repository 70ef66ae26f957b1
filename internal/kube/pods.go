package kube

import (
	"cmp"
	"context"
	"encoding/json"
	"net/netip"
	"slices"
	"strings"
	"sync/atomic"
	"time"
)

// maxPods bounds the pods of one node that are kept. The kubelet's default is 110, also its documented limit for
// large clusters; no node has ten times that.
const maxPods = 2048

// Pod is the kept part of a pod.
type Pod struct {
	Namespace, Name string
	UID             string // a name or an address can come back with another pod, a UID cannot
	// Workload is the pod's owner, such as Deployment web; a pod without one has the zero value.
	Workload Workload
	// IPs are the pod's addresses, one of each family; empty before it has one and after it has ended, when another
	// pod may have them. With HostNetwork they are the node's.
	IPs         []netip.Addr
	HostNetwork bool
	// Started is when the kubelet accepted the pod, by the node's clock, in whole seconds; zero before.
	Started time.Time
}

// Workload names the object that creates pods.
type Workload struct{ Kind, Name string }

// PodWatch follows the pods of one node.
type PodWatch struct {
	reflect *reflector[Pod]
	changed chan struct{}
	now     atomic.Pointer[[]Pod]
}

// WatchPods returns a watch of the pods that are bound to a node, by its name (spec.nodeName), which has
// asked nothing yet.
func (c *Client) WatchPods(node string, log Logger) *PodWatch {
	w := &PodWatch{changed: make(chan struct{}, 1)}
	w.reflect = &reflector[Pod]{
		client:  c,
		log:     log,
		res:     resource{version: "v1", name: "pods", fields: "spec.nodeName=" + node},
		most:    maxPods,
		decode:  decodePod,
		changed: w.take,
	}
	return w
}

// Run watches until ctx ends. Call it once.
func (w *PodWatch) Run(ctx context.Context) { w.reflect.run(ctx) }

// Changed returns a channel that has a value when Pods changed since the last value was taken. Several changes can be
// one value.
func (w *PodWatch) Changed() <-chan struct{} { return w.changed }

// Pods are the pods known now, by namespace and name; known is false until the API server has answered. The
// slice is shared and must not be changed.
func (w *PodWatch) Pods() (pods []Pod, known bool) {
	p := w.now.Load()
	if p == nil {
		return nil, false
	}
	return *p, true
}

// State returns the state of the watch.
func (w *PodWatch) State() State { return w.reflect.State() }

func (w *PodWatch) take(all map[string]Pod) {
	pods := make([]Pod, 0, len(all))
	for _, p := range all {
		pods = append(pods, p)
	}
	slices.SortFunc(pods, func(a, b Pod) int {
		return cmp.Or(strings.Compare(a.Namespace, b.Namespace), strings.Compare(a.Name, b.Name))
	})
	if was := w.now.Load(); was != nil && slices.EqualFunc(*was, pods, Pod.equal) {
		return // most changes of a pod affect none of these
	}
	w.now.Store(&pods)
	select {
	case w.changed <- struct{}{}:
	default:
	}
}

func (p Pod) equal(o Pod) bool {
	return p.Namespace == o.Namespace && p.Name == o.Name && p.UID == o.UID && p.Workload == o.Workload &&
		p.HostNetwork == o.HostNetwork && p.Started.Equal(o.Started) && slices.Equal(p.IPs, o.IPs)
}

// apiPod is v1 Pod, as far as it is read.
type apiPod struct {
	Metadata objectMeta `json:"metadata"`
	Spec     struct {
		HostNetwork bool `json:"hostNetwork"`
	} `json:"spec"`
	Status struct {
		Phase     string `json:"phase"`
		StartTime string `json:"startTime"`
		PodIPs    []struct {
			IP string `json:"ip"`
		} `json:"podIPs"`
	} `json:"status"`
}

// maxPodIPs is more than the two addresses that Kubernetes gives a pod.
const maxPodIPs = 4

// decodePod is decode of a reflector.
func decodePod(raw []byte) (objectMeta, Pod, error) {
	var a apiPod
	if err := json.Unmarshal(raw, &a); err != nil {
		return objectMeta{}, Pod{}, err
	}
	m := a.Metadata
	p := Pod{Namespace: m.Namespace, Name: m.Name, UID: m.UID, HostNetwork: a.Spec.HostNetwork, Workload: workloadOf(m)}
	if t, err := time.Parse(time.RFC3339, a.Status.StartTime); err == nil {
		p.Started = t
	}
	if a.Status.Phase != "Succeeded" && a.Status.Phase != "Failed" {
		for _, ip := range a.Status.PodIPs[:min(len(a.Status.PodIPs), maxPodIPs)] {
			if addr, err := netip.ParseAddr(ip.IP); err == nil {
				p.IPs = append(p.IPs, addr.Unmap())
			}
		}
	}
	return objectMeta{Namespace: m.Namespace, Name: m.Name, ResourceVersion: m.ResourceVersion}, p, nil
}

// The longest kind and name that an object of Kubernetes can have (RFC 1035 labels, RFC 1123 subdomains).
const (
	maxKind = 63
	maxName = 253
)

// workloadOf returns the controller of a pod, if its name is valid: the API server accepts any text of any length
// here from users who may create pods, and it would be kept for each pod and shown in terminals.
func workloadOf(m objectMeta) Workload {
	w := ownerOf(m)
	odd := func(r rune) bool { return r <= ' ' || r > '~' }
	if len(w.Kind) > maxKind || len(w.Name) > maxName || strings.ContainsFunc(w.Kind, odd) || strings.ContainsFunc(w.Name, odd) {
		return Workload{}
	}
	return Workload{strings.Clone(w.Kind), strings.Clone(w.Name)}
}

// ownerOf returns the pod's statement about its controller. The controller of a Deployment's pod is a ReplicaSet,
// whose name is the Deployment's plus a hash that is also a label of the pod.
func ownerOf(m objectMeta) Workload {
	for _, o := range m.OwnerReferences {
		if o.Controller == nil || !*o.Controller {
			continue
		}
		if hash := m.Labels["pod-template-hash"]; o.Kind == "ReplicaSet" && hash != "" {
			if name, ok := strings.CutSuffix(o.Name, "-"+hash); ok && name != "" {
				return Workload{"Deployment", name}
			}
		}
		return Workload{o.Kind, o.Name}
	}
	return Workload{}
}
