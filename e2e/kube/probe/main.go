// The program probe is what runs in the pods of the cluster's tests. Where `probe count` asks, and how it
// counts, is in count.go; `probe lookup` resolves names through Go's own stub resolver (lookup.go).
package main

import (
	"fmt"
	"os"
	"os/signal"
	"syscall"
)

func main() {
	usage := func() {
		fmt.Fprintln(os.Stderr, "usage: probe sleep | count [FLAG...] | lookup KIND:NAME... | fill FILE PID")
		os.Exit(2)
	}
	if len(os.Args) < 2 {
		usage()
	}
	var err error
	switch os.Args[1] {
	case "sleep":
		end := make(chan os.Signal, 1)
		signal.Notify(end, syscall.SIGTERM, syscall.SIGINT)
		<-end
	case "count":
		err = count(os.Args[2:])
	case "lookup":
		lookup(os.Args[2:])
	case "fill":
		err = fill(os.Args[2:])
	default:
		usage()
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "probe:", err)
		os.Exit(1)
	}
}
