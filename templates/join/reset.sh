set -eu
# What an earlier membership left: without this a kubelet keeps its old identity.
systemctl stop kubelet 2>/dev/null || true
rm -rf /var/lib/kubelet/pki
rm -f /etc/kubernetes/kubelet.conf /etc/kubernetes/bootstrap-kubelet.conf
