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

// SocketUsers returns the owners of the unix sockets in the network namespace of the calling thread, by inode. The
// owner is the user that opened the socket; giving it away needs CAP_CHOWN. The numbers are those of this user
// namespace, which shows every unknown user as 65534.
//
// It returns nil if the kernel does not report owners: before Linux 5.3, without the module unix_diag, or if a
// security module forbids the query.
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
			return nil // an old kernel ignores unknown requests
		}
		users[uint64(binary.NativeEndian.Uint32(m[4:]))] = binary.NativeEndian.Uint32(attrs[i].Value)
	}
	return users
}

// socketUser returns the owner of one unix socket. known is false if the kernel does not report it, or the socket is
// closed.
func socketUser(inode uint64) (uid uint32, known bool) {
	uid, known = SocketUsers()[inode]
	return uid, known
}

// ownUser is the user that our own sockets belong to.
func ownUser() uint32 { return uint32(os.Geteuid()) }

// believed returns the peers whose sockets belong to this process's user, or all peers if the kernel does not report
// owners.
//
// A socket that is missing from the list was closed after its name was read, or the kernel skipped it because another
// socket was closed between two parts of the list. So a second list must agree.
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
