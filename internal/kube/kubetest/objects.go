package kubetest

import "strings"

// Endpoint is one endpoint of an EndpointSlice. A nil condition is omitted.
type Endpoint struct {
	Address                     string
	Ready, Serving, Terminating *bool
}

// Slice is an EndpointSlice of a Service of kube-dns's kind: ports dns and dns-tcp at 53, metrics at 9153.
func Slice(namespace, service, name string, endpoints ...Endpoint) Object {
	family := "IPv4"
	list := []Object{}
	for _, e := range endpoints {
		if strings.Contains(e.Address, ":") {
			family = "IPv6"
		}
		conditions := Object{}
		for name, v := range map[string]*bool{"ready": e.Ready, "serving": e.Serving, "terminating": e.Terminating} {
			if v != nil {
				conditions[name] = *v
			}
		}
		list = append(list, Object{"addresses": []string{e.Address}, "conditions": conditions, "nodeName": "n1"})
	}
	port := func(name, protocol string, number int) Object {
		return Object{"name": name, "protocol": protocol, "port": number}
	}
	return Object{
		"kind": "EndpointSlice", "apiVersion": "discovery.k8s.io/v1",
		"metadata": Object{"namespace": namespace, "name": name,
			"labels": Object{"kubernetes.io/service-name": service}},
		"addressType": family,
		"endpoints":   list,
		"ports":       []Object{port("metrics", "TCP", 9153), port("dns-tcp", "TCP", 53), port("dns", "UDP", 53)},
	}
}

// Ready are endpoints that are ready.
func Ready(addresses ...string) []Endpoint {
	yes := true
	var list []Endpoint
	for _, a := range addresses {
		list = append(list, Endpoint{Address: a, Ready: &yes, Serving: &yes})
	}
	return list
}
