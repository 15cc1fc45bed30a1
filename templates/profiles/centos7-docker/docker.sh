{% include "common/marker.sh" %}
yum -y install yum-utils
yum-config-manager --add-repo {{ vars.docker_repo | sh }}

# Mended: `mkdir` fails on a second run.
put /etc/docker/daemon.json <<'JSON'
{
  "exec-opts": ["native.cgroupdriver=systemd"],
  "registry-mirrors": {{ vars.registry_mirrors | json }}
}
JSON
yum -y install {{ vars.docker_package | sh }}
systemctl enable --now docker
docker pull {{ vars.pull_image | sh }}
