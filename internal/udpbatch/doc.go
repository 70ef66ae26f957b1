// Package udpbatch reads and writes a UDP socket in batches: one recvmmsg(2) or sendmmsg(2) for up to as many
// datagrams as a batch holds. It allocates nothing once its buffers are made.
//
// The socket is a [net.UDPConn] that somebody else opened and goes on owning. It is used through its
// RawConn, so that Go's poller, deadlines and Close keep working, and the socket may be read and written
// by others at the same time.
//
// # Reading
//
// [Reader.Serve] calls back with each batch from within the poller's loop and does not look at the socket
// again after a batch that was not full: the next datagram wakes it. A busy node lives at a few thousand
// queries a second, where each datagram comes alone, and there the second look, which finds nothing, would be one of three
// system calls.
//
// # Which address a reply leaves from
//
// A socket bound to the unspecified address receives for all addresses of the machine, and the kernel would
// choose the source of a reply by its routes. With [Options].Local each datagram tells what address it was
// sent to (IP_PKTINFO in ip(7), IPV6_RECVPKTINFO in ipv6(7)), and a reply to its [Peer] leaves from there.
//
// # Errors
//
// A datagram that cannot be sent (its route is gone, a packet rule forbids it, a queue is full) is skipped and counted; it
// never keeps those behind it. What the kernel reports of datagrams sent earlier (ECONNREFUSED on a
// connected socket, udp(7)) is no error of reading.
package udpbatch
