#!/usr/bin/env bash
# build.sh: builds the program kubernetes of this folder once per version, and links to it by the name of
# every program in it. Standard output is the path of the folder of links:
#
#   .cache/kube/VERSION        in the root of the repository, VERSION as in go.mod here
#
# Tests elsewhere in the repository that need an API server take this path from LOCALCACHE_KUBE_BIN.
# A first build compiles for some 12 minutes on one core and leaves 3 GB in GOCACHE; a second, in a fresh
# clone on the same machine, links for half a minute.
set -euo pipefail
cd "$(dirname "$0")"
root=$(cd ../../.. && pwd)
export CGO_ENABLED=0 GOFLAGS=
PATH=$PATH:/usr/local/go/bin

version=$(sed -n 's#^\s*k8s.io/kubernetes v\(.*\)#\1#p' go.mod)
out=$root/.cache/kube/$version
key=$( (go version; cat go.mod go.sum main.go build.sh) | sha256sum | cut -d' ' -f1)

mkdir -p "$out"
exec 9>"$out/.lock"
flock -n 9 || { echo "waiting for another build of Kubernetes $version ..." >&2; flock 9; }
if [ "$(cat "$out/.key" 2>/dev/null)" = "$key" ] && [ -x "$out/kubernetes" ]; then
  echo "$out"
  exit
fi

# The versions that a release build stamps: the kubelet and kubectl refuse to talk to version 0.0.
stamp="-s -w"
for package in k8s.io/component-base/version k8s.io/client-go/pkg/version; do
  minor=${version#*.}
  stamp+=" -X $package.gitVersion=v$version -X $package.gitMajor=${version%%.*} -X $package.gitMinor=${minor%%.*}"
  stamp+=" -X $package.gitTreeState=clean -X $package.buildDate=2026-01-01T00:00:00Z"
done

echo "downloading Kubernetes $version (92 MB when nothing is cached) ..." >&2
packages=$(nice go list -deps . | wc -l)
echo "building Kubernetes $version, $packages packages (12 minutes on one core when nothing is cached) ..." >&2
log=$(mktemp)
trap 'rm -f "$log"' EXIT
started=$SECONDS
nice go build -v -trimpath -buildvcs=false -ldflags "$stamp" -o "$out/kubernetes.new" . 2>&1 | tee "$log" |
  awk -v all="$packages" '/^[^ ]*[.\/][^ ]*$|^[a-z]+$/ { if (++n % 100 == 0) { print "  compiled " n " packages of at most " all; fflush() }; next } { print; fflush() }' >&2 ||
  { echo "building Kubernetes $version failed; its last words:" >&2; tail -n 20 "$log" >&2; exit 1; }

mv "$out/kubernetes.new" "$out/kubernetes"
for program in etcd kube-apiserver kube-controller-manager kube-scheduler kube-proxy kubelet kubectl; do
  ln -sf kubernetes "$out/$program"
done
echo "$key" >"$out/.key"
echo "built Kubernetes $version in $((SECONDS - started)) s: $(du -m "$out/kubernetes" | cut -f1) MB" >&2
echo "$out"
