# The two commands: 'make run' shows localcache at work in a private lab, 'make test' tests it.
# 'make help' lists the others.

SHELL := /bin/bash
GO    ?= go
BIN   := bin/localcache

# An ordinary user's PATH often lacks the folder of iptables and nft.
export PATH := $(PATH):/usr/sbin:/sbin

# A static binary needs no C library. VCS stamping gives it its version.
BUILDFLAGS := -trimpath -buildvcs=auto -ldflags='-s -w'

.PHONY: help build run check test lint flaky e2e-uml e2e-deploy e2e-page e2e-coredns e2e-kube fuzz bench bench-peers image clean

help: ## list the targets
	@grep -hE '^[a-z0-9-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

build: ## build bin/localcache, static, and bin/localcache-demo
	@echo "building $(BIN) and $(BIN)-demo ..."
	@CGO_ENABLED=0 GOFLAGS= $(GO) build $(BUILDFLAGS) -o bin/ ./cmd/...
	@ls -l $(BIN) | awk '{printf "$(BIN): %.1f MB\n", $$5/1e6}'

run: build ## run localcache for real in a private lab; ARGS=--once to end by itself
	@$(BIN)-demo $(ARGS)

check: ## the inner loop, within a minute: gofmt, vet, lint, unit tests without race detector and network labs
	@$(MAKE) --no-print-directory lint
	$(GO) test -short ./...

# -count=1: some tests build and run the program, which go test's cache of results does not see.
test: ## run the tests; as root, or as an ordinary user through user namespaces
	@echo "testing with the race detector (the first build takes some minutes) ..."
	@.ci/gotest ./... -race -count=1 -timeout 20m

lint: ## gofmt, go vet, golangci-lint with the import rules, dead code
	@test -z "$$(gofmt -l . | tee /dev/stderr)" || { echo "gofmt -w the files above"; exit 1; }
	$(GO) vet ./...
	GOARCH=arm CGO_ENABLED=0 $(GO) vet ./cmd/...  # of 32 bits
	@"$$(.ci/tool golangci-lint)" run ./...
	@dead=$$("$$(.ci/tool deadcode)" -test ./...) && test -z "$$dead" || { echo "code that nothing reaches:"; echo "$$dead"; exit 1; }

flaky: ## run the tests of .ci/flaky.txt N times (20) under load
	@.ci/flaky $(or $(N),20)

e2e-uml: ## test in a User-Mode Linux kernel: real dummy device, full conntrack table
	@e2e/uml/run.sh

e2e-deploy: ## check deploy/ against the Kubernetes types and schemas
	cd e2e/deploy && $(GO) vet ./... && ../../.ci/gotest ./... -count=1  # its files lie outside the module, unseen by the cache

e2e-page: build ## test the page in Chromium (Node.js 20, npm and Debian's chromium)
	@LOCALCACHE=$(CURDIR)/$(BIN) e2e/page/run.sh

e2e-coredns: ## run CoreDNS's own tests with the fast path in every block
	cd e2e/coredns && $(GO) vet ./... && ../../.ci/gotest . -count=1 -v -args -suite

e2e-kube: ## deploy/ in a real two-node Kubernetes cluster, as root; RUN=TestNftables for the short part
	@e2e/kube/kubernetes/build.sh >/dev/null
	cd e2e/kube && $(GO) vet ./... && ../../.ci/gotest './image ./probe' -count=1 && ../../.ci/gotest . -count=1 -timeout 30m -v $(if $(RUN),-run '$(RUN)') -args -kube

fuzz: ## fuzz each parser of bytes from outside for FUZZTIME (10s)
	@.ci/fuzz $(or $(FUZZTIME),10s)

bench: build ## compare with other DNS caches, 15 min; ARGS=-quick 2 min, ARGS=-h flags, OUT=bench/results keeps the figures
	@echo "building the benchmark and stock CoreDNS ..."
	@CGO_ENABLED=0 GOFLAGS= $(GO) build $(BUILDFLAGS) -o bin/bench/ ./bench/dns ./bench/dns/stock
	@bin/bench/dns -out $(or $(OUT),bin/bench/results) $(ARGS)

bench-peers: ## install the caches that bench compares with (Debian packages, root; none is started)
	@bench/install-peers

image: build ## build the container image with docker, podman or buildah
	@deploy/image.sh

clean: ## remove what the targets above built
	rm -rf bin .cache .tools
