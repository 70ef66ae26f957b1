#!/usr/bin/env bash
# update.sh VERSION: makes this module require that Kubernetes, such as 1.34.4.
#
# k8s.io/kubernetes takes its libraries from its own tree (staging/), by replace directives that a module
# which requires it does not inherit. The same libraries are published: version 0.34.4 of each goes with 1.34.4.
set -euo pipefail
cd "$(dirname "$0")"
version=${1:?usage: update.sh VERSION, such as 1.34.4}
export GOFLAGS=

gomod=$(go mod download -json "k8s.io/kubernetes@v$version" | sed -n 's/.*"GoMod": "\(.*\)",/\1/p')
{
  echo 'module localcache.dev/localcache/e2e/kube/kubernetes'
  echo
  sed -n '/^go [0-9]/p; /^godebug [^(]/p; /^godebug (/,/^)/p' "$gomod"
  echo
  echo "require k8s.io/kubernetes v$version"
  echo
  echo 'replace ('
  sed -nE "s#^\s*(k8s.io/[a-z0-9-]+) => ./staging/.*#\t\1 => \1 v0.${version#*.}#p" "$gomod" | sort -u
  echo ')'
} >go.mod.new
mv go.mod.new go.mod
rm -f go.sum
go mod tidy
