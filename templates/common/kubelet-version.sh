{# What runs is what the spec says, wherever it came from: 1.35 is any 1.35.z, 1.28.3 also a vendor's 1.28.3+vmware.1 or
   1.28.3-eks-1. `kubelet::is_release` says the same of what the Node reports. -#}
kubelet_says=$(/usr/bin/kubelet --version) || kubelet_says="that does not run"
case ${kubelet_says#Kubernetes v} in
  {{ kubelet.release | sh }}*-alpha* | {{ kubelet.release | sh }}*-beta* | {{ kubelet.release | sh }}*-rc*)
    echo "the spec wants kubelet "{{ kubelet.release | sh }}", and this is a pre-release: $kubelet_says" >&2
    exit 1
    ;;
  {{ kubelet.release | sh }} | {{ kubelet.release | sh }}[.+-]*) echo "$kubelet_says" ;;
  *)
    echo "the spec wants kubelet "{{ kubelet.release | sh }}", and /usr/bin/kubelet is: $kubelet_says" >&2
    exit 1
    ;;
esac
