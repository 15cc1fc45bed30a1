#!/bin/sh
# The first boot of a guest without cloud-init: takes the machine's identity from the volume labelled CIDATA.
# Plain sh and what a minimal CentOS 7 or Debian has. Runs at every boot before the network comes up, and does
# something only once for each instance id. Each part is tried, whatever became of the others.
# shellcheck disable=SC2154 # the names of `identity`, which each part reads first
set -eu

state=/var/lib/nodegraft
seed=/run/nodegraft/seed
files=$seed/firstboot
parts='hostname machine_id login network root_filesystem'

say() { echo "nodegraft first boot: $*"; }
has() { command -v "$1" >/dev/null 2>&1; }
enabled() { systemctl is-enabled "$1" >/dev/null 2>&1; }

main() {
  # Both would read the same volume.
  if has cloud-init && [ ! -e /etc/cloud/cloud-init.disabled ]; then
    say 'left to cloud-init'
    return
  fi
  udevadm settle --timeout=30 || true
  if [ ! -e /dev/disk/by-label/CIDATA ]; then
    say 'no volume is labelled CIDATA: nothing to do'
    return
  fi
  mkdir -p "$seed" "$state"
  mount -t vfat -o ro /dev/disk/by-label/CIDATA "$seed"
  failed=
  if [ "$(cat "$state/instance" 2>/dev/null)" = "$(instance)" ]; then
    say 'done at an earlier boot'
  else
    # A shell of its own for each: `set -e` would mean nothing on the left of `||`.
    for part in $parts; do
      sh "$0" "$part" || failed="$failed $part"
    done
    [ "$failed" ] || instance >"$state/instance"
  fi
  umount "$seed"
  if [ "$failed" ]; then
    say "failed:$failed"
    exit 1
  fi
}

instance() { (. "$files/identity" && echo "$instance_id"); }

# put FILE TARGET MODE: whole or not at all, with the interface's name filled in.
put() {
  mkdir -p "${2%/*}"
  (umask 077 && sed "s/@NIC@/${nic:-}/g" "$files/$1" >"$2.part")
  chmod "$3" "$2.part"
  mv "$2.part" "$2"
  say "wrote $2"
}

# Kept beside the new one, where it has no effect.
set_aside() {
  [ ! -e "$1" ] || mv "$1" "$1.before-nodegraft"
}

hostname() {
  echo "$hostname" >/etc/hostname
  [ ! -w /proc/sys/kernel/hostname ] || echo "$hostname" >/proc/sys/kernel/hostname
  # A kubelet that cannot resolve localhost does not stay up.
  grep -qw localhost /etc/hosts 2>/dev/null || echo '127.0.0.1 localhost' >>/etc/hosts
  grep -qw -- "$hostname" /etc/hosts 2>/dev/null || echo "127.0.1.1 $hostname" >>/etc/hosts
}

machine_id() {
  [ "$(cat /etc/machine-id 2>/dev/null)" != "$machine_id" ] || return 0
  # systemd may have laid a passing one over an empty file.
  umount /etc/machine-id 2>/dev/null || true
  echo "$machine_id" >/etc/machine-id
  systemctl restart --no-block systemd-journald
}

login() {
  id "$user" >/dev/null 2>&1 || useradd -m -U -s /bin/bash "$user"
  if [ "$user" != root ]; then
    mkdir -p /etc/sudoers.d
    echo "$user ALL=(ALL) NOPASSWD:ALL" >/etc/sudoers.d/nodegraft
    chmod 440 /etc/sudoers.d/nodegraft
  fi
  home=$(getent passwd "$user" | cut -d: -f6)
  mkdir -p "$home/.ssh"
  touch "$home/.ssh/authorized_keys"
  while read -r key; do
    grep -qxF -- "$key" "$home/.ssh/authorized_keys" || echo "$key" >>"$home/.ssh/authorized_keys"
  done <"$files/authorized_keys"
  chmod 700 "$home/.ssh"
  chmod 600 "$home/.ssh/authorized_keys"
  chown -R "$user" "$home/.ssh"
  # Clones would share the template's host keys; this one is known to who logs in. It is in the seed once.
  if [ -s "$files/host_key" ]; then
    rm -f /etc/ssh/ssh_host_*
    put host_key /etc/ssh/ssh_host_ed25519_key 600
    put host_key.pub /etc/ssh/ssh_host_ed25519_key.pub 644
  fi
  ! has restorecon || restorecon -R "$home/.ssh" /etc/ssh
}

network() {
  nic=$(nic_by_mac)
  if [ -z "$nic" ]; then
    say "no interface has the MAC $mac"
    return 1
  fi
  system=$(network_system)
  say "$nic is configured by $system"
  case $system in
    ifcfg) put ifcfg "/etc/sysconfig/network-scripts/ifcfg-$nic" 644 ;;
    netplan)
      for file in /etc/netplan/*.yaml; do set_aside "$file"; done
      put netplan.yaml /etc/netplan/60-nodegraft.yaml 600
      # Its generator ran before this did.
      netplan generate
      use_networkd
      ;;
    NetworkManager) put keyfile /etc/NetworkManager/system-connections/nodegraft.nmconnection 600 ;;
    ifupdown)
      set_aside /etc/network/interfaces
      put interfaces /etc/network/interfaces 644
      resolver
      ;;
    networkd)
      put networkd /etc/systemd/network/05-nodegraft.network 644
      use_networkd
      ;;
  esac
}

# Never by a guessed name.
nic_by_mac() {
  for dir in /sys/class/net/*; do
    if [ -e "$dir/device" ] && [ "$(cat "$dir/address")" = "$mac" ]; then
      echo "${dir##*/}"
      return
    fi
  done
}

network_system() {
  scripts=/etc/sysconfig/network-scripts
  if [ -e $scripts/ifcfg-lo ] || [ -e $scripts/ifup ]; then
    echo ifcfg
  elif has netplan; then
    echo netplan
  elif enabled NetworkManager; then
    echo NetworkManager
  elif has ifup && enabled networking; then
    echo ifupdown
  else
    echo networkd
  fi
}

use_networkd() {
  enabled systemd-networkd || systemctl enable systemd-networkd
  systemctl start --no-block systemd-networkd
  resolver
}

# Where nothing else keeps the list of name servers.
resolver() {
  has resolvconf || enabled systemd-resolved || put resolv.conf /etc/resolv.conf 644
}

root_filesystem() {
  source=$(findmnt -n -o SOURCE /)
  case $source in
    /dev/mapper/*)
      group=$(lvs --noheadings -o vg_name "$source" | tr -d ' ')
      volume=$(pvs --noheadings -o pv_name -S "vg_name=$group" | tr -d ' ' | head -n 1)
      grow_partition "$volume"
      pvresize "$volume"
      # Fails where nothing is free, which is no fault.
      lvextend -l +100%FREE "$source" || true
      ;;
    *) grow_partition "$source" ;;
  esac
  case $(findmnt -n -o FSTYPE /) in
    ext*) resize2fs "$source" ;;
    xfs) xfs_growfs / ;;
    btrfs) btrfs filesystem resize max / ;;
  esac
}

# To the end of its disk, if it is a partition and the last one.
grow_partition() {
  dir=/sys/class/block/${1##*/}
  [ -e "$dir/partition" ] || return 0
  number=$(cat "$dir/partition")
  disk=$(readlink -f "$dir/..")
  disk=/dev/${disk##*/}
  if has growpart; then
    # 1 means that it fills the disk already.
    growpart "$disk" "$number" || [ $? = 1 ]
  elif sfdisk --help 2>&1 | grep -q -e --append; then
    echo ', +' | sfdisk --no-reread --force -N "$number" "$disk"
    partx -u --nr "$number" "$disk"
  else
    # That of CentOS 7 means something else by the same words.
    say "$1 stays as it is: there is no growpart here"
  fi
}

if [ $# = 0 ]; then
  main
else
  # shellcheck source=/dev/null
  . "$files/identity"
  "$1"
fi
