# The lab's own libvirtd: its directories hide the host's inside the mount namespace.

libvirt_up() {
  virsh_lab version >/dev/null 2>&1 && return
  # libvirtd probes as root and later asks whether qemu's user may open /dev/kvm: where the answers differ it
  # probes again at every call, 17 s each. The lab's own node lets both in; the host's stays as it is.
  if [[ -e /dev/kvm ]]; then
    [[ -e $LAB_STATE/kvm ]] || mknod -m 666 "$LAB_STATE/kvm" c 10 232
    inside mount --bind "$LAB_STATE/kvm" /dev/kvm
  fi
  libvirt_start inside "$LAB_STATE/libvirt"
  wait_until 20 libvirtd virsh_lab version
}

# libvirt_start WHERE DIRECTORY: a libvirtd in the mount namespace that WHERE runs commands in, its state in a directory.
libvirt_start() {
  local where=$1 root=$2 dir pair
  for dir in run lib cache etc log lock; do mkdir -p "$root/$dir"; done
  cp -rn /etc/libvirt/. "$root/etc/" 2>/dev/null || true
  rm -f "$root"/etc/qemu/*.xml
  own_remove "$root"/etc/qemu/autostart "$root"/etc/qemu/networks "$root"/etc/storage
  # Guests of the lab need no confinement of their own, and the host's profiles do not know its paths.
  printf 'security_driver = "none"\nremember_owner = 0\n' >"$root/etc/qemu.conf"
  printf 'unix_sock_group = "root"\nauth_unix_rw = "none"\nlisten_tls = 0\n' >"$root/etc/libvirtd.conf"
  # Locks of consoles name processes of this namespace, and would outlive a lab that ends with one open.
  for pair in run:/run/libvirt lib:/var/lib/libvirt cache:/var/cache/libvirt etc:/etc/libvirt log:/var/log/libvirt lock:/run/lock; do
    mkdir -p "${pair#*:}"
    "$where" mount --bind "$root/${pair%%:*}" "${pair#*:}"
  done
  # Their pid files live in /run itself.
  "$where" virtlogd -d -p /run/libvirt/virtlogd.pid
  "$where" libvirtd -d -p /run/libvirt/libvirtd.pid
}

# Without a terminal, on which virsh would start an agent to ask for passwords.
virsh_lab() { setsid --wait virsh -q -c "$LAB_URI" "$@"; }

# The bridge again, as a libvirt network.
network_up() {
  virsh_lab net-info "$LAB_NETWORK" >/dev/null 2>&1 && return
  virsh_lab net-define /dev/stdin <<<"<network><name>$LAB_NETWORK</name><forward mode='bridge'/><bridge name='$LAB_BRIDGE'/></network>"
  virsh_lab net-start "$LAB_NETWORK"
}

# pool_up VERSION...: the pool, with the tiny template and those these versions need.
pool_up() {
  local version image
  pool_start virsh_lab "$LAB_POOL" "$LAB_STATE/pool"
  pool_add "$LAB_STATE/pool" tiny
  for version in "$@"; do
    for image in "${LAB_IMAGE[$version]}" $(image_variants "${LAB_IMAGE[$version]}"); do pool_add "$LAB_STATE/pool" "$image"; done
  done
  virsh_lab pool-refresh "$LAB_POOL"
}

# pool_start VIRSH NAME DIRECTORY
pool_start() {
  local virsh=$1 name=$2 target=$3
  mkdir -p "$target"
  "$virsh" pool-info "$name" >/dev/null 2>&1 || "$virsh" pool-define-as "$name" dir --target "$target"
  # Not by a pipe: `grep -q` would end virsh early, and that counts as a failure here.
  [[ $("$virsh" pool-info "$name") =~ State:\ +running ]] || "$virsh" pool-start "$name"
}

# pool_add DIRECTORY IMAGE: in the place of one of an older recipe, which guests that run keep open.
pool_add() {
  local target=$1/$2.qcow2
  [[ $target -nt $(image_file "$2") ]] && return
  cp --reflink=auto "$(image_file "$2")" "$target.part"
  chmod 644 "$target.part"
  mv "$target.part" "$target"
}

# A pool that a test can fill: 2 GiB, so that a node of one fits in by what it may take, on a sparse file: neither it nor
# what `fallocate` fills it with takes room on this machine.
full_pool_up() {
  local target=$LAB_STATE/fullpool disk=$LAB_STATE/fullpool.ext4
  mkdir -p "$target"
  if ! inside mountpoint -q "$target"; then
    truncate -s 2G "$disk"
    mkfs.ext4 -q -F -m 0 -O ^has_journal "$disk"
    inside mount -o loop "$disk" "$target"
    inside rmdir "$target/lost+found"
  fi
  inside test "$target/tiny.qcow2" -nt "$(image_file tiny)" || inside cp "$(image_file tiny)" "$target/tiny.qcow2"
  pool_start virsh_lab fullpool "$target"
  virsh_lab pool-refresh fullpool
}
