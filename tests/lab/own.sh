# Directories of the lab's own. One that it creates carries a marker, and nothing without that is removed with all that is in it.

OWN_MARKER=.nodegraft-lab

# own_dir DIRECTORY FILE: creates and marks it. One that exists must be empty, or have the file that only the lab leaves there.
own_dir() {
  local dir=$1 file=$2
  [[ ! -e $dir/$OWN_MARKER ]] || return 0
  if [[ -e $dir && ! -e $dir/$file && -n $(ls -A "$dir") ]]; then
    die "$dir exists and is not the lab's: name a directory that is empty or does not exist"
  fi
  mkdir -p "$dir"
  echo 'Created by the lab of nodegraft, which removes this directory with everything in it.' >"$dir/$OWN_MARKER"
}

# own_remove DIRECTORY...: with everything in it, if it or a directory above it carries the marker.
own_remove() {
  local dir at
  for dir; do
    [[ -e $dir || -L $dir ]] || continue
    at=$(realpath -s "$dir")
    until [[ -e $at/$OWN_MARKER ]]; do
      [[ $at != / ]] || die "$dir was not removed: neither it nor a directory above it has the lab's $OWN_MARKER; remove it yourself if it is not needed"
      at=$(dirname "$at")
    done
    rm -rf --one-file-system "$dir"
  done
}
