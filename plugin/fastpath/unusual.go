package fastpath

import (
	"errors"
	"io"
	"net"

	"github.com/miekg/dns"
)

// serveUnusual has a query admitted, refused or verified, and answered, by the code of CoreDNS's server: that of miekg/dns,
// with all that CoreDNS says to its own. It returns when the query is done with, which CoreDNS's server would tell nobody,
// so that the place in the pool is taken for as long.
func (x *exchange) serveUnusual() {
	stock := *x.socket.stock
	s := &dns.Server{
		PacketConn: &single{socket: x.socket, payload: x.own.payload[:x.own.size], from: remoteAddr(&x.peer)},
		Net:        "udp", UDPSize: stock.UDPSize, Handler: stock.Handler, DecorateWriter: stock.DecorateWriter,
		TsigProvider: stock.TsigProvider, TsigSecret: stock.TsigSecret,
		MsgAcceptFunc: stock.MsgAcceptFunc, MsgInvalidFunc: stock.MsgInvalidFunc,
	}
	if err := s.ActivateAndServe(); !errors.Is(err, io.EOF) {
		x.socket.plugin.log.Errorf("%s: an unusual query: %v", x.socket.address, err)
	}
}

// single is the net.PacketConn of a server that serves one datagram.
type single struct {
	*socket
	payload []byte
	from    *net.UDPAddr // nil when it was read
}

// ReadFrom implements net.PacketConn.
func (s *single) ReadFrom(b []byte) (int, net.Addr, error) {
	from := s.from
	if from == nil {
		return 0, nil, io.EOF
	}
	s.from = nil
	return copy(b, s.payload), from, nil
}

// Close implements net.PacketConn. The socket is still in use.
func (*single) Close() error { return nil }
