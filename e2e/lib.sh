# shellcheck shell=bash
# What the scripts of this folder share: sourced, never run.
#
# Messages, waiting, and the two ways a thing is made once and kept in the cache.

E2E=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
ROOT=$(dirname "$E2E")
# shellcheck source=e2e/env.sh
source "$E2E/env.sh"
export E2E ROOT

say() { printf '%s: %s\n' "$(basename "$0")" "$*" >&2; }
fail() { say "$*"; exit 1; }

wait_for() { # wait_for SECONDS WHAT COMMAND...: until the command succeeds, silently
  local deadline=$((SECONDS + $1)) what=$2
  shift 2
  until "$@" >/dev/null 2>&1; do
    if ((SECONDS >= deadline)); then
      say "$what did not come up in time"
      return 1
    fi
    sleep 0.2
  done
}

unmount_below() { # unmount_below DIR: deepest first, so that DIR can be deleted safely
  awk -v dir="$1/" 'index($5, dir) == 1 { print $5 }' /proc/self/mountinfo | sort -r | xargs -r -n1 umount -l
}

delete_tree() { # delete_tree DIR: never through a mount that a killed run left in it
  unmount_below "$1"
  rm -rf --one-file-system "$1"
}

# A thing counts as made when its stamp holds its version. It is made in a folder of
# its own and moved into place, and the stamp is written last: a killed run leaves
# nothing half made that counts as done, and a new version is made anew.

made() { # made NAME VERSION PATH
  [ -e "$3" ] && [ "$(cat "$CORRENTE_CACHE/stamps/$1" 2>/dev/null)" = "$2" ]
}

make_part() { # make_part NAME VERSION COMMAND...: runs COMMAND with the folder to fill as its last argument
  local name=$1 version=$2 part=$CORRENTE_CACHE/part/$1 began=$SECONDS
  shift 2
  say "making $name $version ..."
  delete_tree "$part"
  mkdir -p "$part" "$CORRENTE_CACHE/stamps"
  rm -f "$CORRENTE_CACHE/stamps/$name"
  "$@" "$part"
  say "made $name in $((SECONDS - began)) s"
}

stamp() { # stamp NAME VERSION
  printf '%s\n' "$2" >"$CORRENTE_CACHE/part/stamp"
  mv -f "$CORRENTE_CACHE/part/stamp" "$CORRENTE_CACHE/stamps/$1"
}

once_program() { # once_program NAME VERSION COMMAND...: COMMAND leaves the program NAME in the folder
  made "$1" "$2" "$CORRENTE_CACHE/bin/$1" && return
  make_part "$@"
  mkdir -p "$CORRENTE_CACHE/bin"
  mv -f "$CORRENTE_CACHE/part/$1/$1" "$CORRENTE_CACHE/bin/$1"
  delete_tree "$CORRENTE_CACHE/part/$1"
  stamp "$1" "$2"
}

once_tree() { # once_tree NAME VERSION COMMAND...: COMMAND fills the folder, which becomes $CORRENTE_CACHE/NAME
  made "$1" "$2" "$CORRENTE_CACHE/$1" && return
  make_part "$@"
  delete_tree "$CORRENTE_CACHE/$1"
  mv "$CORRENTE_CACHE/part/$1" "$CORRENTE_CACHE/$1"
  stamp "$1" "$2"
}
