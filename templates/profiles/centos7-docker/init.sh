{% include "common/marker.sh" %}
{# The seed's "sys init", in its order. Where it is mended, the comment says what was wrong. -#}
# SELinux off, now and after a reboot. `setenforce` fails where it is off already.
sed -i 's/enforcing/disabled/g' /etc/selinux/config
setenforce 0 2>/dev/null || true

# Mended: the seed writes `UseDN<tab>S no`, which sshd refuses.
sed -i 's/^#\{0,1\}UseDNS .*/UseDNS no/' /etc/ssh/sshd_config
systemctl restart sshd
grep DNS /etc/ssh/sshd_config
grep SELINUX=disabled /etc/selinux/config

for unit in firewalld NetworkManager; do
  # Mended: a unit that is not installed is no fault.
  systemctl disable "$unit" 2>/dev/null || true
  systemctl stop "$unit" 2>/dev/null || true
done

# Mended: moved once only; a second run would lose the original, or fail.
if [ -f /etc/yum.repos.d/CentOS-Base.repo ] && [ ! -f /etc/yum.repos.d/CentOS-Base.repo.backup ]; then
  mv /etc/yum.repos.d/CentOS-Base.repo /etc/yum.repos.d/CentOS-Base.repo.backup
fi
curl -fsSL -o /etc/yum.repos.d/CentOS-Base.repo {{ vars.base_repo | sh }}
curl -fsSL -o /etc/yum.repos.d/epel.repo {{ vars.epel_repo | sh }}

timedatectl set-timezone {{ vars.time_zone | sh }}
yum -y install ntpdate
# Mended: once ntpd runs, from the first run on, it holds the port and ntpdate fails.
systemctl is-active --quiet ntpd || ntpdate {{ vars.ntp_server | sh }}
timedatectl set-local-rtc 0
systemctl restart rsyslog
systemctl restart crond
yum -y install ntp
# Mended: the seed says `iburst` twice.
put /etc/ntp.conf <<'NTP'
driftfile /var/lib/ntp/drift
restrict default nomodify notrap nopeer noquery
restrict 127.0.0.1
restrict ::1
server {{ vars.ntp_server }} iburst
logfile /var/log/ntp.log
includefile /etc/ntp/crypto/pw
keys /etc/ntp/keys
disable monitor
NTP
systemctl try-restart ntpd
systemctl enable --now ntpd
ntpq -p

{# The seed's machine has no swap; another may. -#}
# A kubelet does not start where swap is on.
swapoff -a
sed -i '/^[^#].*[[:space:]]swap[[:space:]]/s/^/# off for the kubelet: /' /etc/fstab

put /etc/sysctl.d/k8s.conf <<'SYSCTL'
net.ipv4.ip_forward = 1
net.bridge.bridge-nf-call-ip6tables = 1
net.bridge.bridge-nf-call-iptables = 1
SYSCTL
modprobe br_netfilter
# Mended: without this the module is gone after a reboot, and the two settings with it.
echo br_netfilter > /etc/modules-load.d/k8s.conf
sysctl -p /etc/sysctl.d/k8s.conf
