# One control plane for each Kubernetes version: etcd, kube-apiserver, kube-controller-manager, all real.

control_plane_dir() { echo "$LAB_STATE/kubernetes/$1"; }
control_plane_kubeconfig() { echo "$(control_plane_dir "$1")/admin.conf"; }

control_plane_up() {
  local version=$1 dir address bin port minor
  dir=$(control_plane_dir "$version") address=${LAB_API_ADDRESS[$version]} bin=$(kubernetes_bin "$version")
  control_plane_ready "$version" && return
  mkdir -p "$dir"
  [[ -f $dir/admin.conf ]] || timed "certificates for $version" control_plane_certificates "$version"
  port=23$((${address##*.} - 100))0 minor=${version#v1.} minor=${minor%%.*}
  say "control plane $version at https://$address:6443"
  background "etcd-$version" etcd --data-dir "$dir/etcd" --listen-client-urls "http://127.0.0.1:$port" \
    --advertise-client-urls "http://127.0.0.1:$port" --listen-peer-urls "http://127.0.0.1:$((port + 1))" --unsafe-no-fsync
  local accounts=(--service-account-key-file="$dir/sa.pub") controllers='*,bootstrapsigner,tokencleaner'
  ((minor < 20)) || accounts+=(--service-account-issuer=https://kubernetes.default.svc --service-account-signing-key-file="$dir/sa.key")
  ((minor < 30)) || controllers='*,bootstrap-signer-controller,token-cleaner-controller'
  background "apiserver-$version" "$bin/kube-apiserver" --etcd-servers="http://127.0.0.1:$port" \
    --bind-address="$address" --advertise-address="$address" --secure-port=6443 --service-cluster-ip-range=10.96.0.0/12 \
    --tls-cert-file="$dir/server.crt" --tls-private-key-file="$dir/server.key" --client-ca-file="$dir/pki/ca.crt" \
    --authorization-mode=Node,RBAC --enable-admission-plugins=NodeRestriction --enable-bootstrap-token-auth "${accounts[@]}"
  wait_until 60 "the API server $version (its log is $LAB_STATE/log/apiserver-$version.log)" control_plane_ready "$version"
  background "controllers-$version" "$bin/kube-controller-manager" --kubeconfig="$dir/admin.conf" --use-service-account-credentials \
    --cluster-signing-cert-file="$dir/pki/ca.crt" --cluster-signing-key-file="$dir/ca.key" --root-ca-file="$dir/pki/ca.crt" \
    --service-account-private-key-file="$dir/sa.key" --controllers="$controllers" --leader-elect=false \
    --bind-address="$address"
  wait_until 60 "the controllers of $version (their log is $LAB_STATE/log/controllers-$version.log)" \
    inside curl -sfk -m 3 "https://$address:10257/healthz"
}

control_plane_ready() {
  lab_is_up && [[ $(inside curl -s -m 3 --cacert "$(control_plane_dir "$1")/pki/ca.crt" \
    --cert "$(control_plane_dir "$1")/admin.crt" --key "$(control_plane_dir "$1")/admin.key" \
    "https://${LAB_API_ADDRESS[$1]}:6443/healthz") == ok ]]
}

control_plane_certificates() {
  local version=$1 dir address
  dir=$(control_plane_dir "$version") address=${LAB_API_ADDRESS[$version]}
  mkdir -p "$dir/pki"
  cd "$dir" || return
  openssl req -x509 -newkey rsa:2048 -nodes -days 3650 -keyout ca.key -out pki/ca.crt -subj /CN=kubernetes
  certificate server /CN=kube-apiserver "subjectAltName=IP:$address,IP:127.0.0.1,IP:10.96.0.1,DNS:kubernetes.default.svc"
  certificate admin /O=system:masters/CN=kubernetes-admin "extendedKeyUsage=clientAuth"
  openssl genrsa -out sa.key 2048
  openssl rsa -in sa.key -pubout -out sa.pub
  cat >admin.conf.part <<CONF
apiVersion: v1
kind: Config
clusters:
- name: kubernetes
  cluster: {server: "https://$address:6443", certificate-authority-data: $(base64 -w0 pki/ca.crt)}
users:
- name: kubernetes-admin
  user: {client-certificate-data: $(base64 -w0 admin.crt), client-key-data: $(base64 -w0 admin.key)}
contexts:
- name: kubernetes-admin@kubernetes
  context: {cluster: kubernetes, user: kubernetes-admin}
current-context: kubernetes-admin@kubernetes
CONF
  chmod 600 admin.conf.part ./*.key
  mv admin.conf.part admin.conf
}

# certificate NAME SUBJECT EXTENSION: signed by the CA in this directory.
certificate() {
  openssl req -newkey rsa:2048 -nodes -keyout "$1.key" -out "$1.csr" -subj "$2"
  openssl x509 -req -in "$1.csr" -CA pki/ca.crt -CAkey ca.key -CAcreateserial -days 3650 -out "$1.crt" -extfile <(echo "$3")
}
