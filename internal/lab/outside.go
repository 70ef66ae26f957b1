package lab

import (
	"errors"
	"fmt"
	"net"
	"os"

	"golang.org/x/sys/unix"
)

// envOutside tells the process inside whether it got the sockets of an Outside: set but empty means they are its
// files 3 and 4, otherwise it says why not.
const envOutside = "LOCALCACHE_LAB_OUTSIDE"

// Outside is the part of the machine's own network that a program keeps when it enters its world: a socket stays in
// the network in which it was opened. Through it a program at the machine, such as a browser, reaches the inside.
// Every user of the machine can connect, so access must be guarded.
type Outside struct {
	// Listener accepts on a free port of 127.0.0.1.
	Listener net.Listener
	// Conn is a connection to it from the machine's network, to check what is served there. It is the first one to be
	// accepted.
	Conn net.Conn
}

// EnterWithOutside is Enter for a program that must be reachable. outside is nil before it is inside. If the
// machine's loopback cannot be used it enters all the same, and err wraps ErrNoOutside.
func EnterWithOutside() (outside *Outside, inside bool, status int, err error) {
	if !insideWorld() {
		sockets, err := openOutside()
		reason := envOutside + "="
		if err != nil {
			reason += err.Error()
		}
		inside, status, err = enter(sockets, reason)
		return nil, inside, status, err
	}
	if inside, status, err = enter(nil); err != nil {
		return nil, inside, status, err
	}
	outside, err = takeOutside()
	return outside, inside, status, err
}

// ErrNoOutside says that the machine's loopback could not be listened on.
var ErrNoOutside = errors.New("the machine's loopback cannot be used")

// openOutside opens the sockets in the network of the caller.
func openOutside() ([]*os.File, error) {
	listener, err := net.ListenTCP("tcp4", &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		return nil, err
	}
	defer listener.Close() // the files are copies
	conn, err := net.DialTCP("tcp4", nil, listener.Addr().(*net.TCPAddr))
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	first, err := listener.File()
	if err != nil {
		return nil, err
	}
	second, err := conn.File()
	if err != nil {
		return nil, errors.Join(err, first.Close())
	}
	return []*os.File{first, second}, nil
}

// takeOutside makes sockets of the files that the parent has passed on.
func takeOutside() (*Outside, error) {
	reason, passed := os.LookupEnv(envOutside)
	if !passed || reason != "" {
		return nil, fmt.Errorf("%w: %s", ErrNoOutside, reason)
	}
	const firstExtra = 3 // os/exec: entry i of ExtraFiles becomes file descriptor 3+i
	for fd := firstExtra; fd < firstExtra+2; fd++ {
		unix.CloseOnExec(fd) // programs in the lab must not inherit them
	}
	listening, connected := os.NewFile(firstExtra, "outside"), os.NewFile(firstExtra+1, "outside")
	defer listening.Close() // package net makes copies
	defer connected.Close()
	listener, err := net.FileListener(listening)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrNoOutside, err)
	}
	conn, err := net.FileConn(connected)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("%w: %w", ErrNoOutside, err), listener.Close())
	}
	return &Outside{Listener: listener, Conn: conn}, nil
}
