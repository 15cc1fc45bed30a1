{% include "common/marker.sh" %}
{% include "common/apt.sh" %}
apt_install {{ vars.runtime_packages | join(sep=" ") }}
put /etc/containerd/config.toml <<'TOML'
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
{# Read at each pull. -#}
{% if vars.registry_mirrors | length > 0 -%}
put /etc/containerd/certs.d/docker.io/hosts.toml <<'HOSTS'
{% for mirror in vars.registry_mirrors %}[host.{{ mirror | json }}]
  capabilities = ["pull", "resolve"]
{% endfor -%}
HOSTS
{% else -%}
rm -f /etc/containerd/certs.d/docker.io/hosts.toml
{% endif -%}
# The package starts it with a configuration of its own; one restart follows this step, if it runs with another one.
systemctl reset-failed containerd 2>/dev/null || true
systemctl enable --now containerd
ctr version
