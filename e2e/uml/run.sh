#!/usr/bin/env bash
# Runs this folder's tests in a User-Mode Linux kernel: a real kernel that is an ordinary process, with a
# dummy device and a connection tracking table of its own. It needs no root, no /dev/kvm and no disk image:
# the guest sees this machine's / read-only (hostfs), and its first process is the test binary itself.
#
#   e2e/uml/run.sh [FLAG...]     flags for the test binary, such as -test.run=TestFullTable
#
# The kernel is Debian's package user-mode-linux, unpacked into .cache/uml (120 MB, fetched once). What a run
# writes goes there too and is removed at its end. The status is that of the tests.
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
cache=$root/.cache/uml
package=$cache/package
guest_time=170 # seconds for the guest from boot to power off
test_time=150s # for the tests in it: less, so that a test that hangs shows its stacks

fail() { printf 'e2e-uml: %s\n' "$*" >&2; exit 1; }

# A kernel command line has no quotes for paths.
[[ $root != *[[:space:]]* ]] || fail "the path of the source tree has white space in it: $root"
export PATH=$PATH:/usr/sbin:/sbin
for tool in iptables-legacy iptables-legacy-save ip6tables-legacy ip6tables-legacy-save; do
  command -v "$tool" >/dev/null || fail "$tool is missing; the guest has no nf_tables for IPv4 and uses this machine's programs: apt-get install iptables"
done

# Puts the kernel into .cache/uml/package. Lists and downloads of apt stay out of the machine's own places,
# so that an ordinary user can do it and nothing is left behind.
get_kernel() {
  local tool tmp
  for tool in apt-get dpkg-deb; do
    command -v "$tool" >/dev/null || fail "$tool is missing, so that the kernel cannot be fetched. Unpack Debian's package user-mode-linux into $package, so that $package/usr/bin/linux.uml exists"
  done
  echo "fetching the package user-mode-linux (41 MB, once) ..."
  tmp=$(mktemp -d "$cache/fetch.XXXXXX")
  trap 'rm -rf "$tmp"' EXIT
  mkdir -p "$tmp/lists/partial" "$tmp/archives/partial"
  local own=(-q -o Debug::NoLocking=true -o APT::Sandbox::User="$(id -un)"
    -o Dir::Cache="$tmp" -o Dir::Cache::archives="$tmp/archives")
  if ! (cd "$tmp" && apt-get "${own[@]}" download user-mode-linux) >"$tmp/log" 2>&1; then
    # This machine may have no package lists, or old ones.
    own+=(-o Dir::State::lists="$tmp/lists")
    if ! (cd "$tmp" && apt-get "${own[@]}" update && apt-get "${own[@]}" download user-mode-linux) >>"$tmp/log" 2>&1; then
      sed 's/^/  /' "$tmp/log" >&2
      fail "apt-get cannot fetch user-mode-linux (above is why; Debian has it for amd64 and i386). Unpack it by hand into $package"
    fi
  fi
  dpkg-deb -x "$tmp"/user-mode-linux_*.deb "$tmp/package" || fail "the package cannot be unpacked"
  rm -rf "$package"
  mv "$tmp/package" "$package"
  rm -rf "$tmp"
  trap - EXIT
}

mkdir -p "$cache"
[ -x "$package/usr/bin/linux.uml" ] || get_kernel
modules=$(echo "$package"/usr/lib/uml/modules/*)
[ -f "$modules/modules.dep" ] || fail "$package holds no modules, or those of several kernels: remove $cache and try again"

make --no-print-directory -C "$root" build
(cd "$root" && CGO_ENABLED=0 "${GO:-go}" test -c -o "$cache/uml.test" ./e2e/uml)

# timeout(1) makes itself the leader of a process group, to which it sends its signals. The kernel's
# processes, which are ordinary ones of this machine, are in it too.
run=$(mktemp -d "$cache/run.XXXXXX")
kernel=
cleanup() {
  local i
  if [ -n "$kernel" ]; then
    kill "$kernel" 2>/dev/null || true
    wait "$kernel" 2>/dev/null || true
    # Processes of the guest that outlive its kernel's first one do so for some milliseconds.
    for ((i = 0; i < 50; i++)); do
      kill -KILL -- "-$kernel" 2>/dev/null || break
      sleep 0.1
    done
  fi
  rm -rf "$run"
}
trap cleanup EXIT
trap 'exit 130' INT
trap 'exit 143' TERM HUP

echo "booting the kernel $(basename "$modules") ..."
started=$SECONDS
# The kernel's own words go to a file, those of the tests to the second console, which is our output.
# Without a place under uml_dir it would make one in the home directory.
timeout --kill-after=5 "$guest_time" "$package/usr/bin/linux.uml" \
  uml_dir="$run" umid=guest mem=512M con=null con0=null,fd:1 con1=null,fd:3 ssl=null quiet panic=-1 \
  rootfstype=hostfs rootflags=/ ro init="$cache/uml.test" -- \
  -init -modules="$modules" -localcache="$root/bin/localcache" -report="$run" \
  -test.v -test.timeout="$test_time" "$@" \
  3>&1 >"$run/console" 2>&1 </dev/null &
kernel=$!
ended=0
wait "$kernel" || ended=$?

if [ ! -s "$run/status" ]; then
  # The state of a processor with AMX is 11 KiB. This kernel has 3 KiB for it, and ptrace(2) does not restore
  # a part: the guest's first process dies when it is started. Nothing here can change that.
  if grep -qw amx_tile /proc/cpuinfo && grep -q put_fp_registers "$run/console"; then
    printf 'SKIP\te2e/uml\tUser-Mode Linux %s does not run on a processor with AMX: run it on another machine\n' "$(basename "$modules")"
    exit 0
  fi
  tail -n 30 "$run/console" | sed 's/^/  /' >&2
  [ "$ended" != 124 ] || fail "the guest did not end within $guest_time s; above are its last words"
  fail "the guest ended (status $ended) before the tests did; above are its last words"
fi
status=$(<"$run/status")
if [ "$status" = 0 ]; then
  printf 'ok  \te2e/uml\t%d s in kernel %s\n' $((SECONDS - started)) "$(basename "$modules")"
else
  printf 'FAIL\te2e/uml\tstatus %s after %d s in kernel %s\n' "$status" $((SECONDS - started)) "$(basename "$modules")"
fi
exit "$status"
