package main

import (
	"context"
	"net/http"
	"time"

	"github.com/coredns/coredns/plugin/pkg/reuseport"
	"github.com/prometheus/client_golang/prometheus/promhttp"
)

// serveMetrics serves the process's metrics at -metrics-listen-address, like node-cache, and returns a func that ends
// it. During an upgrade two processes share the port. If another program has the port, DNS is served all the same.
func (s *server) serveMetrics() (stop func()) {
	addr := s.flags.metricsAddr
	if addr == "" || len(s.flags.localIPs) == 0 && !s.flags.given["metrics-listen-address"] {
		return func() {}
	}
	ln, err := reuseport.Listen("tcp", addr)
	if err != nil {
		s.log.Warningf("no metrics at -metrics-listen-address: %v", err)
		return func() {}
	}
	mux := http.NewServeMux()
	mux.Handle("/metrics", promhttp.Handler())
	srv := &http.Server{Handler: mux, ReadTimeout: 5 * time.Second, WriteTimeout: 30 * time.Second, IdleTimeout: time.Minute}
	done := make(chan struct{})
	go func() {
		defer close(done)
		if err := srv.Serve(ln); err != http.ErrServerClosed {
			s.log.Errorf("metrics at %s: %v", addr, err)
		}
	}()
	return func() {
		ctx, cancel := context.WithTimeout(context.Background(), time.Second)
		defer cancel()
		if srv.Shutdown(ctx) != nil {
			srv.Close()
		}
		<-done
	}
}
