# The tiny guest: boots in seconds where a Debian takes a minute. A kernel, a shell, dropbear; not for a kubelet.
# Its files are in `tiny/`, its programs and modules come from Debian packages, unpacked and never installed.

TINY_SUITE=bookworm
TINY_PACKAGES=(linux-image-cloud-amd64 busybox-static dash bash coreutils util-linux grep sed e2fsprogs dropbear-bin)
# What steps and tests may count on; everything else is busybox.
TINY_PROGRAMS=(dash bash flock setsid grep sed resize2fs dropbear dropbearconvert)
TINY_MODULES=(virtio_pci virtio_blk virtio_net virtio_rng ext4 vfat nls_ascii nls_iso8859-1 nls_cp437 button evdev)

tiny_build() {
  local recipe
  recipe=$({ echo "$TINY_SUITE ${TINY_PACKAGES[*]} ${TINY_PROGRAMS[*]} ${TINY_MODULES[*]}"
    cat "$IMAGE_SOURCE"/tiny/*; declare -f tiny_make tiny_tree tiny_unpack tiny_program tiny_initramfs tiny_disk tiny_boot; } | sha256sum)
  [[ $(cat "$(image_file tiny).recipe" 2>/dev/null) != "$recipe" ]] || return 0
  timed 'guest image tiny (half a minute, once)' tiny_make
  echo "$recipe" >"$(image_file tiny).recipe"
}

tiny_make() {
  local dir=$LAB_CACHE/images/work.tiny
  own_remove "$dir"
  mkdir -p "$dir"
  tiny_unpack "$dir" && tiny_tree "$dir/packages" "$dir/tree" && tiny_initramfs "$dir/packages" "$dir/initramfs" "$dir/tree/boot" &&
    tiny_disk "$dir/tree" "$dir/disk.raw" && qemu-img convert -c -O qcow2 "$dir/disk.raw" "$dir/disk.qcow2" &&
    mv "$dir/disk.qcow2" "$(image_file tiny)" && own_remove "$dir"
}

# The packages with all they need, as files below DIR/packages.
tiny_unpack() {
  local dir=$1 root=$1/packages package
  # Against an empty list of what is installed.
  : >"$LAB_CACHE/images/tiny.status"
  image_fetch tiny "$dir/debs" "${TINY_PACKAGES[*]}" || return
  mkdir -p "$root"/usr/{bin,sbin,lib,lib64}
  ln -s usr/bin usr/sbin usr/lib usr/lib64 "$root"
  # dpkg-deb itself would put directories in the place of those links.
  for package in "$dir"/debs/*.deb; do dpkg-deb --fsys-tarfile "$package" | tar -x --keep-directory-symlink -C "$root" || return; done
}

# tiny_tree PACKAGES TREE: the root file system.
tiny_tree() {
  local from=$1 to=$2 program
  mkdir -p "$to"/{boot/extlinux,dev,etc/acpi/PWRF,etc/dropbear,proc,root/.ssh,run,sys,tmp,usr/bin,usr/lib,usr/lib64,usr/sbin,var/lib/nodegraft,var/log} &&
    ln -s usr/bin usr/sbin usr/lib usr/lib64 "$to" &&
    cp "$from/bin/busybox" "$to/usr/bin/busybox" &&
    chroot "$to" /usr/bin/busybox --install -s /usr/bin &&
    # Debian's steps expect GNU's options here.
    while read -r program; do tiny_program "$from" "$to" "$program" || return; done < <(printf '%s\n' "${TINY_PROGRAMS[@]}"; tiny_coreutils "$from") &&
    # The shell of busybox would take its own programs before those.
    ln -sf dash "$to/usr/bin/sh" &&
    for program in init reboot poweroff halt; do ln -sf ../bin/busybox "$to/usr/sbin/$program" || return; done &&
    install -m 755 "$IMAGE_SOURCE/tiny/rc" "$IMAGE_SOURCE/tiny/stop" "$to/etc" &&
    install -m 644 "$IMAGE_SOURCE/tiny/inittab" "$to/etc/inittab" &&
    install -m 755 "$IMAGE_SOURCE/tiny/power" "$to/etc/acpi/PWRF/00000080" &&
    echo 'root:x:0:0:root:/root:/bin/bash' >"$to/etc/passwd" &&
    echo 'root:x:0:' >"$to/etc/group" &&
    printf '/bin/sh\n/bin/bash\n' >"$to/etc/shells"
}

tiny_coreutils() { dpkg-deb --contents "${1%/*}"/debs/coreutils_*.deb | sed -n 's#.* \./\(usr/\)\{0,1\}bin/\([^/ ][^/ ]*\).*#\2#p'; }

# tiny_program PACKAGES TREE NAME: a program and the libraries that its loader names.
tiny_program() {
  local from=$1 to=$2 path library
  path=$(cd "$from/usr" && find bin sbin -name "$3" | head -n 1)
  [[ $path ]] || { echo "no package has the program $3"; return 1; }
  # The link that busybox left there would be followed.
  rm -f "$to/usr/$path" "$to/usr/bin/$3"
  cp -P "$from/usr/$path" "$to/usr/$path" || return
  for library in $(chroot "$from" /lib64/ld-linux-x86-64.so.2 --list "/usr/$path" 2>/dev/null | grep -o '/[^ ]*'); do
    [[ -e $to/$library ]] || install -D "$from/$library" "$to/$library" || return
  done
}

# tiny_initramfs PACKAGES DIR BOOT: busybox and the modules, in the order in which they load; and the kernel.
tiny_initramfs() {
  local from=$1 dir=$2 boot=$3 version module
  version=$(cd "$from/lib/modules" && ls)
  mkdir -p "$dir"/{bin,dev,modules,proc,root,sys} &&
    cp "$from/bin/busybox" "$dir/bin/busybox" && install -m 755 "$IMAGE_SOURCE/tiny/init" "$dir/init" &&
    depmod -b "$from" "$version" || return
  while read -r module; do
    cp -n "$module" "$dir/modules/" || return
    echo "${module##*/}"
  done < <(for module in "${TINY_MODULES[@]}"; do
    modprobe -d "$from" -S "$version" --show-depends "$module" | sed -n 's/^insmod \([^ ]*\).*/\1/p'
  done | awk '!seen[$0]++') >"$dir/modules/order"
  [[ -s $dir/modules/order ]] && (cd "$dir" && find . | cpio --quiet -o -H newc | gzip -1 >"$boot/initramfs") &&
    cp "$from"/boot/vmlinuz-* "$boot/vmlinuz"
}

# tiny_disk TREE FILE: one partition, which the guest lets grow with its disk.
tiny_disk() {
  local tree=$1 disk=$2 mounted=$1.mounted status=0 loop
  truncate -s 96M "$disk" && echo '2048,,83,*' | sfdisk -q "$disk" && mkdir -p "$mounted" &&
    loop=$(losetup -f --show -o $((2048 * 512)) "$disk") || return
  mkfs.ext4 -q -F -b 4096 -L root -N 4096 -m 0 -O '^64bit,^metadata_csum' -d "$tree" "$loop" && mount "$loop" "$mounted" &&
    tiny_boot "$mounted" || status=$?
  umount "$mounted" || true
  losetup -d "$loop"
  ((status == 0)) && dd if=/usr/lib/EXTLINUX/mbr.bin of="$disk" conv=notrunc bs=440 count=1 status=none
}

tiny_boot() {
  cat >"$1/boot/extlinux/extlinux.conf" <<'CONF' && extlinux --install "$1/boot/extlinux"
DEFAULT linux
PROMPT 0
TIMEOUT 1
LABEL linux
  KERNEL /boot/vmlinuz
  INITRD /boot/initramfs
  APPEND console=ttyS0 loglevel=6 panic=5 mitigations=off
CONF
}
