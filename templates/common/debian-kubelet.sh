{% include "common/marker.sh" %}
apt-get -o DPkg::Lock::Timeout=300 install -y --no-install-recommends {{ vars.kubelet_needs | join(sep=" ") }}

{% if kubelet.package -%}
apt-get -o DPkg::Lock::Timeout=300 install -y --no-install-recommends {{ kubelet.package | sh }}
{%- else -%}
{% if kubelet.url -%}
if ! echo {{ kubelet.sha256 | sh }}" /usr/bin/kubelet" | sha256sum --check --quiet 2>/dev/null; then
  curl -fsSL --retry 3 -o /usr/bin/kubelet.part {{ kubelet.url | sh }}
  echo {{ kubelet.sha256 | sh }}" /usr/bin/kubelet.part" | sha256sum --check --quiet
  chmod 755 /usr/bin/kubelet.part
  mv /usr/bin/kubelet.part /usr/bin/kubelet
fi
{%- else -%}
# Uploaded by nodegraft before this step.
install -m 755 {{ kubelet.uploaded | sh }} /usr/bin/kubelet
{%- endif %}
cat > /etc/systemd/system/kubelet.service <<'UNIT'
[Unit]
Description=kubelet: the Kubernetes node agent
Wants=network-online.target
After=network-online.target

[Service]
ExecStart=/usr/bin/kubelet
Restart=always
StartLimitInterval=0
RestartSec=2

[Install]
WantedBy=multi-user.target
UNIT
{%- endif %}
kubelet --version

mkdir -p /etc/systemd/system/kubelet.service.d /var/lib/kubelet /etc/kubernetes/manifests /etc/kubernetes/pki
{# The join starts it, when access and token exist: a kubelet started earlier sits in its back-off. -#}
cat > /etc/systemd/system/kubelet.service.d/10-nodegraft.conf <<'DROPIN'
{% include "common/kubelet-dropin.conf" %}DROPIN
cat > /var/lib/kubelet/config.yaml <<'CONFIG'
{% include "common/kubelet-config.yaml" %}
CONFIG
# The stub on 127.0.0.53 means nothing inside a pod.
if systemctl is-active --quiet systemd-resolved; then
  echo 'resolvConf: /run/systemd/resolve/resolv.conf' >> /var/lib/kubelet/config.yaml
fi
systemctl daemon-reload

{% if vars.cni_subnet -%}
# A plain bridge, enough for a node to be Ready; leave cni_subnet empty where the cluster brings its own.
mkdir -p /etc/cni/net.d
cat > /etc/cni/net.d/10-nodegraft.conflist <<'CNI'
{% include "common/cni-bridge.json" %}
CNI
[ -e /opt/cni/bin ] || { mkdir -p /opt/cni && ln -s /usr/lib/cni /opt/cni/bin; }
{% endif -%}
