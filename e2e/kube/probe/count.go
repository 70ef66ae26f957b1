package main

import (
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"strconv"
	"strings"
	"time"
)

// The counter asks every 5 ms over each of four ways, and waits 1 s for each answer, as long as an impatient
// stub resolver does.
const (
	interval = 5 * time.Millisecond
	patience = time.Second
)

// class is what a name is to the cache.
type class uint8

const (
	hot      class = iota // an internal name that is asked for all the time, so that it is in the cache
	fresh                 // an internal name that was never asked for, so that kube-dns has to answer
	external              // a name outside of the cluster, asked for all the time
	classes
)

var classNames = [classes]string{"internal, cached", "internal, new", "external"}

// nextName gives the name of the nth query and its class: two of four are hot.
func nextName(n uint64, outside string) (string, class) {
	switch n % 4 {
	case 1:
		// kube-dns knows every address as a pod ("pods insecure").
		r := rand.Uint32()
		return fmt.Sprintf("10-%d-%d-%d.default.pod.cluster.local.", 128+r>>24&127, r>>16&255, r>>8&255), fresh
	case 3:
		return outside, external
	}
	return "kubernetes.default.svc.cluster.local.", hot
}

// count asks until it is ended, and tells what it has counted over HTTP:
// GET /counts?since=NS&until=NS (Unix time) gives []Count for the queries that were sent in that time.
func count(args []string) error {
	flags := flag.NewFlagSet("count", flag.ExitOnError)
	server := flags.String("server", "", "the `address` to ask; default: the first of /etc/resolv.conf")
	outside := flags.String("external", "www.example.org.", "a name outside of the cluster")
	control := flags.String("control", "", "the `address` of a DNS server that no fault touches and that knows the external name")
	listen := flags.String("listen", ":8053", "where to tell the counts")
	if err := flags.Parse(args); err != nil {
		return err
	}
	if *control == "" {
		return errors.New("count needs -control")
	}
	if *server == "" {
		var err error
		if *server, err = nameserver("/etc/resolv.conf"); err != nil {
			return err
		}
	}
	target := net.JoinHostPort(*server, "53")
	var ways []*way
	for _, w := range []struct {
		name string
		ask  func(*way, string)
	}{
		{"UDP, a socket each", askUDP}, {"UDP, one socket", nil},
		{"TCP, a connection each", askTCP}, {"TCP, one connection", nil},
	} {
		ways = append(ways, &way{name: w.name, target: target, outside: *outside, ask: w.ask, records: make([]record, maxRecords)})
	}
	var err error
	if ways[1].ask, err = oneSocket(target, ways[1]); err != nil {
		return err
	}
	ways[3].ask = oneConnection(target, ways[3])
	// The control goes past every cache, the same way as the others otherwise.
	check := &way{name: "control", target: net.JoinHostPort(*control, "53"), outside: *outside, ask: askUDP,
		records: make([]record, maxRecords), onlyOutside: true}
	for _, w := range append(ways, check) {
		go w.run()
	}
	http.HandleFunc("/counts", func(w http.ResponseWriter, r *http.Request) {
		since, err1 := strconv.ParseInt(r.FormValue("since"), 10, 64)
		until, err2 := strconv.ParseInt(r.FormValue("until"), 10, 64)
		if err := errors.Join(err1, err2); err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
			return
		}
		stalls := check.stalls(since, until)
		var counts []Count
		for _, way := range ways {
			counts = append(counts, way.counts(since, until, stalls)...)
		}
		_ = json.NewEncoder(w).Encode(counts) // a reader that has gone away is its own business
	})
	return http.ListenAndServe(*listen, nil)
}

// nameserver reads the first server of a resolv.conf.
func nameserver(file string) (string, error) {
	content, err := os.ReadFile(file)
	if err != nil {
		return "", err
	}
	for line := range strings.Lines(string(content)) {
		if f := strings.Fields(line); len(f) == 2 && f[0] == "nameserver" {
			return f[1], nil
		}
	}
	return "", fmt.Errorf("%s names no server", file)
}

// fill takes memory of the cgroup that it runs in, in a file of a tmpfs, until the process PID is dead or
// nothing is left to take. It is small itself, so that the kernel kills somebody else.
func fill(args []string) error {
	if len(args) != 2 {
		return errors.New("fill needs a file and a PID")
	}
	f, err := os.Create(args[0])
	if err != nil {
		return err
	}
	defer os.Remove(args[0])
	defer f.Close()
	piece := make([]byte, 256<<10)
	for range 8 << 10 { // 2 GiB
		if _, err := os.Stat("/proc/" + args[1]); err != nil {
			return nil
		}
		if _, err := f.Write(piece); err != nil {
			return err
		}
	}
	return fmt.Errorf("process %s lives on after %d MiB", args[1], 2<<10)
}
