# A second host: another libvirtd in a mount namespace of its own, on the same bridge, with a pool of its own.

second_pid() { cat "$LAB_STATE/second/holder.pid" 2>/dev/null; }

# second COMMAND...: runs it where the second host's libvirtd lives. The process number is of the lab's own namespace.
second() { inside nsenter --target "$(second_pid)" --mount -- "$@"; }

virsh_second() { setsid --wait virsh -q -c "$LAB_URI2" "$@"; }

second_host_up() {
  virsh_second version >/dev/null 2>&1 || second_host_start
  virsh_second net-info "$LAB_NETWORK" >/dev/null 2>&1 ||
    virsh_second net-define /dev/stdin <<<"<network><name>$LAB_NETWORK</name><forward mode='bridge'/><bridge name='$LAB_BRIDGE'/></network>"
  [[ $(virsh_second net-info "$LAB_NETWORK") =~ Active:\ +yes ]] || virsh_second net-start "$LAB_NETWORK"
  pool_start virsh_second "$LAB_POOL" "$LAB_STATE/second/pool"
  pool_add "$LAB_STATE/second/pool" tiny
  virsh_second pool-refresh "$LAB_POOL"
  say "second host: $LAB_URI2"
}

second_host_start() {
  mkdir -p "$LAB_STATE/second"
  rm -f "$LAB_STATE/second/holder.pid"
  # Without control groups: libvirt names them by a guest's number and name, and two hosts would share them.
  # shellcheck disable=SC2016 # expanded inside
  background second-holder unshare --mount --propagation private \
    bash -c 'umount -R -l /sys/fs/cgroup; echo $$ >"$1"; exec sleep infinity' second "$LAB_STATE/second/holder.pid"
  wait_until 10 "the second host's namespace" second true
  libvirt_start second "$LAB_STATE/second/libvirt"
  wait_until 20 'the second libvirtd' virsh_second version
}

# Its guests end with it.
second_host_down() {
  local guest
  [[ $(second_pid) ]] || return 0
  for guest in $(virsh_second list --name); do virsh_second destroy "$guest"; done
  for daemon in libvirtd virtlogd; do inside kill "$(cat "$LAB_STATE/second/libvirt/run/$daemon.pid")" || true; done
  inside kill "$(second_pid)" || true
  own_remove "$LAB_STATE/second"
}
