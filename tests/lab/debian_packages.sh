# What the lab needs from Debian or Ubuntu. Installs only what is missing, and says what that is.

LAB_PACKAGES=(
  build-essential pkg-config libssl-dev zlib1g-dev libvirt-dev
  libvirt-daemon-system libvirt-clients qemu-system-x86 qemu-utils dnsmasq-base
  mmdebstrap debian-archive-keyring extlinux syslinux-common fdisk e2fsprogs
  apt-utils dpkg-dev iproute2 iptables kmod cpio util-linux procps curl openssl openssh-server openssh-client
  etcd-server busybox-static shellcheck guestfs-tools
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

# A package that starts a service must not start one on this machine for the lab's sake. The guard outlives whoever is
# killed: it waits for the install itself, which lives in a process namespace that ends as one. All of these hold the lock.
packages_apt() {
  local status=0
  packages_guarded "$@" || status=$?
  flock "$PACKAGES_LOCK" true
  return $status
}

packages_guarded() (
  exec 9>"$PACKAGES_LOCK"
  flock 9
  if [[ ! -e $PACKAGES_POLICY ]] || packages_policy_is_ours; then
    # shellcheck disable=SC2016 # expanded there
    setsid --fork bash -c 'tail -s 0.1 --pid="$1" -f /dev/null; rm -f "$2"' guard "$BASHPID" "$PACKAGES_POLICY" </dev/null >/dev/null 2>&1
    printf '#!/bin/sh\n%s\nexit 101\n' "$PACKAGES_POLICY_IS_OURS" >"$PACKAGES_POLICY"
    chmod 755 "$PACKAGES_POLICY"
  fi
  # An install that was killed left packages half configured.
  # shellcheck disable=SC2016 # expanded there
  DEBIAN_FRONTEND=noninteractive exec unshare --pid --fork --kill-child --mount-proc \
    bash -c 'dpkg --configure -a && exec apt-get -o DPkg::Lock::Timeout=600 install -y --no-install-recommends "$@"' apt "$@"
)

PACKAGES_LOCK=/run/nodegraft-packages.lock
PACKAGES_POLICY=/usr/sbin/policy-rc.d
PACKAGES_POLICY_IS_OURS='# Of the lab of nodegraft, for as long as it installs packages.'

# One that a crash of the machine left may go with ours.
packages_policy_is_ours() { grep -qxF "$PACKAGES_POLICY_IS_OURS" "$PACKAGES_POLICY"; }

# The backports suite of the mirror this machine is configured for.
packages_add_backports() {
  local codename mirror
  codename=$(. /etc/os-release && echo "$VERSION_CODENAME")
  mirror=$(apt-get indextargets --format '$(ORIGIN) $(REPO_URI)' 'Created-By: Packages' | awk '$1 == "Debian" && $2 !~ /security/ { print $2; exit }')
  [[ $(apt-get indextargets --format '$(CODENAME)') == *-backports* ]] && return
  echo "deb $mirror $codename-backports main" >/etc/apt/sources.list.d/nodegraft-lab-backports.list
  timed 'apt-get update (backports)' apt-get update
}
