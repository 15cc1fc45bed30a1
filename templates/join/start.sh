set -eu
# The CA and the bootstrap kubeconfig are in place; the token exists and may ask for a certificate.
systemctl daemon-reload
systemctl enable kubelet
systemctl restart kubelet
