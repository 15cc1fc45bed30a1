{% include "common/marker.sh" %}
{% include "common/apt.sh" %}
# Before the package, so that docker starts with this configuration.
put /etc/docker/daemon.json <<'JSON'
{
  "exec-opts": ["native.cgroupdriver=systemd"],
  "registry-mirrors": {{ vars.registry_mirrors | json }}
}
JSON
apt_install {{ vars.runtime_packages | join(sep=" ") }}
systemctl reset-failed docker 2>/dev/null || true
systemctl enable --now docker
docker info --format '{{ "{{" }}.ServerVersion{{ "}}" }} cgroup driver {{ "{{" }}.CgroupDriver{{ "}}" }}'
{% if vars.pull_pause -%}
docker pull {{ vars.pause_image | sh }}
{% endif -%}
