// Package status holds the report of the node network's keeper: the state as last seen, errors by type and repairs by
// kind.
package status

import (
	"errors"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"

	"localcache.dev/localcache/internal/nodenet/rule"
)

// ErrorType is a label under which failures are counted. The first four are node-cache's, so that
// existing alerts keep working.
type ErrorType string

// The types of error.
const (
	ErrorIPTables       ErrorType = "iptables"
	ErrorIPTablesLock   ErrorType = "iptables_lock" // another program held the xtables lock too long
	ErrorInterfaceAdd   ErrorType = "interface_add" // a change of the interface or its addresses
	ErrorInterfaceCheck ErrorType = "interface_check"
	ErrorNFTables       ErrorType = "nftables"
	ErrorPresence       ErrorType = "presence"  // other localcache processes could not be looked for
	ErrorConntrack      ErrorType = "conntrack" // entries of flows that the fallback had carried could not be deleted
)

// ErrorTypes lists every type, so that a counter of each can exist from the start.
func ErrorTypes() []ErrorType {
	return []ErrorType{ErrorIPTables, ErrorIPTablesLock, ErrorInterfaceAdd, ErrorInterfaceCheck, ErrorNFTables, ErrorPresence, ErrorConntrack}
}

// RepairKind names what was wrong and was repaired while the process ran.
type RepairKind string

// The kinds of repair.
const (
	RepairLink      RepairKind = "link"      // the link was deleted
	RepairLinkDown  RepairKind = "link_down" // the link was set down
	RepairAddress   RepairKind = "address"   // an address was deleted from the link
	RepairSurplus   RepairKind = "surplus"   // an unwanted address was on the link
	RepairRules     RepairKind = "rules"     // rules were missing, superfluous, doubled or in the wrong order
	RepairLeftovers RepairKind = "leftovers" // localcache's rules in a backend that is not in use
)

// RepairKinds lists every kind, so that a counter of each can exist from the start.
func RepairKinds() []RepairKind {
	return []RepairKind{RepairLink, RepairLinkDown, RepairAddress, RepairSurplus, RepairRules, RepairLeftovers}
}

// SetupError is a failure to change or read the node's network, with the type that it is counted under.
type SetupError struct {
	Type ErrorType
	Err  error
}

func (e *SetupError) Error() string { return e.Err.Error() }

// Unwrap returns the cause.
func (e *SetupError) Unwrap() error { return e.Err }

// RulesError returns err of a backend as a SetupError of the right type.
func RulesError(backend string, err error) error {
	if err == nil {
		return nil
	}
	t := ErrorIPTables
	switch {
	case errors.Is(err, rule.ErrLocked):
		t = ErrorIPTablesLock
	case strings.HasPrefix(backend, rule.NFTables):
		t = ErrorNFTables
	}
	return &SetupError{Type: t, Err: err}
}

// Status is the state of the node's network as it was last seen. The maps hold every kind and type.
type Status struct {
	Interface        string       // "" before the first Prepare
	Kind             string       // of the link; "" where there is none or it is not ours to manage
	Up               bool         // the link exists and is up; true if localcache does not manage it
	AddressesMissing []netip.Addr // wanted, not on the node

	Backend string // the backend's name; "off" without rules, "" while a held lock keeps it unknown
	Why     string // that backend was chosen
	// RulesInPlace: the last reading found the rules that this process wants. True with notrack off.
	RulesInPlace bool
	// SocketMatch is true if NOTRACK depends on an open socket. If it is false although there are rules,
	// NoSocketMatch says why, and there is no fallback.
	SocketMatch   bool
	NoSocketMatch string
	Fallback      []netip.AddrPort // in force; empty without SocketMatch

	Keeper   bool // this process is the one that keeps the rules true
	Draining bool // new queries go to the fallback

	Repairs       map[RepairKind]uint64
	Errors        map[ErrorType]uint64
	LastError     string
	LastErrorTime time.Time
}

// Board holds the Status that Keeper's goroutines write and others read.
type Board struct {
	mu sync.Mutex
	s  Status
}

// NewBoard returns a Board with all counters at zero.
func NewBoard() *Board {
	b := &Board{s: Status{Repairs: map[RepairKind]uint64{}, Errors: map[ErrorType]uint64{}}}
	for _, k := range RepairKinds() {
		b.s.Repairs[k] = 0
	}
	for _, t := range ErrorTypes() {
		b.s.Errors[t] = 0
	}
	return b
}

// Snapshot returns a copy of the Status.
func (b *Board) Snapshot() Status {
	b.mu.Lock()
	defer b.mu.Unlock()
	s := b.s
	s.AddressesMissing = slices.Clone(s.AddressesMissing)
	s.Fallback = slices.Clone(s.Fallback)
	s.Repairs = maps.Clone(s.Repairs)
	s.Errors = maps.Clone(s.Errors)
	return s
}

// Update changes the Status under the lock.
func (b *Board) Update(f func(*Status)) {
	b.mu.Lock()
	defer b.mu.Unlock()
	f(&b.s)
}

// Repaired counts a repair.
func (b *Board) Repaired(k RepairKind) { b.Update(func(s *Status) { s.Repairs[k]++ }) }

// Failed counts each of the errors that err joins and returns it.
func (b *Board) Failed(err error) error {
	if err == nil {
		return nil
	}
	b.Update(func(s *Status) {
		for _, t := range errorTypesOf(err) {
			s.Errors[t]++
		}
		s.LastError, s.LastErrorTime = err.Error(), time.Now()
	})
	return err
}

// errorTypesOf lists the types of the SetupErrors in err, one for each failure.
func errorTypesOf(err error) []ErrorType {
	switch e := err.(type) { //nolint:errorlint // this is the walk that errors.As cannot do: through every branch
	case *SetupError:
		return []ErrorType{e.Type}
	case interface{ Unwrap() []error }:
		var types []ErrorType
		for _, part := range e.Unwrap() {
			types = append(types, errorTypesOf(part)...)
		}
		return types
	case interface{ Unwrap() error }:
		return errorTypesOf(e.Unwrap())
	}
	return nil
}
