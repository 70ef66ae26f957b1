package api

import (
	"fmt"
	"net/http"
)

// Role is a permission. Each endpoint names the one that it needs, and an Access decides which ones a client has. The
// roles do not include each other, except RolePublic, which everybody has.
type Role uint8

// The roles.
const (
	// RolePublic is for content that is the same on every node and in every copy of the program: the files of the
	// page.
	RolePublic Role = iota
	// RoleAggregates is for counts of the node and of its upstreams, which name no client and nothing that one asked.
	RoleAggregates
	// RoleNames is for data about who asked what.
	RoleNames
	// RoleActions is for requests that change something or cause load elsewhere, such as a probe.
	RoleActions

	numRoles = iota
)

var roleNames = [numRoles]string{"public", "aggregates", "names", "actions"}

// String is the role's name, which is also the resource that Kubernetes knows it by.
func (r Role) String() string {
	if int(r) < len(roleNames) {
		return roleNames[r]
	}
	return fmt.Sprintf("role(%d)", uint8(r))
}

// unknownPathRole is the role for a path without an endpoint, so that unauthenticated clients do not learn which
// paths exist.
const unknownPathRole = RoleAggregates

// mounts are the handlers of a listener, by the patterns of http.ServeMux, and the role that each needs.
type mounts struct {
	mux   *http.ServeMux
	roles map[string]Role
}

func newMounts() *mounts { return &mounts{http.NewServeMux(), map[string]Role{}} }

// handle serves requests that match pattern for clients with the role.
func (m *mounts) handle(pattern string, role Role, h http.HandlerFunc) {
	m.mux.HandleFunc(pattern, h)
	m.roles[pattern] = role
}

// of returns the pattern that a request matches, empty if none, and the role that it needs.
func (m *mounts) of(r *http.Request) (pattern string, role Role) {
	_, pattern = m.mux.Handler(r)
	role, known := m.roles[pattern]
	if !known {
		return "", unknownPathRole
	}
	return pattern, role
}
