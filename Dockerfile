# The images of localcache.
#
#   docker build -t localcache .                                        no tools, rules through nftables
#   docker build -t localcache-iptables --target localcache-iptables .  with iptables, nft and legacy
#
# Both compile in the container. 'make image' takes the binary that 'make build' made instead (the
# targets prebuilt…), so that it needs no Go image and no second compilation, and for the image from
# scratch no network at all.

# --- compile: the binary from the sources, CA certificates (for tls:// upstreams) from the Go image.
FROM golang:1.26-trixie AS compile
WORKDIR /src
COPY . .
# Modules and compiled packages stay on the builder from one build to the next.
RUN --mount=type=cache,target=/go/pkg/mod --mount=type=cache,target=/root/.cache/go-build \
    CGO_ENABLED=0 go build -trimpath -buildvcs=auto -ldflags='-s -w' -o /out/localcache ./cmd/localcache \
 && mkdir -p /out/etc/ssl/certs \
 && cp /etc/ssl/certs/ca-certificates.crt /out/etc/ssl/certs/ \
 && cp LICENSE /out/

# --- iptables-base: for nodes whose own rules are iptables.
FROM debian:trixie-slim AS iptables-base
RUN apt-get update \
 && apt-get install -y --no-install-recommends iptables \
 && rm -rf /var/lib/apt/lists/* /var/cache/apt /var/log/apt /var/log/dpkg.log
ARG VERSION=devel
ARG REVISION=
LABEL org.opencontainers.image.title="localcache-iptables" \
      org.opencontainers.image.description="Node-local DNS cache for Kubernetes, with iptables" \
      org.opencontainers.image.url="https://localcache.dev" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}"
ENTRYPOINT ["/localcache"]

FROM iptables-base AS prebuilt-iptables
COPY bin/image/ /

FROM iptables-base AS localcache-iptables
COPY --from=compile /out/ /

# --- base: nothing but the binary, the certificates and the license.
FROM scratch AS base
ARG VERSION=devel
ARG REVISION=
LABEL org.opencontainers.image.title="localcache" \
      org.opencontainers.image.description="Node-local DNS cache for Kubernetes" \
      org.opencontainers.image.url="https://localcache.dev" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}"
ENTRYPOINT ["/localcache"]

# What deploy/image.sh laid out in bin/image.
FROM base AS prebuilt
COPY bin/image/ /

# The default target is the last one.
FROM base AS localcache
COPY --from=compile /out/ /
