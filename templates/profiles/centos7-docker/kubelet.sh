{% include "common/marker.sh" %}
package={{ kubelet.package | sh }}
case $package in
  # The spec names the version itself.
  *-[0-9]*) name=${package%%-[0-9]*} ;;
  *)
    name=$package
    package=$package-{{ kubelet.release | sh }}
    ;;
esac
put /etc/yum.repos.d/kubernetes.repo <<'REPO'
[kubernetes]
name=Kubernetes
baseurl={{ vars.kubernetes_repo }}
enabled=1
gpgcheck=0
REPO
mkdir -p /opt/rpms
# Mended: an rpm that is installed already makes `yum install` of its file fail.
if ! rpm -q {{ vars.cni_package | sh }} "$package" >/dev/null 2>&1; then
  # Those of an earlier version would be installed beside it.
  rm -f /opt/rpms/*
  yumdownloader --destdir /opt/rpms/ {{ vars.cni_package | sh }}
  yumdownloader --destdir /opt/rpms/ "$package" || {
    echo "there is no $package in yum's repositories; there is:" >&2
    yum -q --showduplicates list "$name" >&2
    exit 1
  }
  # A newer one that is installed is no reason for `yum install` to take an older one.
  yum -y install /opt/rpms/* || rpm -q "$name" >/dev/null
  rpm -q "$package" >/dev/null 2>&1 || yum -y downgrade /opt/rpms/*
fi
# A nightly upgrade would take the node away from its spec.
put /etc/yum.repos.d/kubernetes.repo <<REPO
[kubernetes]
name=Kubernetes
baseurl={{ vars.kubernetes_repo }}
enabled=1
gpgcheck=0
exclude=$name
REPO
{% include "common/kubelet-version.sh" %}
systemctl enable kubelet

mkdir -p /etc/kubernetes/pki
put /var/lib/kubelet/config.yaml <<'CONFIG'
{% include "common/kubelet-config.yaml" %}
CONFIG
put /etc/systemd/system/kubelet.service.d/10-nodegraft.conf <<'DROPIN'
{% include "common/kubelet-dropin.conf" %}
DROPIN
