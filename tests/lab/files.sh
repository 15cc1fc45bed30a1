# What guests fetch over HTTP from the gateway's address: Debian packages and the kubelets.
# And the control plane's sshd, whose /etc/kubernetes holds admin.conf as kubeadm leaves it.

files_up() {
  local root=$LAB_STATE/served version probe=http://$LAB_GATEWAY/${LAB_IMAGE[$1]}/Packages
  mkdir -p "$root/kubernetes"
  for version in "$@"; do
    ln -sfn "$LAB_CACHE/served/${LAB_IMAGE[$version]}" "$root/${LAB_IMAGE[$version]}"
    ln -sfn "$(kubernetes_bin "$version")" "$root/kubernetes/$version"
  done
  inside curl -sf -m 3 -o /dev/null "$probe" && return
  background files busybox httpd -f -p "$LAB_GATEWAY:80" -h "$root"
  wait_until 10 'the file server' inside curl -sf -m 3 -o /dev/null "$probe"
}

# An SSH server at the default version's address, in a root of its own: a shell, `cat`, /etc/kubernetes.
control_plane_ssh_up() {
  local version=${LAB_VERSIONS[0]} dir root
  dir=$LAB_STATE/ssh root=$dir/root
  [[ -f $dir/ready ]] && return
  mkdir -p "$root/bin" "$root/dev" "$root/root" "$root/etc/kubernetes/pki" "$dir/client"
  cp "$(command -v busybox)" "$root/bin/busybox"
  local applet
  for applet in sh cat timeout; do ln -sf busybox "$root/bin/$applet"; done
  # sshd looks up root's shell before it changes the root, and finds this machine's.
  printf '#!/bin/sh\nexec /bin/sh "$@"\n' >"$root/bin/bash"
  chmod 755 "$root/bin/bash"
  cp "$(control_plane_kubeconfig "$version")" "$root/etc/kubernetes/admin.conf"
  cp "$(control_plane_dir "$version")/pki/ca.crt" "$root/etc/kubernetes/pki/ca.crt"
  echo 'root:x:0:0:root:/root:/bin/sh' >"$root/etc/passwd"
  [[ -f $dir/host ]] || ssh-keygen -q -t ed25519 -N '' -f "$dir/host"
  [[ -f $dir/client/id_ed25519 ]] || ssh-keygen -q -t ed25519 -N '' -f "$dir/client/id_ed25519"
  cp "$dir/client/id_ed25519.pub" "$dir/authorized_keys"
  echo "${LAB_API_ADDRESS[$version]} $(cut -d' ' -f1,2 "$dir/host.pub")" >"$dir/client/known_hosts"
  cat >"$dir/sshd_config" <<CONF
ListenAddress ${LAB_API_ADDRESS[$version]}:22
HostKey $dir/host
PidFile $dir/pid
AuthorizedKeysFile $dir/authorized_keys
StrictModes no
UsePAM no
PermitRootLogin prohibit-password
ChrootDirectory $root
CONF
  inside mkdir -p /run/sshd
  background sshd "$(command -v sshd)" -D -e -f "$dir/sshd_config"
  touch "$dir/ready"
}
