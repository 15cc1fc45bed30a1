{# Every step starts with this. -#}
set -eu
export DEBIAN_FRONTEND=noninteractive LC_ALL=C
