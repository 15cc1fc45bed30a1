# The lab's own world: one process that holds a network, a mount and a process namespace. Whatever the lab
# starts lives inside, and ends when that one process is ended.

holder_pid() { cat "$LAB_STATE/holder.pid" 2>/dev/null; }

lab_is_up() {
  local pid
  pid=$(holder_pid) && [[ -d /proc/$pid && $(tr '\0' ' ' <"/proc/$pid/cmdline") == *"$LAB_NAME-holder"* ]]
}

# inside COMMAND...: runs it in the lab's namespaces.
inside() {
  lab_is_up || die 'the lab is not up: run `tests/lab/lab up`'
  nsenter --target "$(holder_pid)" --mount --net --pid -- "$@"
}

# background NAME COMMAND...: starts it inside, its output in a log.
background() {
  local name=$1; shift
  inside setsid --fork "$@" >"$LAB_STATE/log/$name.log" 2>&1 </dev/null
}

namespace_up() {
  lab_is_up && return
  rm -f "$LAB_STATE/holder.pid"
  # The first process of a process namespace must reap the daemons that are left to it: bash does.
  # shellcheck disable=SC2016 # expanded inside
  setsid --fork unshare --net --mount --propagation private --pid --fork --kill-child --mount-proc \
    bash -c 'while :; do sleep 3600 & wait -n; done' "$LAB_NAME-holder" >/dev/null 2>&1 </dev/null
  wait_until 10 "the lab's namespaces" namespace_find
  # /sys must show this network namespace, and keep the control groups.
  mkdir -p "$LAB_STATE/cgroup"
  inside mount --rbind /sys/fs/cgroup "$LAB_STATE/cgroup"
  inside mount -t sysfs sysfs /sys
  inside mount --rbind "$LAB_STATE/cgroup" /sys/fs/cgroup
  inside ip link set lo up
  # A bridge without a MAC of its own takes that of a guest, and another when that one goes: the others then speak to
  # a gateway that is no more until their ARP entry ends, most of a minute.
  inside ip link add "$LAB_BRIDGE" address 52:54:00:c8:03:01 type bridge
  inside ip address add "$LAB_GATEWAY/24" dev "$LAB_BRIDGE"
  local version
  for version in "${LAB_VERSIONS[@]}"; do
    inside ip address add "${LAB_API_ADDRESS[$version]}/24" dev "$LAB_BRIDGE"
  done
  inside ip link set "$LAB_BRIDGE" up
}

# The holder is the child of the `unshare` that carries our name.
namespace_find() {
  local pid
  for pid in $(pgrep -f "^bash -c .*$LAB_NAME-holder"); do
    [[ $(readlink "/proc/$pid/ns/net") != $(readlink /proc/self/ns/net) ]] && echo "$pid" >"$LAB_STATE/holder.pid" && return 0
  done
  return 1
}

namespace_down() {
  lab_is_up || return 0
  local pid
  pid=$(holder_pid)
  kill -KILL "$pid"
  wait_until 20 'the lab to end' test ! -d "/proc/$pid"
}
