{% include "common/marker.sh" %}
{% include "common/apt.sh" %}
apt_install {{ vars.kubelet_needs | join(sep=" ") }}

{% if kubelet.package -%}
package={{ kubelet.package | sh }}
case $package in
  # The spec names the package's own version.
  *=*) ;;
  *)
    version=$(apt_version "$package" {{ kubelet.release | sh }})
    package=$package=$version
    ;;
esac
apt_install --allow-downgrades --allow-change-held-packages "$package"
if dpkg --verify "${package%%=*}" | grep -q ' /usr/bin/kubelet$'; then
  # An earlier spec laid another one over the package's.
  apt_install --reinstall --allow-downgrades --allow-change-held-packages "$package"
fi
# A nightly upgrade would take the node away from its spec.
apt_with_locks apt-mark hold "${package%%=*}"
{%- else -%}
{% if kubelet.url -%}
if ! echo {{ kubelet.sha256 | sh }}" /usr/bin/kubelet" | sha256sum --check --quiet 2>/dev/null; then
  curl -fsSL --retry 3 -o /usr/bin/kubelet.part {{ kubelet.url | sh }}
  echo {{ kubelet.sha256 | sh }}" /usr/bin/kubelet.part" | sha256sum --check --quiet
  chmod 755 /usr/bin/kubelet.part
  mv /usr/bin/kubelet.part /usr/bin/kubelet
fi
{%- else -%}
# Uploaded by nodegraft before this step. The one that runs keeps its file until it is started anew.
if ! cmp -s {{ kubelet.uploaded | sh }} /usr/bin/kubelet; then
  install -m 755 {{ kubelet.uploaded | sh }} /usr/bin/kubelet.part
  mv /usr/bin/kubelet.part /usr/bin/kubelet
fi
{%- endif %}
put /etc/systemd/system/kubelet.service <<'UNIT'
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
{% include "common/kubelet-version.sh" %}

mkdir -p /etc/kubernetes/manifests /etc/kubernetes/pki
{# The join starts it, when access and token exist: a kubelet started earlier sits in its back-off. One that runs is
   restarted by who runs this step, if what it reads differs. -#}
put /etc/systemd/system/kubelet.service.d/10-nodegraft.conf <<'DROPIN'
{% include "common/kubelet-dropin.conf" %}DROPIN
{
  cat <<'CONFIG'
{% include "common/kubelet-config.yaml" %}
CONFIG
  # The stub on 127.0.0.53 means nothing inside a pod.
  if systemctl is-active --quiet systemd-resolved; then
    echo 'resolvConf: /run/systemd/resolve/resolv.conf'
  fi
} | put /var/lib/kubelet/config.yaml

{% if vars.cni_subnet -%}
# A plain bridge, enough for a node to be Ready; leave cni_subnet empty where the cluster brings its own.
put /etc/cni/net.d/10-nodegraft.conflist <<'CNI'
{% include "common/cni-bridge.json" %}
CNI
[ -e /opt/cni/bin ] || { mkdir -p /opt/cni && ln -s /usr/lib/cni /opt/cni/bin; }
{% else -%}
rm -f /etc/cni/net.d/10-nodegraft.conflist
{% endif -%}
