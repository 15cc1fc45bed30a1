{% include "common/marker.sh" %}
# Debian's package starts the service on install; the configuration below needs one restart.
apt-get -o DPkg::Lock::Timeout=300 install -y --no-install-recommends {{ vars.runtime_packages | join(sep=" ") }}
mkdir -p /etc/containerd
cat > /etc/containerd/config.toml.new <<'TOML'
version = 2
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = {{ vars.pause_image | json }}
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "/opt/cni/bin"
    conf_dir = "/etc/cni/net.d"
  [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
    runtime_type = "io.containerd.runc.v2"
    [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc.options]
      SystemdCgroup = true
  [plugins."io.containerd.grpc.v1.cri".registry]
    config_path = "/etc/containerd/certs.d"
TOML
{% for mirror in vars.registry_mirrors -%}
mkdir -p /etc/containerd/certs.d/docker.io
{% if loop.first %}: > /etc/containerd/certs.d/docker.io/hosts.toml
{% endif -%}
cat >> /etc/containerd/certs.d/docker.io/hosts.toml <<'HOSTS'
[host.{{ mirror | json }}]
  capabilities = ["pull", "resolve"]
HOSTS
{% endfor -%}
if ! cmp -s /etc/containerd/config.toml.new /etc/containerd/config.toml; then
  mv /etc/containerd/config.toml.new /etc/containerd/config.toml
  systemctl restart containerd
fi
rm -f /etc/containerd/config.toml.new
systemctl enable containerd
ctr version
