{# For steps on Debian: apt as a guest has it, with other users of it and with interrupted ones. -#}
# Seconds that another apt or dpkg, such as the first boot's own or a nightly upgrade, is given to end.
apt_patience=300

# Runs apt or dpkg, again for as long as somebody else holds a lock. apt's own DPkg::Lock::Timeout knows only dpkg's
# lock: that of the lists, and that of the archives, are not waited for.
apt_with_locks() {
  apt_said=$(mktemp)
  read -r apt_now _ </proc/uptime
  apt_until=$((${apt_now%.*} + apt_patience))
  while :; do
    apt_status=0
    { "$@" 2>&1 || echo $? >"$apt_said.status"; } | tee "$apt_said"
    if [ -e "$apt_said.status" ]; then
      read -r apt_status <"$apt_said.status"
      rm -f "$apt_said.status"
    fi
    [ "$apt_status" != 0 ] || break
    apt_lock=$(grep -iE 'could not get lock|unable to (lock|acquire)|lock was locked by|is locked by another' "$apt_said" | head -n 1)
    [ "$apt_lock" ] || break
    read -r apt_now _ </proc/uptime
    if [ "${apt_now%.*}" -ge "$apt_until" ]; then
      echo "apt: another program kept its lock for $apt_patience s: $apt_lock" >&2
      break
    fi
    echo "apt: waiting for another program: $apt_lock"
    sleep 2
  done
  rm -f "$apt_said"
  return "$apt_status"
}

apt_update() {
  apt_with_locks apt-get -o Acquire::Retries=3 update
}

# apt_install [OPTION...] PACKAGE...: after what an interrupted run left half-configured. Configuration files stay as they
# are: a prompt would have nobody to answer it.
apt_install() {
  apt_with_locks dpkg --force-confdef --force-confold --configure -a
  apt_with_locks apt-get -o DPkg::Lock::Timeout="$apt_patience" -o Acquire::Retries=3 \
    -o Dpkg::Options::=--force-confdef -o Dpkg::Options::=--force-confold \
    install -y --no-install-recommends "$@"
}

# apt_version PACKAGE VERSION: the package's own version of what is called VERSION elsewhere; the newest that fits.
apt_version() {
  apt_known=$(apt-cache madison "$1" | cut -d '|' -f 2 | tr -d ' ')
  for apt_candidate in $apt_known; do
    case $apt_candidate in
      "$2" | "$2"-* | "$2".*)
        echo "$apt_candidate"
        return
        ;;
    esac
  done
  if [ "$apt_known" ]; then
    echo "there is no version $2 of the package $1; there is: $(echo "$apt_known" | sort -u | head -n 20 | tr '\n' ' ')" >&2
  else
    echo "there is no package $1 in the lists of apt: does vars.apt_sources name a repository that has it?" >&2
  fi
  return 1
}
