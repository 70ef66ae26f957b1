// Package link creates and watches the interface that carries the local addresses. It creates the link if it is
// missing, adds the addresses, and reports events that concern them. It never replaces a link that another program
// created.
package link

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"localcache.dev/localcache/internal/nodenet/rule"
	"localcache.dev/localcache/internal/nodenet/status"
)

// Alias is the alias (IFLA_IFALIAS, `ip link show`) of a link that localcache created, so that an administrator sees
// its origin. Every address with a host mask on such a link belongs to localcache.
const Alias = "localcache"

// Link is the interface of one owner in the network namespace of the calling thread. It uses an existing link of that
// name, whatever its kind, and never replaces it, because sockets, routes or an administrator's choice may depend on
// it. It writes nothing that is already there, so that a link prepared by another program needs no NET_ADMIN.
type Link struct {
	Name  string
	log   rule.Logger
	Kinds []netlink.Link // in the order in which they are tried; see linkKinds
}

// New returns the Link of the given name. It changes nothing.
func New(name string, log rule.Logger) *Link {
	return &Link{Name: name, log: log, Kinds: linkKinds()}
}

// linkKinds returns the kinds of link to create if none of the name exists, best first. Each can answer on an IPv4
// and an IPv6 address, for the node itself and through a pod's veth (a test tries every kind that its kernel has):
// the kernel delivers to a local address whatever the state of the link. The order is that of their side effects:
//
//   - dummy drops what is sent to it, has no neighbours and is what people expect to find;
//   - ifb is equivalent here (NOARP, drops what was not redirected to it), but loading its module creates two more
//     links, ifb0 and ifb1;
//   - bridge exists on nearly every node that runs containers. Without a port it has no carrier on most kernels, shows
//     as DOWN, and attracts network daemons;
//   - veth exists on every node with pods, but needs a second link that has to be explained.
//
// Not used: macvlan and vlan need a parent link and end with it; vxlan and similar kinds open ports; tun needs
// /dev/net/tun; lo is shared by everything.
func linkKinds() []netlink.Link {
	return []netlink.Link{
		&netlink.Dummy{},
		&netlink.Ifb{},
		&netlink.Bridge{},
		// The kernel fills in the number of the peer's name.
		&netlink.Veth{PeerName: "veth%d"},
	}
}

// ForeignLinkError reports that an address that localcache should add is on another link, so that two owners would
// fight over it.
type ForeignLinkError struct {
	Addr netip.Addr
	Link string // the other link
	Ours bool   // made by localcache under another name
}

func (e *ForeignLinkError) Error() string {
	advice := "remove it there, or choose another address"
	if e.Ours {
		advice = "it is left from a localcache with another interface name: run `localcache teardown` for that name first"
	}
	return fmt.Sprintf("address %s is already on interface %s: %s", e.Addr, e.Link, advice)
}

// State is what Read found.
type State struct {
	Link    netlink.Link // nil: no link of the name
	Up      bool
	Missing []netip.Addr // wanted, not usable on the link
	broken  []netip.Addr // part of missing: on the link, but cannot be bound (IPv6 DAD)
	Surplus []netip.Addr // localcache's, not wanted
}

// Complete reports whether the link exists, is up and has all addresses.
func (s State) Complete() bool { return s.Link != nil && s.Up && len(s.Missing) == 0 }

// Kind returns the kind of the link; "" if there is none.
func (s State) Kind() string {
	if s.Link == nil {
		return ""
	}
	return s.Link.Type()
}

// Read compares the link with the addresses that it should carry. mine are addresses that this process added; they
// may be surplus on a link of another owner.
func (l *Link) Read(want, mine []netip.Addr) (State, error) {
	var s State
	s.Missing = slices.Clone(want)
	link, err := netlink.LinkByName(l.Name)
	if IsNoLink(err) {
		return s, nil
	}
	if err != nil {
		return s, l.Failed(status.ErrorInterfaceCheck, "read it", err)
	}
	s.Link = link
	s.Up = link.Attrs().Flags&net.FlagUp != 0
	addrs, err := listAddrs(link)
	if err != nil {
		return s, l.Failed(status.ErrorInterfaceCheck, "read its addresses", err)
	}
	ours := isOurs(link)
	for _, a := range addrs {
		ip, hostMask := addrOf(a)
		if i := slices.Index(s.Missing, ip); i >= 0 {
			// An address in duplicate address detection cannot be bound, and one that failed it never will be. On a
			// link without neighbours there is nothing to detect.
			if a.Flags&unix.IFA_F_DADFAILED != 0 || a.Flags&unix.IFA_F_TENTATIVE != 0 && a.Flags&unix.IFA_F_OPTIMISTIC == 0 {
				s.broken = append(s.broken, ip)
			} else {
				s.Missing = slices.Delete(s.Missing, i, i+1)
			}
		} else if hostMask && !slices.Contains(want, ip) && (ours || slices.Contains(mine, ip)) {
			s.Surplus = append(s.Surplus, ip)
		}
	}
	return s, nil
}

// Changes is what Ensure changed.
type Changes struct {
	Created bool
	SetUp   bool // an existing link was down
	Added   []netip.Addr
}

// Any reports whether anything was changed.
func (c Changes) Any() bool { return c.Created || c.SetUp || len(c.Added) > 0 }

// maxEnsure bounds how often Ensure starts again because the link was deleted meanwhile.
const maxEnsure = 3

// Ensure creates the link if needed, sets it up and adds want. It leaves other addresses alone. The returned changes
// are valid even with an error.
func (l *Link) Ensure(want, mine []netip.Addr) (s State, done Changes, err error) {
	for range maxEnsure {
		s, err = l.ensureOnce(want, mine, &done)
		if !IsNoLink(err) {
			break
		}
	}
	awaitRoutes(done.Added)
	return s, done, err
}

func (l *Link) ensureOnce(want, mine []netip.Addr, done *Changes) (State, error) {
	s, err := l.Read(want, mine)
	if err != nil {
		return s, err
	}
	if s.Link == nil {
		made, err := l.create()
		if err != nil {
			return s, err
		}
		done.Created = done.Created || made
		done.Added = nil // including what was already there
		if s, err = l.Read(want, mine); err == nil && s.Link == nil {
			err = l.Failed(status.ErrorInterfaceAdd, "create it", fmt.Errorf("it was deleted at once: %w", unix.ENODEV))
		}
		if err != nil {
			return s, err
		}
	}
	if s.Link.Attrs().Alias == "" && (done.Created || isOurs(s.Link)) {
		// Needed for a new link (the kernel takes no alias while it creates one) and for node-cache's link after a
		// migration.
		if err := netlink.LinkSetAlias(s.Link, Alias); err != nil && !IsNoLink(err) {
			l.log.Warningf("interface %s: its alias could not be set, so that a later process will not take it for its own: %v", l.Name, err)
		}
	}
	// The link is set up before addresses are added: the kernel removes IPv6 addresses from a link that is down.
	if !s.Up {
		if err := netlink.LinkSetUp(s.Link); err != nil {
			return s, l.Failed(status.ErrorInterfaceAdd, "set it up", err)
		}
		s.Up = true
		done.SetUp = !done.Created
	}
	var errs []error
	for _, a := range slices.Clone(s.Missing) {
		if slices.Contains(s.broken, a) {
			if err := netlink.AddrDel(s.Link, HostAddr(a)); err != nil && !errors.Is(err, unix.EADDRNOTAVAIL) {
				errs = append(errs, l.Failed(status.ErrorInterfaceAdd, fmt.Sprintf("renew address %s", a), err))
				continue
			}
		}
		if err := netlink.AddrAdd(s.Link, HostAddr(a)); err != nil && !errors.Is(err, unix.EEXIST) {
			errs = append(errs, l.Failed(status.ErrorInterfaceAdd, fmt.Sprintf("add address %s", a), err))
			continue
		}
		done.Added = append(done.Added, a)
		s.Missing = slices.DeleteFunc(s.Missing, func(m netip.Addr) bool { return m == a })
	}
	return s, errors.Join(errs...)
}

// create creates a link of the first kind that the kernel supports. It returns false if another process created the
// link first.
func (l *Link) create() (bool, error) {
	var errs []error
	for _, k := range l.Kinds {
		attrs := k.Attrs()
		*attrs = netlink.NewLinkAttrs()
		attrs.Name = l.Name
		err := netlink.LinkAdd(k)
		switch {
		case err == nil:
			if len(errs) > 0 {
				l.log.Infof("interface %s is of kind %s, because: %v", l.Name, k.Type(), errors.Join(errs...))
			}
			return true, nil
		case errors.Is(err, unix.EEXIST):
			return false, nil
		case errors.Is(err, unix.EPERM):
			return false, l.Failed(status.ErrorInterfaceAdd, "create it", err)
		case errors.Is(err, unix.EOPNOTSUPP):
			err = errors.New("the kernel has none (is there a module?)")
		}
		errs = append(errs, fmt.Errorf("kind %s: %w", k.Type(), err))
	}
	return false, l.Failed(status.ErrorInterfaceAdd, "create it", errors.Join(errs...))
}

// RemoveAddresses removes addresses from the link. A missing address is no error.
func (l *Link) RemoveAddresses(addrs []netip.Addr) ([]netip.Addr, error) {
	if len(addrs) == 0 {
		return nil, nil
	}
	link, err := netlink.LinkByName(l.Name)
	if IsNoLink(err) {
		return nil, nil
	}
	if err != nil {
		return nil, l.Failed(status.ErrorInterfaceCheck, "read it", err)
	}
	var removed []netip.Addr
	var errs []error
	for _, a := range addrs {
		err := netlink.AddrDel(link, HostAddr(a))
		switch {
		case err == nil:
			removed = append(removed, a)
		case !errors.Is(err, unix.EADDRNOTAVAIL):
			errs = append(errs, l.Failed(status.ErrorInterfaceAdd, fmt.Sprintf("remove address %s", a), err))
		}
	}
	return removed, errors.Join(errs...)
}

// Ours returns the addresses that Remove would remove.
func (l *Link) Ours(known []netip.Addr) ([]netip.Addr, error) {
	s, err := l.Read(nil, known)
	return s.Surplus, err
}

// Remove deletes the link if it is of a kind that is created for such a purpose and carries no addresses of others;
// else it removes the addresses of known, and returns why the link stays.
func (l *Link) Remove(known []netip.Addr) (removed []string, stays string, err error) {
	link, err := netlink.LinkByName(l.Name)
	if IsNoLink(err) {
		return nil, "", nil
	}
	if err != nil {
		return nil, "", l.Failed(status.ErrorInterfaceCheck, "read it", err)
	}
	if stays, err = whyKept(link, known); err != nil {
		return nil, "", l.Failed(status.ErrorInterfaceCheck, "see what it carries", err)
	}
	if stays != "" {
		// Every address on a link with localcache's alias belongs to it, named or not.
		s, err := l.Read(nil, known)
		if err != nil {
			return nil, stays, err
		}
		gone, err := l.RemoveAddresses(s.Surplus)
		for _, a := range gone {
			removed = append(removed, fmt.Sprintf("address %s of interface %s", a, l.Name))
		}
		return removed, stays, err
	}
	if err := netlink.LinkDel(link); err != nil && !IsNoLink(err) {
		return nil, "", l.Failed(status.ErrorInterfaceAdd, "delete it", err)
	}
	return []string{fmt.Sprintf("interface %s (%s)", l.Name, link.Type())}, "", nil
}

// whyKept returns why a link with localcache's interface name must not be deleted; "" if it may be. A link without
// the alias may carry known addresses only: the configured interface may be kube-ipvs0.
func whyKept(link netlink.Link, known []netip.Addr) (string, error) {
	kind := link.Type()
	if !slices.Contains([]string{"dummy", "ifb", "bridge", "veth", "macvlan"}, kind) {
		return fmt.Sprintf("it is of kind %s, which localcache never makes", kind), nil
	}
	if kind == "bridge" {
		links, err := linkList()
		if err != nil {
			return "", err
		}
		for _, other := range links {
			if other.Attrs().MasterIndex == link.Attrs().Index {
				return fmt.Sprintf("it is a bridge with a port, %s", other.Attrs().Name), nil
			}
		}
	}
	addrs, err := listAddrs(link)
	if err != nil {
		return "", err
	}
	for _, a := range addrs {
		ip, hostMask := addrOf(a)
		// The kernel adds its own fe80::/64 to every link.
		kernels := ip.Is6() && ip.IsLinkLocalUnicast() && !hostMask
		ours := hostMask && (isOurs(link) || slices.Contains(known, ip))
		if !kernels && !ours {
			return fmt.Sprintf("it carries %s, which localcache did not put there", a.IPNet), nil
		}
	}
	return "", nil
}

// CheckForeign returns a ForeignLinkError for each of addrs that is on a link of another name.
func (l *Link) CheckForeign(addrs []netip.Addr) error {
	all, err := listAddrs(nil)
	if err != nil {
		return l.Failed(status.ErrorInterfaceCheck, "read the node's addresses", err)
	}
	var errs []error
	for _, a := range all {
		ip, _ := addrOf(a)
		if !slices.Contains(addrs, ip) {
			continue
		}
		other, err := netlink.LinkByIndex(a.LinkIndex)
		if IsNoLink(err) || err == nil && other.Attrs().Name == l.Name {
			continue
		}
		if err != nil {
			errs = append(errs, l.Failed(status.ErrorInterfaceCheck, "read the link of "+ip.String(), err))
			continue
		}
		errs = append(errs, &status.SetupError{Type: status.ErrorInterfaceCheck,
			Err: &ForeignLinkError{Addr: ip, Link: other.Attrs().Name, Ours: other.Attrs().Alias == Alias}})
	}
	return errors.Join(errs...)
}

// MissingAnywhere returns those of addrs that are on no link at all.
func MissingAnywhere(addrs []netip.Addr) ([]netip.Addr, error) {
	all, err := listAddrs(nil)
	if err != nil {
		return nil, &status.SetupError{Type: status.ErrorInterfaceCheck, Err: fmt.Errorf("read the node's addresses: %w", err)}
	}
	missing := slices.Clone(addrs)
	for _, a := range all {
		ip, _ := addrOf(a)
		missing = slices.DeleteFunc(missing, func(m netip.Addr) bool { return m == ip })
	}
	return missing, nil
}

// Failed wraps an error of an operation on the link and says what to do about it.
func (l *Link) Failed(t status.ErrorType, doing string, err error) error {
	switch {
	case errors.Is(err, unix.EPERM):
		err = fmt.Errorf("%w: the process needs NET_ADMIN for that, or -setupinterface=false if another program creates the interface", err)
	case errors.Is(err, unix.EACCES), errors.Is(err, unix.EAFNOSUPPORT):
		err = fmt.Errorf("%w: is IPv6 switched off here (sysctl net.ipv6.conf.default.disable_ipv6)?", err)
	}
	return &status.SetupError{Type: t, Err: fmt.Errorf("interface %s: %s: %w", l.Name, doing, err)}
}
