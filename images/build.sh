# Guest images made from Debian packages of the mirror this machine is configured for, and the packages
# that guests install later, served to them by the lab's file server.

IMAGE_SOURCE=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
# shellcheck source=/dev/null
. "$IMAGE_SOURCE/tiny.sh"

# flavour -> suite, packages beyond the base, kernel command line. debian12 is the plain one: no cloud-init.
declare -A IMAGE_SUITE=([debian13]=trixie [debian12]=bookworm [tiny]=$TINY_SUITE)
declare -A IMAGE_EXTRA=([debian13]='cloud-init,netplan.io,systemd-resolved' [debian12]=ifupdown)
# A 1.18 kubelet knows only cgroup v1.
declare -A IMAGE_CMDLINE=([debian13]="" [debian12]=systemd.unified_cgroup_hierarchy=0)
declare -A IMAGE_SERVED=(
  [debian13]='containerd runc conntrack socat ethtool ebtables iptables containernetworking-plugins'
  [debian12]='docker.io conntrack socat ethtool ebtables iptables containernetworking-plugins'
)
# Variants: overlays on another flavour -> the one below, the packages added, what brings up the network instead of ifupdown.
declare -A IMAGE_BELOW=([debian12-netplan]=debian12 [debian12-networkd]=debian12 [debian12-networkmanager]=debian12)
declare -A IMAGE_ADDED=([debian12-netplan]=netplan.io [debian12-networkd]="" [debian12-networkmanager]=network-manager)
declare -A IMAGE_ENABLED=([debian12-netplan]="" [debian12-networkd]=systemd-networkd [debian12-networkmanager]=NetworkManager)
IMAGE_BASE=systemd-sysv,dbus,libpam-systemd,openssh-server,linux-image-cloud-amd64,iproute2,iputils-ping,curl,ca-certificates,cloud-guest-utils,fdisk,kmod,sudo,systemd-timesyncd,qemu-guest-agent

image_file() { echo "$LAB_CACHE/images/$1.qcow2"; }

# The Debian mirror of this machine's apt configuration; on another distribution it has to be named.
debian_mirror() {
  local uri
  uri=${NODEGRAFT_DEBIAN_MIRROR:-$(apt-get indextargets --format '$(ORIGIN) $(COMPONENT) $(REPO_URI)' 'Created-By: Packages' 2>/dev/null |
    awk '$1 == "Debian" && $2 == "main" && $3 !~ /security/ { print $3; exit }')}
  [[ $uri ]] || die 'no Debian mirror in the apt configuration: set NODEGRAFT_DEBIAN_MIRROR to the URL of one'
  echo "$uri"
}

# Another recipe, another image; and another image, other packages and variants.
image_build() {
  local flavour=$1 recipe variant
  recipe=$({ echo "${IMAGE_SUITE[$flavour]} $IMAGE_BASE ${IMAGE_EXTRA[$flavour]} ${IMAGE_CMDLINE[$flavour]}"; declare -f image_make image_fill image_customize; } | sha256sum)
  if [[ $(cat "$(image_file "$flavour").recipe" 2>/dev/null) != "$recipe" ]]; then
    own_remove "$LAB_CACHE/served/$flavour"
    rm -f "$LAB_CACHE/images/$flavour"*
    timed "guest image $flavour (about 2 minutes, once)" image_make "$flavour"
    echo "$recipe" >"$(image_file "$flavour").recipe"
  fi
  [[ -f $LAB_CACHE/served/$flavour/Packages ]] || timed "packages for $flavour guests" image_packages "$flavour"
  for variant in $(image_variants "$flavour"); do
    [[ -f $(image_file "$variant") ]] || timed "guest image $variant (about a minute, once)" image_vary "$variant"
  done
}

# image_variants FLAVOUR: those that are overlays on it.
image_variants() {
  local variant
  for variant in "${!IMAGE_BELOW[@]}"; do
    [[ ${IMAGE_BELOW[$variant]} != "$1" ]] || echo "$variant"
  done
}

# An overlay beside the image below it, edited offline.
image_vary() {
  local variant=$1 below=${IMAGE_BELOW[$1]} debs=$LAB_CACHE/$1.debs edit=() kvm=()
  image_fetch "$below" "$debs" "${IMAGE_ADDED[$variant]}"
  (cd "$LAB_CACHE/images" && qemu-img create -q -f qcow2 -F qcow2 -b "$below.qcow2" "$variant.part")
  [[ -z ${IMAGE_ADDED[$variant]} ]] ||
    edit+=(--copy-in "$debs:/var/tmp" --run-command "dpkg --install /var/tmp/$variant.debs/*.deb && rm -rf /var/tmp/$variant.debs")
  edit+=(--run-command 'dpkg --purge ifupdown && rm -rf /etc/network/interfaces')
  [[ -z ${IMAGE_ENABLED[$variant]} ]] || edit+=(--run-command "systemctl enable ${IMAGE_ENABLED[$variant]}")
  # virt-customize itself starts a VM; where KVM does not really work it would hang.
  grep -qE '\b(vmx|svm)\b' /proc/cpuinfo || kvm=(LIBGUESTFS_BACKEND_SETTINGS=force_tcg)
  env LIBGUESTFS_BACKEND=direct "${kvm[@]}" virt-customize -a "$LAB_CACHE/images/$variant.part" --no-network "${edit[@]}" --truncate /etc/machine-id
  mv "$LAB_CACHE/images/$variant.part" "$(image_file "$variant")"
  own_remove "$debs"
}

image_make() {
  local flavour=$1 dir=$LAB_CACHE/images/work.$1 suite=${IMAGE_SUITE[$1]} raw root loop
  raw=$dir/disk.raw root=$dir/root
  mkdir -p "$root"
  truncate -s 3G "$raw"
  echo '2048,,83,*' | sfdisk -q "$raw"
  loop=$(losetup -f --show -o $((2048 * 512)) "$raw")
  # Undone by hand on every way out: a trap here would be lost in the caller's subshell.
  if image_fill "$flavour" "$suite" "$loop" "$root"; then
    umount "$root" && losetup -d "$loop"
  else
    umount -R "$root" || true
    losetup -d "$loop"
    return 1
  fi
  dd if=/usr/lib/EXTLINUX/mbr.bin of="$raw" conv=notrunc bs=440 count=1 status=none || dd if=/usr/lib/syslinux/mbr/mbr.bin of="$raw" conv=notrunc bs=440 count=1 status=none
  qemu-img convert -c -O qcow2 "$raw" "$dir/disk.qcow2"
  mv "$dir/disk.qcow2" "$(image_file "$flavour")"
  own_remove "$dir"
}

# Everything in here must fail as one: the caller tests it, which switches `set -e` off inside.
image_fill() {
  local flavour=$1 suite=$2 loop=$3 root=$4 kernel initrd
  # extlinux reads neither 64-bit nor checksummed file systems.
  mkfs.ext4 -q -L root -O '^64bit,^metadata_csum' "$loop" &&
    mount "$loop" "$root" &&
    mmdebstrap --variant=apt --include="$IMAGE_BASE,${IMAGE_EXTRA[$flavour]}" \
      --aptopt='Acquire::Languages "none"' --dpkgopt='path-exclude=/usr/share/man/*' \
      --dpkgopt='path-exclude=/usr/share/doc/*' --dpkgopt='path-exclude=/usr/share/locale/*' \
      "$suite" "$root" "$(debian_mirror)" &&
    mkdir -p "$LAB_CACHE/images" "$root/boot/extlinux" &&
    cp "$root/var/lib/dpkg/status" "$LAB_CACHE/images/$flavour.status" &&
    kernel=$(cd "$root/boot" && ls vmlinuz-*) && initrd=$(cd "$root/boot" && ls initrd.img-*) &&
    cat >"$root/boot/extlinux/extlinux.conf" <<CONF &&
DEFAULT linux
PROMPT 0
TIMEOUT 1
LABEL linux
  KERNEL /boot/$kernel
  INITRD /boot/$initrd
  APPEND root=LABEL=root rw console=ttyS0 ${IMAGE_CMDLINE[$flavour]}
CONF
    extlinux --install "$root/boot/extlinux" &&
    echo "deb [trusted=yes] http://$LAB_GATEWAY/$flavour/ ./" >"$root/etc/apt/sources.list" &&
    rm -f "$root"/etc/apt/sources.list.d/* "$root"/etc/ssh/ssh_host_* "$root"/var/lib/dbus/machine-id "$root"/etc/hostname &&
    : >"$root/etc/machine-id" &&
    echo 'LABEL=root / ext4 errors=remount-ro 0 1' >"$root/etc/fstab" &&
    image_customize "$flavour" "$root"
}

# What tells the flavours apart beyond their packages.
image_customize() {
  local root=$2
  [[ -d $root/etc/cloud ]] || return 0
  # Without this cloud-init asks every cloud's metadata address in turn.
  echo 'datasource_list: [NoCloud, None]' >"$root/etc/cloud/cloud.cfg.d/90-datasource.cfg"
}

# The packages a guest of this flavour can install: those the image lacks, with all they need.
image_packages() {
  local served=$LAB_CACHE/served/$1
  image_fetch "$1" "$served" "${IMAGE_SERVED[$1]}"
  cd "$served" && apt-ftparchive packages . >Packages.part && mv Packages.part Packages
}

# image_fetch FLAVOUR DIRECTORY PACKAGES: the .deb files that an image of this flavour lacks for them.
image_fetch() {
  local flavour=$1 dir=$2 apt=$2.apt
  mkdir -p "$apt"/{lists/partial,archives/partial} "$dir"
  echo "deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] $(debian_mirror) ${IMAGE_SUITE[$flavour]} main" >"$apt/sources.list"
  local options=(-o Dir::State::status="$LAB_CACHE/images/$flavour.status" -o Dir::State::lists="$apt/lists"
    -o Dir::Cache="$apt" -o Dir::Cache::archives="$apt/archives" -o Dir::Etc::sourcelist="$apt/sources.list"
    -o Dir::Etc::sourceparts=/dev/null -o Acquire::Languages=none -o APT::Architecture=amd64
    -o APT::Install-Recommends=false -o APT::Sandbox::User=root -o Debug::NoLocking=1)
  apt-get "${options[@]}" update
  # shellcheck disable=SC2086 # a list of words on purpose
  apt-get "${options[@]}" -y --download-only install $3
  find "$apt/archives" -name '*.deb' -exec mv -t "$dir" {} +
  own_remove "$apt"
}
