package echo

import (
	"bytes"
	"context"
	"net"
	"testing"
	"time"
)

func TestEcho(t *testing.T) {
	for name, run := range map[string]func(context.Context, string) error{
		"single":  Single,
		"batched": func(ctx context.Context, addr string) error { return Batched(ctx, addr, 8) },
	} {
		t.Run(name, func(t *testing.T) {
			probe, err := net.ListenPacket("udp4", "127.0.0.1:0")
			if err != nil {
				t.Fatal(err)
			}
			addr := probe.LocalAddr().String()
			probe.Close()
			ctx, cancel := context.WithCancel(t.Context())
			ended := make(chan error, 1)
			go func() { ended <- run(ctx, addr) }()
			c, err := net.Dial("udp4", addr)
			if err != nil {
				t.Fatal(err)
			}
			defer c.Close()
			// More datagrams than a batch holds, of different lengths: no datagram may show remains of the previous
			// one.
			for i := range 20 {
				question := append(make([]byte, 12), bytes.Repeat([]byte{byte(i)}, 40-i)...)
				want := bytes.Clone(question)
				want[2] |= 0x80
				if got := ask(t, c, question); !bytes.Equal(got, want) {
					t.Fatalf("sent %x\n got %x\nwant %x", question, got, want)
				}
			}
			cancel()
			select {
			case err := <-ended:
				if err != nil {
					t.Error(err)
				}
			case <-time.After(10 * time.Second):
				t.Error("did not end with its context")
			}
		})
	}
}

// ask sends until there is a reply: the server may be starting.
func ask(t *testing.T, c net.Conn, q []byte) []byte {
	t.Helper()
	buf := make([]byte, 512)
	for range 200 {
		if _, err := c.Write(q); err == nil {
			if err := c.SetReadDeadline(time.Now().Add(200 * time.Millisecond)); err != nil {
				t.Fatal(err)
			}
			if n, err := c.Read(buf); err == nil {
				return buf[:n]
			}
		}
		time.Sleep(5 * time.Millisecond)
	}
	t.Fatal("no reply")
	return nil
}
