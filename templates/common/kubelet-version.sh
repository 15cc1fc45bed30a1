{# What runs is what the spec says, wherever it came from. -#}
kubelet_says=$(/usr/bin/kubelet --version) || kubelet_says="that does not run"
case ${kubelet_says#Kubernetes v} in
  {{ kubelet.release | sh }} | {{ kubelet.release | sh }}[.+]*) echo "$kubelet_says" ;;
  *)
    echo "the spec wants kubelet "{{ kubelet.release | sh }}", and /usr/bin/kubelet is: $kubelet_says" >&2
    exit 1
    ;;
esac
