#!/bin/sh
# Runs one step of nodegraft in this machine: alone, as something that can be ended whole, and with what it wrote in
# effect before it counts as done. Plain sh and what CentOS 7, Debian and busybox have; steps themselves are for bash.
#
#   run-step.sh run  STEP SCRIPT DIGEST RUN SECONDS WHO [UNIT PATH...]
#   run-step.sh stop RUN
#
# Beside this file:
#   lock           held by the runner, and by nothing that a step leaves behind
#   owner          who holds it: the step's process (a session of its own), and whose run it is
#   STEP.done      the digest of the step that ran and is in effect
#   STEP.*.sh      the script, under a new name for each run; the newest is kept
#   UNIT.started   what a service read when it was last started from here, and that start
#   stopped.RUN    this run was stopped: it begins nothing any more
#
# Lines that begin with `nodegraft-step:` are for nodegraft itself; all others are the step's own.
set -u
export LC_ALL=C
dir=${0%/*}
# Seconds: for a step to end by itself, for a service to come up, for a plain service to stay up.
mercy=5
startup=120
settle=5
# Files above this size, bytes, are told apart by their size, time and inode.
large=1048576

main() {
  command=$1
  shift
  case $command in
    run) run "$@" ;;
    lead) lead "$@" ;;
    stop) stop "$@" ;;
  esac
}

tell() { echo "nodegraft-step:$*"; }

# Seconds since the boot: a clock that nobody sets.
now() {
  read -r up _ </proc/uptime
  echo "${up%.*}"
}

run() {
  step=$1 script=$2 digest=$3 run=$4 seconds=$5
  connected $$ && remote=yes || remote=
  # A connection that broke ends nothing by itself: what ends well then, counts. A handler of our own, and not
  # "ignore", which the step would inherit.
  trap : HUP PIPE
  exec 9>>"$dir/lock"
  take_lock
  if [ ! -r "$script" ]; then
    tell "fault the script $script is gone"
    exit 1
  fi
  rm -f "$dir/$step.done"
  begun=$(now)
  # In the foreground: a shell makes its background jobs deaf to an interrupt.
  setsid sh "$0" lead "$@" </dev/null
  status=$?
  took=$(($(now) - begun))
  [ "$status" = 0 ] || failed
  shift 6
  take_effect "$@" 9>&- || leave 1
  if ! { echo "$digest" >"$dir/$step.done.new" && mv -f "$dir/$step.done.new" "$dir/$step.done"; }; then
    tell "fault cannot write $dir/$step.done"
    leave 1
  fi
  for old in "$dir/$step".*.sh; do
    [ ! "$old" -ot "$script" ] || rm -f "$old"
  done
  find "$dir" -name 'stopped.*' -mmin +60 -exec rm -f {} +
  leave 0
}

# The first process of the step's session. It says who it is before the script begins, so there is no script of which
# nobody knows; and it has the lock for as long as that lives, which has not, nor have its daemons.
lead() {
  step=$1 script=$2 digest=$3 run=$4 seconds=$5 who=$6
  look_at $$
  if ! {
    cat >"$dir/owner.new" <<OWNER && mv -f "$dir/owner.new" "$dir/owner"
pid=$$
start=$start
boot=$(boot)
run=$run
step=$step
digest=$digest
since=$(date -u +%Y-%m-%dT%H:%M:%SZ)
who=$who
OWNER
  }; then
    tell "fault cannot write $dir/owner"
    exit 1
  fi
  stopped && exit 143
  timeout -k "$mercy" "$seconds" bash "$script" 9>&-
}

# A step that did not end well: why, as far as the machine knows it. Nothing of it goes on.
failed() {
  memory=$(killed_for_memory "$begun")
  [ -z "$memory" ] || tell "memory $memory"
  # How `timeout` ends differs, and so may a script end that uses one itself: only the time tells.
  [ "$took" -lt "$seconds" ] || tell late
  ! read_owner || end_session "$o_pid"
  leave "$status"
}

leave() {
  rm -f "$dir/owner"
  exit "$1"
}

# The kernel's own line, if it killed something for want of memory since then.
killed_for_memory() {
  dmesg 2>/dev/null | grep -i 'killed process' | while read -r line; do
    at=${line#"["}
    at=${at%%.*}
    at=${at##* }
    case $at in
      '' | *[!0-9]*) ;;
      *) [ "$at" -ge "$1" ] || continue ;;
    esac
    echo "${line#*"] "}"
  done | tail -n 1
}

# ---- one at a time ----

# Waits for the lock, at most as long as a step may take. A step of a run that is no more is ended; one of a run that
# lives is waited for, by name.
take_lock() {
  waiting_since=$(now)
  said=
  while ! flock -n 9; do
    given_up && exit 143
    if [ $(($(now) - waiting_since)) -ge "$seconds" ]; then
      tell "busy $(holder); it was waited for $seconds s"
      exit 75
    fi
    if leader_lives && ! connected "$o_pid"; then
      end_orphan
    elif [ "$said" != "$(holder)" ]; then
      said=$(holder)
      tell "waiting $said"
    fi
    sleep 1
  done
  given_up && exit 143
  # Its keeper may have been killed from under it.
  ! remains || end_orphan
  rm -f "$dir/owner"
}

end_orphan() {
  told=$(holder)
  if end_session "$o_pid"; then
    tell "ended $told"
  else
    tell "waiting $told, which does not die"
  fi
}

holder() {
  if read_owner; then
    echo "the step $o_step of $o_who, at work since $o_since (process $o_pid, run $o_run)"
  else
    echo "a run that begins or ends just now"
  fi
}

# Our own run was stopped, or the connection it came by is gone: it must not begin later, behind everybody's back.
given_up() {
  stopped || { [ "$remote" ] && ! connected $$; }
}

stopped() {
  [ -e "$dir/stopped.$run" ]
}

# The mark comes first: a leader that is just being born sees it, or we see the leader.
stop() {
  run=$1
  : >"$dir/stopped.$run"
  if read_owner && [ "$o_run" = "$run" ] && remains; then
    end_session "$o_pid"
  fi
}

read_owner() {
  o_pid='' o_start='' o_boot='' o_run='' o_step='' o_since='' o_who=''
  [ -r "$dir/owner" ] || return 1
  while IFS='=' read -r key value; do
    case $key in
      pid) o_pid=$value ;;
      start) o_start=$value ;;
      boot) o_boot=$value ;;
      run) o_run=$value ;;
      step) o_step=$value ;;
      since) o_since=$value ;;
      who) o_who=$value ;;
    esac
  done <"$dir/owner"
  [ "$o_pid" ]
}

boot() { cat /proc/sys/kernel/random/boot_id; }

leader_lives() {
  read_owner && [ "$o_boot" = "$(boot)" ] && look_at "$o_pid" && [ "$start" = "$o_start" ] && [ "$state" != Z ]
}

# Something of the recorded session. A number is not given to a new process while a session still bears it.
remains() {
  read_owner && [ "$o_boot" = "$(boot)" ] || return 1
  if look_at "$o_pid" && [ "$start" != "$o_start" ]; then
    return 1
  fi
  [ "$(members "$o_pid")" ]
}

# ---- processes ----

# Sets state, parent, session, start of a process.
look_at() {
  { read -r line <"/proc/$1/stat"; } 2>/dev/null || return 1
  # Its name, in parentheses, may hold anything.
  # shellcheck disable=SC2086
  set -- ${line##*") "}
  state=$1 parent=$2 session=$4 start=${20}
}

# Whether it still hangs on the connection it came by. The parent of an orphan is process 1; a server that *is* process 1
# is its listener.
connected() {
  ancestor=$1
  while look_at "$ancestor"; do
    ancestor=$parent
    [ "$ancestor" -gt 1 ] || return 1
    { read -r name <"/proc/$ancestor/comm"; } 2>/dev/null || return 1
    case $name in sshd* | dropbear*) return 0 ;; esac
  done
  return 1
}

members() {
  for process in /proc/[0-9]*; do
    if look_at "${process#/proc/}" && [ "$session" = "$1" ] && [ "$state" != Z ]; then
      echo "${process#/proc/}"
    fi
  done
}

# Ends a session whole: asks once, then kills for as long as something new appears.
end_session() {
  for signal in TERM KILL; do
    ending_since=$(now) asked=
    while living=$(members "$1") && [ "$living" ]; do
      # shellcheck disable=SC2086
      [ "$signal$asked" = TERMyes ] || kill "-$signal" $living 2>/dev/null
      asked=yes
      sleep 0.2 2>/dev/null || sleep 1
      [ $(($(now) - ending_since)) -lt "$mercy" ] || break
    done
  done
  [ -z "$living" ]
}

# ---- written is not in effect ----

# take_effect [UNIT PATH...]: a service that runs with other content of these than there is now is started anew. One
# that does not run stays as it is.
take_effect() {
  if [ $# = 0 ] || ! command -v systemctl >/dev/null 2>&1; then
    return 0
  fi
  unit=$1
  shift
  if ! timeout "$startup" systemctl daemon-reload; then
    tell "fault systemd does not read its units again"
    return 1
  fi
  look_at_unit
  case $active in active | activating | reloading) ;; *) return 0 ;; esac
  content=$(fingerprint "$@")
  if [ "$active" = active ] && [ "$(cat "$dir/$unit.started" 2>/dev/null)" = "$content $began" ]; then
    return 0
  fi
  tell "doing restarting $unit, which reads what this step wrote"
  if ! { timeout "$startup" systemctl restart "$unit" && comes_up; }; then
    timeout "$startup" journalctl -u "$unit" -n 10 --no-pager -o cat
    tell "fault the service $unit does not come up with what the step wrote: it is $active"
    return 1
  fi
  if ! { echo "$content $began" >"$dir/$unit.started.new" && mv -f "$dir/$unit.started.new" "$dir/$unit.started"; }; then
    tell "fault cannot write $dir/$unit.started"
    return 1
  fi
}

# Sets active, type, began: one start of the unit is told from the next.
look_at_unit() {
  active='' type='' main='' entered=''
  while IFS='=' read -r key value; do
    case $key in
      ActiveState) active=$value ;;
      Type) type=$value ;;
      MainPID) main=$value ;;
      ActiveEnterTimestampMonotonic) entered=$value ;;
    esac
  done <<SHOWN
$(timeout "$startup" systemctl show -p ActiveState -p Type -p MainPID -p ActiveEnterTimestampMonotonic "$unit")
SHOWN
  began=$main@$entered
}

# A plain service is `active` the moment it was started, and counts when it stays so.
comes_up() {
  up_limit=$(($(now) + startup))
  starts=0 seen='' seen_at=0
  while [ "$(now)" -lt "$up_limit" ]; do
    look_at_unit
    case $active in
      active)
        case $type in simple | exec | idle) ;; *) return 0 ;; esac
        if [ "$began" != "$seen" ]; then
          seen=$began seen_at=$(now) starts=$((starts + 1))
          [ "$starts" -lt 4 ] || return 1
        elif [ $(($(now) - seen_at)) -ge "$settle" ]; then
          return 0
        fi
        ;;
      failed | inactive) return 1 ;;
    esac
    sleep 1
  done
  return 1
}

# Of files, and of all files below directories, whether they are there or not.
fingerprint() {
  for path in "$@"; do
    if [ -d "$path" ]; then
      find -L "$path" -type f | sort
    else
      echo "$path"
    fi
  done | while read -r file; do
    if [ ! -e "$file" ]; then
      echo "$file absent"
    elif [ "$(stat -L -c %s "$file")" -gt "$large" ]; then
      stat -L -c '%n %s %Y %i' "$file"
    else
      echo "$file $(sha256sum <"$file")"
    fi
  done | sha256sum | cut -c 1-32
}

main "$@"
