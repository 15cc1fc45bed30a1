{% include "common/marker.sh" %}
# Before the package, so that docker starts once and with this configuration.
mkdir -p /etc/docker
cat > /etc/docker/daemon.json.new <<'JSON'
{
  "exec-opts": ["native.cgroupdriver=systemd"],
  "registry-mirrors": {{ vars.registry_mirrors | json }}
}
JSON
changed=no
cmp -s /etc/docker/daemon.json.new /etc/docker/daemon.json || { mv /etc/docker/daemon.json.new /etc/docker/daemon.json; changed=yes; }
rm -f /etc/docker/daemon.json.new
apt-get -o DPkg::Lock::Timeout=300 install -y --no-install-recommends {{ vars.runtime_packages | join(sep=" ") }}
systemctl enable docker
[ "$changed" = no ] || systemctl restart docker
docker info --format '{{ "{{" }}.ServerVersion{{ "}}" }} cgroup driver {{ "{{" }}.CgroupDriver{{ "}}" }}'
{% if vars.pull_pause -%}
docker pull {{ vars.pause_image | sh }}
{% endif -%}
