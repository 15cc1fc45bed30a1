set -eu
cat > /etc/yum.repos.d/kubernetes.repo <<'REPO'
[kubernetes]
name=Kubernetes
baseurl={{ vars.kubernetes_repo }}
enabled=1
gpgcheck=0
REPO
mkdir -p /opt/rpms
# Mended: an rpm that is installed already makes `yum install` of its file fail.
if ! rpm -q {{ vars.cni_package | sh }} {{ kubelet.package | sh }} >/dev/null 2>&1; then
  yumdownloader --destdir /opt/rpms/ {{ vars.cni_package | sh }}
  yumdownloader --destdir /opt/rpms/ {{ kubelet.package | sh }}
  yum -y install /opt/rpms/*
fi
systemctl enable kubelet

mkdir -p /var/lib/kubelet /etc/kubernetes/pki /etc/systemd/system/kubelet.service.d
cat > /var/lib/kubelet/config.yaml <<'CONFIG'
{% include "common/kubelet-config.yaml" %}
CONFIG
cat > /etc/systemd/system/kubelet.service.d/10-nodegraft.conf <<'DROPIN'
{% include "common/kubelet-dropin.conf" %}
DROPIN
systemctl daemon-reload
