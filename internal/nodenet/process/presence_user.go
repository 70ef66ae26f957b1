package process

import (
	"encoding/binary"
	"os"
	"slices"
	"syscall"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// From include/uapi/linux/unix_diag.h; see sock_diag(7).
const (
	unixDiagShowUID   = 0x40 // UDIAG_SHOW_UID
	unixDiagUID       = 7    // UNIX_DIAG_UID
	unixDiagReqSize   = 24   // struct unix_diag_req
	unixDiagMsgSize   = 16   // struct unix_diag_msg
	unixDiagAllStates = 0xffffffff
)

// unixDiagReq asks for every unix socket of the namespace with the user that it belongs to.
type unixDiagReq struct{}

func (unixDiagReq) Len() int { return unixDiagReqSize }

func (unixDiagReq) Serialize() []byte {
	b := make([]byte, unixDiagReqSize)
	b[0] = unix.AF_UNIX
	binary.NativeEndian.PutUint32(b[4:], unixDiagAllStates)
	binary.NativeEndian.PutUint32(b[12:], unixDiagShowUID)
	return b
}

// SocketUsers lists the users that the unix sockets in the network namespace of the calling thread belong
// to, by inode: those that opened them, as a process can give its socket to nobody else without CAP_CHOWN.
// The numbers are those of our user namespace, in which every user that it does not know is 65534.
//
// It returns nil where the kernel does not tell: before Linux 5.3, without the module unix_diag, or where
// a security module forbids to ask.
func SocketUsers() map[uint64]uint32 {
	req := nl.NewNetlinkRequest(unix.SOCK_DIAG_BY_FAMILY, unix.NLM_F_DUMP)
	req.AddData(unixDiagReq{})
	msgs, err := req.Execute(unix.NETLINK_SOCK_DIAG, 0)
	if err != nil {
		return nil
	}
	users := map[uint64]uint32{}
	for _, m := range msgs {
		if len(m) < unixDiagMsgSize {
			return nil
		}
		attrs, err := nl.ParseRouteAttr(m[unixDiagMsgSize:])
		if err != nil {
			return nil
		}
		i := slices.IndexFunc(attrs, func(a syscall.NetlinkRouteAttr) bool { return a.Attr.Type == unixDiagUID && len(a.Value) >= 4 })
		if i < 0 {
			return nil // an old kernel ignores what it does not know
		}
		users[uint64(binary.NativeEndian.Uint32(m[4:]))] = binary.NativeEndian.Uint32(attrs[i].Value)
	}
	return users
}

// socketUser returns the user that one unix socket belongs to. It is not known where the kernel does not
// tell, or the socket is closed.
func socketUser(inode uint64) (uid uint32, known bool) {
	uid, known = SocketUsers()[inode]
	return uid, known
}

// ownUser is the user that our own sockets belong to.
func ownUser() uint32 { return uint32(os.Geteuid()) }

// believed picks the peers whose sockets belong to our own user. Where the kernel does not tell it is
// all of them.
//
// A socket that is not listed was closed since its name was read. It may also be that the kernel skipped
// it, because another one was closed between two parts of the list, so a second list has to agree.
func believed(peers []Peer) []Peer {
	sure := map[uint64]bool{}
	for range 2 {
		if !slices.ContainsFunc(peers, func(p Peer) bool { return !sure[p.inode] }) {
			break
		}
		users := SocketUsers()
		if users == nil {
			return peers
		}
		peers = slices.DeleteFunc(peers, func(p Peer) bool {
			uid, listed := users[p.inode]
			if listed && uid == ownUser() {
				sure[p.inode] = true
			}
			return listed && uid != ownUser()
		})
	}
	return slices.DeleteFunc(peers, func(p Peer) bool { return !sure[p.inode] })
}
