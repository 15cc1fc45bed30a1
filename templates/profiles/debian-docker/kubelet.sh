{% include "common/debian-kubelet.sh" %}
