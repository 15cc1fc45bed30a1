# What the lab needs from Debian or Ubuntu. Installs only what is missing, and says what that is.

LAB_PACKAGES=(
  build-essential pkg-config libssl-dev zlib1g-dev libvirt-dev
  libvirt-daemon-system libvirt-clients qemu-system-x86 qemu-utils dnsmasq-base
  mmdebstrap debian-archive-keyring extlinux syslinux-common fdisk e2fsprogs
  apt-utils dpkg-dev iproute2 iptables kmod cpio util-linux curl openssl openssh-server openssh-client
  etcd-server golang-1.19-go busybox-static shellcheck guestfs-tools
)
# libguestfs boots a kernel of this machine.
compgen -G '/boot/vmlinuz-*' >/dev/null || LAB_PACKAGES+=(linux-image-cloud-amd64)

packages_missing() {
  local package
  for package in "${LAB_PACKAGES[@]}"; do
    [[ $(dpkg-query -W -f '${db:Status-Status}' "$package" 2>/dev/null) == installed ]] || echo "$package"
  done
}

packages_install() {
  local missing backports=()
  mapfile -t missing < <(packages_missing)
  ((${#missing[@]})) || return 0
  ((EUID == 0)) || die "missing packages: ${missing[*]}; run as root, or install them yourself"
  timed 'apt-get update' apt-get update
  # Where qemu-utils came from backports, plain qemu-system-x86 would break it: take both from there.
  if [[ $(dpkg-query -W -f '${Version}' qemu-utils 2>/dev/null) == *bpo* ]]; then
    packages_add_backports
    backports=(-t "$(. /etc/os-release && echo "$VERSION_CODENAME")-backports")
  fi
  # A package that starts a service must not start one on this machine for the lab's sake.
  say "missing: ${missing[*]}"
  timed "install ${#missing[@]} packages" packages_apt "${backports[@]}" "${missing[@]}"
}

# A Go that can fetch the toolchain a module asks for, from the module proxy: 1.21 or later.
go_install() {
  local have=0 from=()
  have=$(go env GOVERSION 2>/dev/null | sed 's/^go//') || true
  dpkg --compare-versions "${have:-0}" ge 1.21 && return
  ((EUID == 0)) || die 'Go 1.21 or later is missing: run as root, or install it yourself'
  if ! dpkg --compare-versions "$(apt-cache policy golang-go | awk '/Candidate:/ {print $2}')" ge 2:1.21; then
    packages_add_backports
    from=(-t "$(. /etc/os-release && echo "$VERSION_CODENAME")-backports")
  fi
  timed 'install Go' packages_apt "${from[@]}" golang-go
}

packages_apt() {
  local policy=/usr/sbin/policy-rc.d ours=
  if [[ ! -e $policy ]]; then
    printf '#!/bin/sh\nexit 101\n' >"$policy" && chmod 755 "$policy" && ours=yes
  fi
  local status=0
  DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends "$@" || status=$?
  [[ -z $ours ]] || rm -f "$policy"
  return $status
}

# The backports suite of the mirror this machine is configured for.
packages_add_backports() {
  local codename mirror
  codename=$(. /etc/os-release && echo "$VERSION_CODENAME")
  mirror=$(apt-get indextargets --format '$(ORIGIN) $(REPO_URI)' 'Created-By: Packages' | awk '$1 == "Debian" && $2 !~ /security/ { print $2; exit }')
  [[ $(apt-get indextargets --format '$(CODENAME)') == *-backports* ]] && return
  echo "deb $mirror $codename-backports main" >/etc/apt/sources.list.d/nodegraft-lab-backports.list
  timed 'apt-get update (backports)' apt-get update
}
