{% include "common/debian-init.sh" %}
