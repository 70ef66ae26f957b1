// Package kube asks the Kubernetes API server for the two things that a node-local cache can use: the endpoints of
// the Service in front of kube-dns, and the pods of this node. It is the only user of that API, and needs no other
// rights than list and watch on the one resource. Reviews of tokens (review.go) create no objects; they need the role
// system:auth-delegator.
//
// Nothing waits for the API server. A watch has a result or has none yet; once it has one it keeps it, whatever
// happens to the server, and follows changes within moments while the server is available. It never gives up, and
// never asks more often than its backoff allows.
//
// The package speaks the API itself, with net/http and encoding/json, which the program contains anyway: list, then
// watch from the list's version on (https://kubernetes.io/docs/reference/using-api/api-concepts/). client-go does the
// same with a decoder, a cache and a type for every resource: its REST client and informer for one resource make the
// binary 8.7 MB larger, its clientset 25 MB. This package adds 0.3 MB, and about 2 MB of resident memory while it
// watches; 3 MB with 110 pods and 5 MB with 250, of 12 KB each on the wire.
//
//   - Client sends requests: it reads the pod's token and certificate authority again for each, because both are
//     rotated, and bounds time and bytes.
//   - reflector keeps a map of small records equal to the server's objects: one goroutine, no locks.
//   - EndpointWatch and PodWatch turn objects into those records and return a snapshot to any goroutine.
package kube

// Logger is the part of a CoreDNS plugin logger that this package writes to.
type Logger interface {
	Infof(format string, v ...any)
	Warningf(format string, v ...any)
}
