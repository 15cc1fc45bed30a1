# Where the lab keeps things and how it speaks. Sourced by every other file; starts nothing.

LAB_NAME=${NODEGRAFT_LAB_NAME:-nodegraft-lab}
# Slow to make, kept between runs: programs, packages, guest images.
LAB_CACHE=${NODEGRAFT_LAB_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/nodegraft-lab}
# Quick to make, gone after `lab down`. qemu runs as its own user and must be able to walk into it.
LAB_STATE=/var/lib/$LAB_NAME
# libguestfs keeps the little system it boots; beside everything else, so that it goes with the rest.
export LIBGUESTFS_CACHEDIR=$LAB_CACHE/guestfs
LAB_SOURCE=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)

LAB_BRIDGE=br0
LAB_GATEWAY=192.168.3.1
LAB_POOL=kvmimage
LAB_NETWORK=lab
LAB_URI="qemu+unix:///system?socket=$LAB_STATE/libvirt/run/libvirt-sock"
# Of the second host, where it is raised.
LAB_URI2="qemu+unix:///system?socket=$LAB_STATE/second/libvirt/run/libvirt-sock"

# Kubernetes version -> address of its API server. The first one is the default.
declare -A LAB_API_ADDRESS=([v1.35.4]=192.168.3.101 [v1.18.3]=192.168.3.102)
LAB_VERSIONS=(v1.35.4 v1.18.3)
# Kubernetes version -> the guest image that can run its kubelet.
declare -A LAB_IMAGE=([v1.35.4]=debian13 [v1.18.3]=debian12)

say() { printf '\033[2mlab\033[0m  %s\n' "$*" >&2; }
die() { printf 'lab: %s\n' "$*" >&2; exit 1; }

# timed WHAT COMMAND...: runs it with its output in a log, says how long it took, shows the end of the log on failure.
timed() {
  local what=$1 log start; shift
  mkdir -p "$LAB_CACHE/logs"
  log=$(tr -c 'a-zA-Z0-9.\n' '-' <<<"$what")
  # A file's name has 255 bytes at most.
  log=$LAB_CACHE/logs/${log:0:80}.log
  start=$SECONDS
  say "$what ..."
  if ! "$@" >"$log" 2>&1 </dev/null; then
    tail -n 25 "$log" >&2
    die "$what failed after $((SECONDS - start)) s; the whole log is $log"
  fi
  say "$what: $((SECONDS - start)) s"
}

# wait_until SECONDS WHAT COMMAND...: polls until the command succeeds.
wait_until() {
  local limit=$1 what=$2 start=$SECONDS; shift 2
  until "$@" >/dev/null 2>&1; do
    ((SECONDS - start < limit)) || die "waited $limit s for $what"
    sleep 0.1
  done
}
