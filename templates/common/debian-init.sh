{% include "common/marker.sh" %}
{% include "common/apt.sh" %}
{# The seed's chapter 2, "sys init", where it applies to Debian. -#}
# Time zone and time service.
timedatectl set-timezone {{ vars.time_zone | sh }} 2>/dev/null || ln -sf /usr/share/zoneinfo/{{ vars.time_zone }} /etc/localtime
timedatectl set-local-rtc 0 2>/dev/null || true
{% if vars.ntp_servers | length > 0 -%}
put /etc/systemd/timesyncd.conf.d/nodegraft.conf <<'TIMESYNCD'
[Time]
NTP={{ vars.ntp_servers | join(sep=" ") }}
TIMESYNCD
{% else -%}
rm -f /etc/systemd/timesyncd.conf.d/nodegraft.conf
{% endif -%}
if systemctl enable systemd-timesyncd 2>/dev/null; then
  systemctl restart systemd-timesyncd
else
  echo "no systemd-timesyncd here: the image keeps its own time service"
fi

# A kubelet does not start where swap is on.
swapoff -a
sed -i -E '/^[^#].*[[:space:]]swap[[:space:]]/s/^/# off for the kubelet: /' /etc/fstab

# Bridged traffic passes iptables, and the node forwards.
put /etc/modules-load.d/k8s.conf <<'MODULES'
br_netfilter
overlay
MODULES
modprobe br_netfilter
modprobe overlay
put /etc/sysctl.d/k8s.conf <<'SYSCTL'
net.ipv4.ip_forward = 1
net.bridge.bridge-nf-call-ip6tables = 1
net.bridge.bridge-nf-call-iptables = 1
SYSCTL
sysctl -p /etc/sysctl.d/k8s.conf

{% if vars.apt_sources | length > 0 -%}
put /etc/apt/sources.list.d/nodegraft.list <<'SOURCES'
{% for line in vars.apt_sources %}{{ line }}
{% endfor -%}
SOURCES
{% else -%}
rm -f /etc/apt/sources.list.d/nodegraft.list
{% endif -%}
apt_update
