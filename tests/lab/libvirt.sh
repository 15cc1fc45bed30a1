# The lab's own libvirtd: its directories hide the host's inside the mount namespace.

libvirt_up() {
  virsh_lab version >/dev/null 2>&1 && return
  local dir
  for dir in run lib cache etc log; do mkdir -p "$LAB_STATE/libvirt/$dir"; done
  cp -rn /etc/libvirt/. "$LAB_STATE/libvirt/etc/" 2>/dev/null || true
  rm -rf "$LAB_STATE"/libvirt/etc/qemu/autostart "$LAB_STATE"/libvirt/etc/qemu/networks/autostart "$LAB_STATE"/libvirt/etc/storage
  # Guests of the lab need no confinement of their own, and the host's profiles do not know its paths.
  printf 'security_driver = "none"\nremember_owner = 0\n' >"$LAB_STATE/libvirt/etc/qemu.conf"
  printf 'unix_sock_group = "root"\nauth_unix_rw = "none"\nlisten_tls = 0\n' >"$LAB_STATE/libvirt/etc/libvirtd.conf"
  local pair
  for pair in run:/run/libvirt lib:/var/lib/libvirt cache:/var/cache/libvirt etc:/etc/libvirt log:/var/log/libvirt; do
    mkdir -p "${pair#*:}"
    inside mount --bind "$LAB_STATE/libvirt/${pair%%:*}" "${pair#*:}"
  done
  # libvirtd probes as root and later asks whether qemu's user may open /dev/kvm: where the answers differ it
  # probes again at every call, 17 s each. The lab's own node lets both in; the host's stays as it is.
  if [[ -e /dev/kvm ]]; then
    [[ -e $LAB_STATE/kvm ]] || mknod -m 666 "$LAB_STATE/kvm" c 10 232
    inside mount --bind "$LAB_STATE/kvm" /dev/kvm
  fi
  # Their pid files live in /run itself.
  inside virtlogd -d -p /run/libvirt/virtlogd.pid
  inside libvirtd -d -p /run/libvirt/libvirtd.pid
  wait_until 20 libvirtd virsh_lab version
}

# Without a terminal, on which virsh would start an agent to ask for passwords.
virsh_lab() { setsid --wait virsh -q -c "$LAB_URI" "$@"; }

# The bridge again, as a libvirt network.
network_up() {
  virsh_lab net-info "$LAB_NETWORK" >/dev/null 2>&1 && return
  virsh_lab net-define /dev/stdin <<<"<network><name>$LAB_NETWORK</name><forward mode='bridge'/><bridge name='$LAB_BRIDGE'/></network>"
  virsh_lab net-start "$LAB_NETWORK"
}

# pool_up VERSION...: the pool, with the templates these versions need.
pool_up() {
  local version image target
  mkdir -p "$LAB_STATE/pool"
  virsh_lab pool-info "$LAB_POOL" >/dev/null 2>&1 ||
    virsh_lab pool-define-as "$LAB_POOL" dir --target "$LAB_STATE/pool"
  # Not by a pipe: `grep -q` would end virsh early, and that counts as a failure here.
  [[ $(virsh_lab pool-info "$LAB_POOL") =~ State:\ +running ]] || virsh_lab pool-start "$LAB_POOL"
  for version in "$@"; do
    for image in "${LAB_IMAGE[$version]}" $(image_variants "${LAB_IMAGE[$version]}"); do
      target=$LAB_STATE/pool/$image.qcow2
      [[ -f $target ]] || cp --reflink=auto "$(image_file "$image")" "$target"
      chmod 644 "$target"
    done
  done
  virsh_lab pool-refresh "$LAB_POOL"
}
