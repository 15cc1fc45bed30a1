# The lab's Kubernetes: programs built from the Go module k8s.io/kubernetes, once for each version.

kubernetes_bin() { echo "$LAB_CACHE/kubernetes/$1"; }

# kubernetes_build VERSION: leaves kube-apiserver, kube-controller-manager and kubelet in the cache.
kubernetes_build() {
  local version=$1 bin recipe
  bin=$(kubernetes_bin "$version")
  # Another recipe, another build.
  recipe=$({ cat "$LAB_SOURCE/kubernetes/$version"/*; declare -f kubernetes_compile kubernetes_openapi; } | sha256sum)
  [[ $(cat "$bin/built" 2>/dev/null) == "$recipe" ]] && return
  case $version in
    v1.18.*) timed "Kubernetes $version: generate openapi" kubernetes_openapi "$version" ;;
  esac
  timed "Kubernetes $version: compile (several minutes, once)" kubernetes_compile "$version"
  echo "$recipe" >"$bin/built"
}

# Runs a command in the version's little module with the Go that this version needs.
in_module() {
  local version=$1 dir toolchain=auto; shift
  dir=$LAB_CACHE/modules/$version
  mkdir -p "$dir"
  cp "$LAB_SOURCE/kubernetes/$version"/{go.mod,go.sum,tools.go} "$dir"
  [[ $version == v1.18.* ]] && toolchain=go1.19.13
  (cd "$dir" && env CGO_ENABLED=0 GOTOOLCHAIN=$toolchain GOFLAGS=-mod=mod GODEBUG="$(go_debug "$version")" "$@")
}

# Go 1.19 ignores overlays in the module cache while it uses its index.
go_debug() { [[ $1 == v1.18.* ]] && echo goindex=0; true; }

kubernetes_compile() {
  local version=$1 bin minor program package flags='-s -w'
  bin=$(kubernetes_bin "$version")
  mkdir -p "$bin"
  minor=${version#v1.}; minor=${minor%%.*}
  # 1.18 has three packages that each know a version; the API server asks the second.
  for package in k8s.io/component-base/version k8s.io/kubernetes/pkg/version k8s.io/client-go/pkg/version; do
    flags+=" -X $package.gitVersion=$version -X $package.gitMajor=1 -X $package.gitMinor=$minor"
  done
  local overlay=() programs=(kube-apiserver kube-controller-manager kubelet)
  [[ $version == v1.18.* ]] && overlay=(-overlay "$LAB_CACHE/modules/$version/overlay.json")
  [[ -d $LAB_SOURCE/kubernetes/$version ]] && grep -q cmd/kubectl "$LAB_SOURCE/kubernetes/$version/tools.go" && programs+=(kubectl)
  for program in "${programs[@]}"; do
    echo "== $program"
    in_module "$version" go build -trimpath "${overlay[@]}" -ldflags "$flags" -o "$bin/$program.part" "k8s.io/kubernetes/cmd/$program"
    mv "$bin/$program.part" "$bin/$program"
  done
}

# kubelet_package VERSION IMAGE: the kubelet as the Debian package that a cluster's own repository would have.
kubelet_package() {
  local version=$1 served=$LAB_CACHE/served/$2 root
  [[ $served/kubelet_${version#v}_amd64.deb -nt $(kubernetes_bin "$version")/kubelet ]] && return
  root=$LAB_CACHE/package.$version
  mkdir -p "$root/DEBIAN" "$root/usr/bin" "$root/lib/systemd/system"
  cp "$(kubernetes_bin "$version")/kubelet" "$root/usr/bin/kubelet"
  printf '[Unit]\nDescription=kubelet\n[Service]\nExecStart=/usr/bin/kubelet\nRestart=always\nRestartSec=2\n[Install]\nWantedBy=multi-user.target\n' \
    >"$root/lib/systemd/system/kubelet.service"
  printf 'Package: kubelet\nVersion: %s\nArchitecture: amd64\nMaintainer: the lab <lab@localhost>\nDescription: kubelet of the lab\n' \
    "${version#v}" >"$root/DEBIAN/control"
  timed "kubelet package $version" package_build "$root" "$served" "kubelet_${version#v}_amd64.deb"
  own_remove "$root"
}

package_build() {
  dpkg-deb --root-owner-group -Zgzip -z1 --build "$1" "$2/$3.part" && mv "$2/$3.part" "$2/$3" &&
    cd "$2" && apt-ftparchive packages . >Packages.part && mv Packages.part Packages
}

# Up to 1.19 the API server's openapi definitions are generated, not published with the module.
kubernetes_openapi() {
  local version=$1 dir=$LAB_CACHE/modules/$1 staging=v0.${1#v1.} root modules
  in_module "$version" go build -o openapi-gen k8s.io/kube-openapi/cmd/openapi-gen
  in_module "$version" go mod download
  root=$(in_module "$version" go list -m -f '{{.Dir}}' k8s.io/kubernetes)
  modules=$(cd "$(go env GOMODCACHE)/k8s.io" && ls -d ./*@"$staging" | sed 's#^\./##')
  local packages=()
  while read -r file; do
    packages+=("k8s.io/kubernetes/${file#"$root"/}")
  done < <(grep -rl --include=doc.go '+k8s:openapi-gen=true' "$root/pkg" "$root/cmd" | xargs -n1 dirname | sort -u)
  local module
  for module in $modules; do
    case $module in *sample-*|code-generator*) continue ;; esac
    while read -r file; do
      packages+=("k8s.io/${module%@*}${file#"$(go env GOMODCACHE)/k8s.io/$module"}")
    done < <(grep -rl --include='*.go' '+k8s:openapi-gen=true' "$(go env GOMODCACHE)/k8s.io/$module" | xargs -r -n1 dirname | sort -u | grep -vE '/(test|example)s?(/|$)')
  done
  echo "${#packages[@]} packages"
  printf '%s\n' "${packages[@]}"
  : >"$dir/empty"
  local inputs
  inputs=$(IFS=,; echo "${packages[*]}")
  in_module "$version" ./openapi-gen -i "$inputs" -p k8s.io/kubernetes/pkg/generated/openapi \
    -O zz_generated.openapi -h "$dir/empty" -r /dev/null -o out
  printf '{"Replace": {"%s": "%s"}}\n' "$root/pkg/generated/openapi/zz_generated.openapi.go" \
    "$dir/out/k8s.io/kubernetes/pkg/generated/openapi/zz_generated.openapi.go" >"$dir/overlay.json"
}
