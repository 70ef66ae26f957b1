#!/usr/bin/env bash
# Tests the diagnostics page in headless Chromium, with the real program and real DNS traffic. LOCALCACHE is a program
# that was built before, CHROMIUM another browser. Screenshots go to screenshots/.
set -euo pipefail
cd "$(dirname "$0")"

need() {
  echo "e2e/page: $1 is missing: $2" >&2
  exit 1
}
command -v node >/dev/null || need "Node.js 20 or later" "apt-get install nodejs npm"
[ "$(node -p 'parseInt(process.versions.node)')" -ge 20 ] || need "Node.js 20 or later" "this is $(node --version)"
command -v npm >/dev/null || need npm "apt-get install npm"
export CHROMIUM=${CHROMIUM:-$(command -v chromium || command -v chromium-browser || true)}
[ -x "$CHROMIUM" ] || need Chromium "apt-get install chromium, or set CHROMIUM"

npm ci --no-audit --no-fund --loglevel=error
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
if [ -z "${LOCALCACHE:-}" ]; then
  LOCALCACHE=$scratch/localcache
  (cd ../.. && CGO_ENABLED=0 go build -o "$LOCALCACHE" ./cmd/localcache)
fi
LOCALCACHE=$(realpath "$LOCALCACHE")
export LOCALCACHE
node --test --test-concurrency=1 --test-reporter=spec "$@"
