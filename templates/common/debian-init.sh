{% include "common/marker.sh" %}
{# The seed's chapter 2, "sys init", where it applies to Debian. -#}
# Time zone and time service.
timedatectl set-timezone {{ vars.time_zone | sh }} 2>/dev/null || ln -sf /usr/share/zoneinfo/{{ vars.time_zone }} /etc/localtime
timedatectl set-local-rtc 0 2>/dev/null || true
{% if vars.ntp_servers | length > 0 -%}
mkdir -p /etc/systemd/timesyncd.conf.d
cat > /etc/systemd/timesyncd.conf.d/nodegraft.conf <<'TIMESYNCD'
[Time]
NTP={{ vars.ntp_servers | join(sep=" ") }}
TIMESYNCD
{% endif -%}
systemctl enable --now systemd-timesyncd 2>/dev/null || echo "no systemd-timesyncd here: the image keeps its own time service"

# A kubelet does not start where swap is on.
swapoff -a
sed -i -E '/^[^#].*[[:space:]]swap[[:space:]]/s/^/# off for the kubelet: /' /etc/fstab

# Bridged traffic passes iptables, and the node forwards.
printf 'br_netfilter\noverlay\n' > /etc/modules-load.d/k8s.conf
modprobe br_netfilter
modprobe overlay
cat > /etc/sysctl.d/k8s.conf <<'SYSCTL'
net.ipv4.ip_forward = 1
net.bridge.bridge-nf-call-ip6tables = 1
net.bridge.bridge-nf-call-iptables = 1
SYSCTL
sysctl -p /etc/sysctl.d/k8s.conf

{% if vars.apt_sources | length > 0 -%}
cat > /etc/apt/sources.list.d/nodegraft.list <<'SOURCES'
{% for line in vars.apt_sources %}{{ line }}
{% endfor -%}
SOURCES
{% endif -%}
# The first boot's own apt run may still hold the lock.
apt-get -o DPkg::Lock::Timeout=300 update
