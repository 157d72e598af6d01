#!/bin/bash
# Run every test there is, the real stack and the scenarios included, and install what
# they need. Ends with a table of the steps, their outcome and the seconds each took.
#
#   e2e/test.sh                   on the project's own stack (root on Debian; see stack.sh)
#   E2E_ON=kind e2e/test.sh       on kind (see kind.sh)
#   KEEP_STACK=1 e2e/test.sh      leave the stack running afterwards
#   SCENARIO_THREADS=N            scenarios at a time (default 1: they share two nodes)
#
# What cannot be had is left out, with a sentence on what to do about it; the rest runs.
# A failed step fails the run, but not the steps that do not need it. With CI=true a
# part left out fails it too, except for the advisories, whose database is on the network.
set -uo pipefail
# shellcheck source=e2e/lib.sh
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
cd "$ROOT" || exit 1

# One run at a time: each would overwrite the other's binaries and clear the other's stack.
mkdir -p "$CORRENTE_CACHE"
exec 8>"$CORRENTE_CACHE/test.lock"
if ! flock -n 8; then
  say "another run is under way; waiting for it"
  flock 8
fi

# Cargo knows a checkout's files by their path within it and their time. What another checkout built in the
# same target folder would count as this one's wherever it is newer: so all of this one's becomes newest.
of=$CARGO_TARGET_DIR/.checkout
if [ "$(cat "$of" 2>/dev/null)" != "$ROOT" ]; then
  find . -path ./.git -prune -o -path ./target -prune -o -type f -exec touch {} +
  mkdir -p "$CARGO_TARGET_DIR"
  echo "$ROOT" >"$of"
fi

# --- steps ------------------------------------------------------------------------

table=()
failed=0
left_out=0

step() { # step NAME COMMAND...
  local name=$1 began=$SECONDS status=0
  shift
  printf '\n=== %s\n' "$name" >&2
  "$@" </dev/null || status=$?
  local took=$((SECONDS - began))
  if ((status == 0)); then
    table+=("$(printf '%-34s %-9s %5d s' "$name" ok "$took")")
  else
    table+=("$(printf '%-34s %-9s %5d s' "$name" FAILED "$took")")
    failed=1
  fi
  return "$status"
}

leave_out() { # leave_out NAME WHY-AND-WHAT-TO-DO
  printf '\n=== %s: LEFT OUT: %s\n' "$1" "$2" >&2
  table+=("$(printf '%-34s LEFT OUT  %s' "$1" "$2")")
}

# --- what they do -----------------------------------------------------------------

# Prints why the stack cannot be had here, or nothing.
missing_for_stack() {
  if [ "$(id -u)" != 0 ]; then
    echo "needs root for network namespaces and containers: run it as root"
  elif [ "${E2E_ON:-}" = kind ]; then
    for program in docker kind; do
      command -v "$program" >/dev/null || { echo "$program is not installed: install it, or run without E2E_ON=kind"; return; }
    done
  elif ! command -v apt-get >/dev/null; then
    echo "needs Debian's packages: run it on Debian 12, or with E2E_ON=kind where Docker and kind are present"
  elif ! command -v go >/dev/null; then
    echo "needs Go 1.26 to build Kubernetes: install it from https://go.dev/dl and put it on PATH"
  fi
}

shell_scripts() { shellcheck -x -P "$ROOT" e2e/*.sh e2e/stack/*.sh bench/*.sh .ci/run; }

# Every cargo command names the whole workspace and picks by filter, because another
# choice of packages is another choice of features, and compiles the dependencies anew.
all_but_scenarios() { cargo nextest run --workspace --locked --no-fail-fast -E 'not package(corrente-e2e)' "$@"; }
scenarios() {
  cargo nextest run --workspace --locked --no-fail-fast -E 'package(corrente-e2e)' --test-threads "${SCENARIO_THREADS:-1}"
}

images() { # CORRENTE_IMAGE_TAG tells the scenarios which images were loaded
  mapfile -t tars < <("$E2E/images.sh" e2e)
  ((${#tars[@]} == 4)) || { say "failed to build the images"; return 1; }
}

stack_up() {
  "$stack" up || return
  local line
  while IFS= read -r line; do export "${line?}"; done < <("$stack" env)
  export CORRENTE_IMAGE_TAG=e2e
}

# --- when it fails ----------------------------------------------------------------

show_logs() { # where they are, and the end of those that tell most
  local kept=$CORRENTE_CACHE/failed file
  [ -d "${CORRENTE_LOGS:-}" ] || return 0
  for file in pods meterpollers telemetrypipelines; do kubectl get "$file" -A -o wide; done >"$CORRENTE_LOGS/objects.txt" 2>&1
  rm -rf "$kept"
  cp -r "$CORRENTE_LOGS" "$kept"
  printf '\n=== the logs are kept in %s\n' "$kept" >&2
  find "$kept" -path '*operator*' -name '*.log' | sort | tail -4 | while read -r file; do
    printf -- '--- tail of %s\n' "$file"
    tail -n 40 "$file"
  done >&2
  for file in events.log objects.txt; do
    printf -- '--- tail of %s\n' "$kept/$file"
    tail -n 40 "$kept/$file"
  done >&2
}

finish() {
  trap - EXIT
  ((failed)) && show_logs
  if ((stack_started)) && [ -z "${KEEP_STACK:-}" ]; then step "stack down" "$stack" down; fi
  printf '\n=== summary, after %d min %d s\n' $((SECONDS / 60)) $((SECONDS % 60))
  printf '%s\n' "${table[@]}"
  if ((left_out)) && [ "${CI:-}" = true ]; then
    echo "FAILED: a part was left out, and CI=true asks for all of it"
    failed=1
  fi
  exit "$failed"
}

# --- in order: what is quick first, then ever more of the real thing --------------

stack_started=0
why=$(missing_for_stack)
stack=$E2E/stack.sh
[ "${E2E_ON:-}" = kind ] && stack=$E2E/kind.sh
trap 'failed=1; finish' INT TERM
trap finish EXIT

if ! command -v cargo >/dev/null; then
  leave_out "everything" "Rust is not installed: see https://rustup.rs"
  failed=1
  exit
fi
if [ -z "$why" ]; then
  step "install" "$E2E/install.sh" "$([ "${E2E_ON:-}" = kind ] && echo kind || echo all)" || exit
else
  step "install cargo-nextest, cargo-deny" "$E2E/install.sh" tools || exit
fi

# Property tests try the same cases in each full run, so that its verdict is the commit's and not the day's. To
# look for what they have not tried: PROPTEST_CASES=20000 cargo nextest run, whose seeds are chance.
export PROPTEST_RNG_SEED=${PROPTEST_RNG_SEED:-1}

# What was installed may change how things are built.
# shellcheck source=e2e/env.sh
source "$E2E/env.sh"

step "format" cargo fmt --all --check
if command -v shellcheck >/dev/null; then
  step "shell scripts" shell_scripts
else
  leave_out "shell scripts" "shellcheck is not installed: install your system's package of that name"
  left_out=1
fi
step "licences, bans, sources" cargo deny --locked check licenses bans sources
if timeout 120 cargo deny --locked fetch db >/dev/null 2>&1; then
  step "advisories" cargo deny --locked check advisories
else
  leave_out "advisories" "the advisory database could not be fetched: run 'cargo deny check advisories' where github.com can be reached"
fi
step "clippy" cargo clippy --workspace --all-targets --locked -- -D warnings
step "build" cargo build --workspace --all-targets --locked || exit
step "tests without servers" all_but_scenarios

if [ -n "$why" ]; then
  left_out=1
  for part in "images" "tests against servers" "scenarios"; do leave_out "$part" "$why"; done
  exit
fi
step "images" images || exit
stack_started=1
step "stack up" stack_up || exit
step "images onto the nodes" "$stack" load "${tars[@]}" || exit
step "tests against servers" all_but_scenarios --run-ignored only
step "scenarios" scenarios
