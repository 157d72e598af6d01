# shellcheck shell=bash
# The stack's processes: started in the background, stopped by their own ids.
#
# Each is a member of a cgroup of the stack's own. That is the kernel's record of who
# descends from whom: a stop finds what was started, and what that started in turn,
# even where a pid file was lost or a parent was killed before its children.

LOG=$DIR/log RUN=$DIR/run

cgroup_dirs() { # cgroup_dirs NAME: where the cgroup is, one line for each hierarchy
  local hierarchy
  if [ -f /sys/fs/cgroup/cgroup.controllers ]; then # cgroup v2: one hierarchy
    echo "/sys/fs/cgroup/$1"
  else
    for hierarchy in /sys/fs/cgroup/*/; do echo "$hierarchy$1"; done
  fi
}

make_cgroup() { # make_cgroup NAME
  local dir file
  if [ -f /sys/fs/cgroup/cgroup.controllers ]; then
    sed 's/\([a-z]\)\([a-z_]*\)/+\1\2/g' /sys/fs/cgroup/cgroup.controllers >/sys/fs/cgroup/cgroup.subtree_control || true
  fi
  for dir in $(cgroup_dirs "$1"); do
    mkdir -p "$dir"
    case $dir in /sys/fs/cgroup/cpuset/*) # version 1: empty until told
      for file in cpuset.mems cpuset.cpus; do cat "/sys/fs/cgroup/cpuset/$file" >"$dir/$file"; done ;;
    esac
  done
}

kill_cgroup() { # kill_cgroup NAME: every process in it and below it; then the cgroup itself
  local dirs pids deadline=$((SECONDS + 20))
  mapfile -t dirs < <(cgroup_dirs "$1")
  while
    pids=$(find "${dirs[@]}" -name cgroup.procs -exec cat {} + 2>/dev/null | sort -un)
    [ -n "$pids" ]
  do
    ((SECONDS < deadline)) || fail "processes of $1 cannot be killed: $(tr '\n' ' ' <<<"$pids")"
    xargs -r kill -9 <<<"$pids" 2>/dev/null || true
    sleep 0.05
  done
  find "${dirs[@]}" -depth -type d -exec rmdir {} + 2>/dev/null || true
}

start() { # start NAME COMMAND...
  local name=$1
  shift
  (
    for dir in $(cgroup_dirs corrente-stack); do echo "$BASHPID" >"$dir/cgroup.procs"; done
    cd /
    exec setsid "$@" 8>&- 9>&-
  ) >>"$LOG/$name.log" 2>&1 </dev/null &
  echo "$! $(start_time $!)" >"$RUN/$name.pid"
}

# With the id goes the time the process started: after a reboot the id may be another's.
start_time() { sed 's/.*) //' "/proc/$1/stat" 2>/dev/null | cut -d' ' -f20; }

running() { # running NAME: prints its id
  local pid began
  read -r pid began 2>/dev/null <"$RUN/$1.pid" && [ -n "$began" ] && [ "$(start_time "$pid")" = "$began" ] && echo "$pid"
}

kill_process() { # kill_process NAME: at once, with the children it has, and only returns when they are gone
  local pid pids
  pid=$(running "$1") || return 0
  mapfile -t pids < <(echo "$pid"; ps -o pid= --ppid "$pid" | tr -d ' ')
  kill -9 "${pids[@]}" 2>/dev/null || true
  for pid in "${pids[@]}"; do wait_for 20 "the end of $1" gone "$pid"; done
  rm -f "$RUN/$1.pid"
}

gone() { # a zombie, which only waits for its parent to look, is gone too
  local state
  state=$(sed 's/.*) //' "/proc/$1/stat" 2>/dev/null | cut -c1)
  [ -z "$state" ] || [ "$state" = Z ]
}
