package fleet

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"localcache.dev/localcache/internal/api"
	"localcache.dev/localcache/internal/apiclient/render"
	"localcache.dev/localcache/internal/cli"
)

const (
	// nodesAtATime nodes are asked in parallel: each needs a kubectl, some 50 MB and a tenth of a processor second.
	nodesAtATime = 8
	// podsAge is how long a list of pods is used for repeated requests with --watch.
	podsAge = 5 * time.Second
	// maxReasons bounds how many nodes' failures are printed.
	maxReasons = 10
	// slowProgress is the time after which progress is shown.
	slowProgress = time.Second
)

// Fleet asks the caches of all nodes of a cluster.
type Fleet struct {
	kubectl
	On                  bool
	selector, container string
	port                int
	timeout             time.Duration

	TokenFile string
	Stderr    io.Writer

	listed  time.Time
	targets []target
	remotes map[string]*api.Remote // by address
}

// Declare declares the flags.
func (f *Fleet) Declare(flags *flag.FlagSet) {
	flags.BoolVar(&f.On, "all-nodes", false, "ask the caches of all nodes of the cluster, which kubectl finds, and show them as one")
	flags.StringVar(&f.context, "context", "", "the `context` of the kubeconfig, as for kubectl")
	flags.StringVar(&f.kubeconfig, "kubeconfig", "", "the kubeconfig `file`, as for kubectl")
	flags.StringVar(&f.namespace, "cache-namespace", "kube-system", "the `namespace` of the cache's own pods")
	flags.StringVar(&f.selector, "selector", "k8s-app=node-local-dns", "the `labels` of the cache's own pods")
	flags.StringVar(&f.container, "container", "node-cache", "the `name` of the container in them")
	flags.IntVar(&f.port, "port", 9257, "ask at this TCP `port` of the pods, with --token-file where it is wanted there; without both by kubectl exec")
	flags.DurationVar(&f.timeout, "timeout", 10*time.Second, "`time` for each node to answer, at least 100ms")
}

// FlagNames are the flags that need --all-nodes.
var FlagNames = []string{"context", "kubeconfig", "cache-namespace", "selector", "container", "port", "timeout"}

// Check checks the flags together. given are those on the command line.
func (f *Fleet) Check(given map[string]bool) error {
	if !f.On {
		for _, name := range FlagNames {
			if given[name] {
				return fmt.Errorf("--%s is for --all-nodes", name)
			}
		}
		return nil
	}
	switch {
	case given["url"] || given["socket"]:
		return errors.New("--all-nodes finds the caches by itself: leave --url and --socket out")
	case f.namespace == "":
		return errors.New("--cache-namespace: a namespace is expected; in any, other pods could say that they are the cache")
	case f.selector == "" || f.container == "":
		return errors.New("--selector and --container: they cannot be empty")
	case f.port < 1 || f.port > 65535:
		return fmt.Errorf("--port %d: accepted is a port number from 1 to 65535", f.port)
	case f.timeout < 100*time.Millisecond:
		return fmt.Errorf("--timeout %v: at least 100ms", f.timeout)
	}
	if !given["port"] && f.TokenFile == "" {
		f.port = 0
	}
	return nil
}

// Reply is the result for one target: a part, or why there is none.
type Reply struct {
	*target
	Part *api.Part
	err  error
}

// unknown reports whether the node answered that it does not know the requested object.
func (r *Reply) unknown(g *api.Gather) bool {
	var e *api.Error
	return g.One() && errors.As(r.err, &e) && e.Code == http.StatusNotFound
}

// Document asks all nodes and returns the merged answer, also decoded into v.
func (f *Fleet) Document(ctx context.Context, path string, query url.Values, v any) ([]byte, error) {
	g, err := api.NewGather(path, query)
	if err != nil {
		return nil, err
	}
	replies, err := f.Ask(ctx, g, path)
	if err != nil {
		return nil, err
	}
	merged, err := f.Merge(g, replies)
	if err != nil {
		return nil, err
	}
	var raw bytes.Buffer
	encoder := json.NewEncoder(&raw)
	encoder.SetEscapeHTML(false)
	if err := encoder.Encode(merged); err != nil {
		return nil, err
	}
	return raw.Bytes(), json.Unmarshal(raw.Bytes(), v)
}

// Merge merges the replies, of which at least one is an answer.
func (f *Fleet) Merge(g *api.Gather, replies []Reply) (any, error) {
	var parts []*api.Part
	for i := range replies {
		if replies[i].Part != nil {
			parts = append(parts, replies[i].Part)
		}
	}
	return g.Merge(parts, missing(g, replies)...)
}

// Ask asks all nodes except those that just failed to answer another request. It fails if none answers.
func (f *Fleet) Ask(ctx context.Context, g *api.Gather, path string, before ...Reply) ([]Reply, error) {
	targets, err := f.find(ctx)
	if err != nil {
		return nil, err
	}
	replies := make([]Reply, len(targets))
	var done atomic.Int64
	stop := f.progress(&done, len(targets))
	free := make(chan struct{}, nodesAtATime)
	var running sync.WaitGroup
	for i := range targets {
		replies[i].target = &targets[i]
		if p := targets[i].Problem; p != "" {
			replies[i].err = errors.New(p)
		}
		for _, b := range before {
			if b.Pod == targets[i].Pod && b.err != nil {
				replies[i].err = b.err
			}
		}
		if replies[i].err != nil {
			done.Add(1)
			continue
		}
		free <- struct{}{} // those that have it end in time
		remote, err := f.remote(&targets[i])
		running.Go(func() {
			defer func() { <-free; done.Add(1) }()
			if replies[i].err = err; err == nil {
				replies[i].Part, replies[i].err = f.one(ctx, g, path, &targets[i], remote)
			}
		})
	}
	running.Wait()
	stop()
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	if slices.ContainsFunc(replies, func(r Reply) bool { return r.Part != nil }) {
		return replies, nil
	}
	return nil, f.noAnswer(ctx, g, replies)
}

// find finds the pods.
func (f *Fleet) find(ctx context.Context) ([]target, error) {
	if now := time.Now(); f.targets == nil || now.Sub(f.listed) > podsAge {
		targets, err := f.pods(ctx, f.selector, f.container, f.timeout)
		if err != nil {
			return nil, err
		}
		f.targets, f.listed = targets, now
	}
	return f.targets, nil
}

// remote returns how a target is asked directly; nil if by kubectl exec.
func (f *Fleet) remote(t *target) (*api.Remote, error) {
	if f.port == 0 {
		return nil, nil
	}
	if t.ip == "" {
		return nil, fmt.Errorf("its pod %s has no address yet", t.Pod)
	}
	if r := f.remotes[t.ip]; r != nil {
		return r, nil
	}
	r, err := api.NewRemote(api.RemoteOptions{URL: "http://" + net.JoinHostPort(t.ip, strconv.Itoa(f.port)), TokenFile: f.TokenFile})
	if err != nil {
		return nil, err
	}
	if f.remotes == nil {
		f.remotes = map[string]*api.Remote{}
	}
	f.remotes[t.ip] = r
	return r, nil
}

// one asks a target.
func (f *Fleet) one(ctx context.Context, g *api.Gather, path string, t *target, remote *api.Remote) (*api.Part, error) {
	ctx, cancel := context.WithTimeout(ctx, f.timeout)
	defer cancel()
	query := g.Query(t.Alone)
	var body []byte
	var err error
	if remote != nil {
		var raw json.RawMessage
		err = remote.Get(ctx, path, query, &raw)
		body = raw
	} else {
		body, err = f.exec(ctx, t, f.container, (&url.URL{Path: path, RawQuery: query.Encode()}).String())
	}
	if err != nil && errors.Is(ctx.Err(), context.DeadlineExceeded) {
		return nil, fmt.Errorf("no answer within %v", f.timeout)
	}
	var failed *kubectlFailed
	if errors.As(err, &failed) {
		// A cache that refuses says so in its answer; other errors have none.
		var refused *api.Error
		if _, e := g.Read(t.Node, t.Image, body); errors.As(e, &refused) {
			return nil, refused
		}
	}
	if err != nil {
		return nil, err
	}
	return g.Read(t.Node, t.Image, body)
}

// missing are notes about those that have not answered.
func missing(g *api.Gather, replies []Reply) (notes []string) {
	all, answered := map[string]bool{}, map[string]bool{}
	reasons := map[string][]string{}
	var order []string
	for i := range replies {
		r := &replies[i]
		node := r.Node
		if node == "" {
			node = r.Label()
		}
		all[node] = true
		if r.err == nil || r.unknown(g) {
			answered[node] = true
			continue
		}
		why := r.err.Error()
		if reasons[why] == nil {
			order = append(order, why)
		}
		reasons[why] = append(reasons[why], r.Label())
	}
	if len(order) == 0 {
		return nil
	}
	notes = []string{fmt.Sprintf("%d of %d nodes answered", len(answered), len(all))}
	for i, why := range order {
		if i == maxReasons {
			notes = append(notes, fmt.Sprintf("and %d more reasons", len(order)-i))
			break
		}
		notes = append(notes, api.NodeNames(reasons[why])+": "+why)
	}
	return notes
}

// noAnswer returns the error for the case that no node answered.
func (f *Fleet) noAnswer(ctx context.Context, g *api.Gather, replies []Reply) error {
	var refused *api.Error // by all in the same way
	same, exec := true, false
	for i := range replies {
		var e *api.Error
		var failed *kubectlFailed
		if !errors.As(replies[i].err, &e) || refused != nil && e.Reason != refused.Reason {
			same = false
		}
		if refused == nil {
			refused = e
		}
		if replies[i].unknown(g) {
			notFound := *e
			notFound.Message += ", nor any other node that answered"
			if notes := missing(g, replies); notes != nil {
				notFound.Message += " (" + strings.Join(notes, "; ") + ")"
			}
			return &notFound
		}
		exec = exec || errors.As(replies[i].err, &failed)
	}
	if same {
		return refused
	}
	e := &ClusterError{message: "no node answers: " + strings.Join(missing(g, replies)[1:], "; "), Status: cli.ExitFailed}
	switch {
	case exec && f.denied(ctx, "create", "pods", "--subresource=exec"):
		e.Hint = fmt.Sprintf("The right to create pods/exec in the namespace %s is missing. With --token-file or --port the caches are asked directly, where the Corefile has 'diag { listen }', and it is not needed.", f.namespace)
	case exec:
		e.Hint = "Do these pods run localcache, with 'diag' in its Corefile? --selector and --container say which they are."
	case f.port != 0:
		e.Hint = "The Corefile's 'diag { listen ADDRESS }' says where the caches listen; --port is its port."
	}
	return e
}

// progress shows progress on a terminal if it takes long, until stop is called.
func (f *Fleet) progress(done *atomic.Int64, all int) (stop func()) {
	if !render.Terminal(f.Stderr) {
		return func() {}
	}
	end, ended := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(ended)
		wait, shown := time.NewTimer(slowProgress), false
		defer wait.Stop()
		for {
			select {
			case <-end:
				if shown {
					fmt.Fprint(f.Stderr, "\r\x1b[K")
				}
				return
			case <-wait.C:
				fmt.Fprintf(f.Stderr, "\r\x1b[K%d of %d nodes have answered", done.Load(), all)
				shown = true
				wait.Reset(slowProgress / 4)
			}
		}
	}()
	return func() { close(end); <-ended }
}
