#!/usr/bin/env bash
# Builds the container image from bin/localcache. Run 'make build' first; 'make build image' does both.
#
#   deploy/image.sh [TARGET]     TARGET: localcache (default) or localcache-iptables
#
# IMAGE    name and tag of the image (default TARGET:dev)
# ENGINE   docker, podman or buildah (default: the first that is there and works)
# ARCHIVE  a file to write the image to as well, for nodes that load it without a registry
# FILES    a folder to put the image's files into; then no image is built
#
# Exit status 3 means that no engine was found.
set -euo pipefail
cd "$(dirname "$0")/.."

target=${1:-localcache}
case $target in
  localcache) stage=prebuilt ;;
  localcache-iptables) stage=prebuilt-iptables ;;
  *) echo "image.sh: no target $target; use localcache or localcache-iptables" >&2; exit 2 ;;
esac
image=${IMAGE:-$target:dev}
binary=bin/localcache

if [ ! -x "$binary" ]; then
  echo "image.sh: $binary does not exist: run 'make build' first" >&2
  exit 1
fi
# The scratch image has no C library and no loader.
if LC_ALL=C grep -qaE '/lib(32|64|x32)?/(ld-linux|ld-musl)[^/]*\.so' "$binary"; then
  echo "image.sh: $binary is linked dynamically and would not start in the image: run 'make build'" >&2
  exit 1
fi

# A client without its engine (docker without a daemon) cannot build, so each is asked for something that needs the
# engine.
works() {
  case $1 in
    docker) docker info ;;
    podman) podman info ;;
    buildah) buildah info ;;
    *) false ;;
  esac >/dev/null 2>&1
}
engine=
tried=()
[ -z "${FILES:-}" ] || engine=none
for e in ${ENGINE:-docker podman buildah}; do
  [ -z "$engine" ] || break
  if ! command -v "$e" >/dev/null; then
    tried+=("$e: not installed")
  elif ! works "$e"; then
    tried+=("$e: installed, but '$e info' fails")
  else
    engine=$e
    break
  fi
done
if [ -z "$engine" ]; then
  echo "image.sh: no engine here builds images:" >&2
  printf '  %s\n' "${tried[@]}" >&2
  echo "Install or start one of them, or name it: ENGINE=podman make image" >&2
  exit 3
fi

# The CA certificates, for tls:// upstreams, come from this machine, because the image has no base.
certs=
for f in "${SSL_CERT_FILE:-}" /etc/ssl/certs/ca-certificates.crt /etc/pki/tls/certs/ca-bundle.crt /etc/ssl/ca-bundle.pem /etc/ssl/cert.pem; do
  if [ -n "$f" ] && [ -s "$f" ]; then
    certs=$f
    break
  fi
done
if [ -z "$certs" ]; then
  echo "image.sh: no CA certificates on this machine: install ca-certificates, or name a file in SSL_CERT_FILE" >&2
  exit 1
fi

files=${FILES:-bin/image}
rm -rf bin/image
trap 'rm -rf bin/image' EXIT
install -D -m 0755 "$binary" "$files/localcache"
install -D -m 0644 "$certs" "$files/etc/ssl/certs/ca-certificates.crt"
install -D -m 0644 LICENSE "$files/LICENSE"
if [ "$engine" = none ]; then
  echo "laid out in $files"
  exit
fi

# The version is the binary's own; the first line reads "localcache VERSION".
version=$("$binary" version | awk 'NR == 1 {print $2}')
revision=$(git rev-parse --verify -q HEAD 2>/dev/null || true)

args=(--build-arg "VERSION=$version" --build-arg "REVISION=$revision" --target "$stage" -t "$image" .)
echo "building $image ($version) with $engine ..."
case $engine in
  # docker's classic builder would run every stage of the file, also those that compile.
  docker) DOCKER_BUILDKIT=1 docker build "${args[@]}" ;;
  podman) podman build --format docker "${args[@]}" ;;
  buildah) buildah build --format docker "${args[@]}" ;;
esac
echo "built $image"

if [ -n "${ARCHIVE:-}" ]; then
  rm -f "$ARCHIVE" # podman and buildah do not overwrite it
  case $engine in
    docker) docker save -o "$ARCHIVE" "$image" ;;
    podman) podman save -q --format docker-archive -o "$ARCHIVE" "$image" ;;
    buildah) buildah push -q "$image" "docker-archive:$ARCHIVE:$image" ;;
  esac
  echo "wrote $ARCHIVE"
fi
