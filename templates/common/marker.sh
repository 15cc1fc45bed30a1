{# Every step starts with this. -#}
set -eu
export DEBIAN_FRONTEND=noninteractive LC_ALL=C

# put PATH: its input becomes that file, whole or not at all. What is as it should be stays untouched.
put() {
  mkdir -p "${1%/*}"
  cat >"$1.nodegraft-new"
  if [ -e "$1" ] && [ "$(sha256sum <"$1.nodegraft-new")" = "$(sha256sum <"$1")" ]; then
    rm -f "$1.nodegraft-new"
  else
    chmod 644 "$1.nodegraft-new"
    mv -f "$1.nodegraft-new" "$1"
    echo "wrote $1"
  fi
}
