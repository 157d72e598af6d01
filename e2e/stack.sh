#!/bin/bash
# The real stack that the tests run on: a Kubernetes cluster of two nodes, an Apache
# Kafka broker and PostgreSQL with TimescaleDB, with no container engine.
#
#   stack.sh up                    start it afresh, whatever a killed run left behind
#   stack.sh down                  stop it and delete all it had
#   stack.sh status                what runs, and what does not
#   stack.sh env                   its addresses, as KEY=VALUE
#   stack.sh load TAR...           import images (docker-archive) into every node
#   stack.sh cut N | mend N        take node N off the network | put it back
#   stack.sh kafka kill | start    end the broker with -9 | start it on the same data
#   stack.sh postgres kill | start the same for the database
#   stack.sh kill-container N ID   end a container of node N with -9, as a crash would
#   stack.sh psql ARGUMENT...      psql as the database's superuser
#
#   10.123.0.1   this machine: API server, Kafka, PostgreSQL, and the tests' meters
#   10.123.0.1N  node N, its pods in 10.244.N.0/24; Services in 10.96.0.0/16
#
# Needs root on Debian, and what install.sh installs. Everything it writes is in
# /var/lib/corrente-e2e, but for the database, which is in its tree in the cache.
set -euo pipefail
# shellcheck source=e2e/lib.sh
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

DIR=/var/lib/corrente-e2e
HOST_IP=10.123.0.1
NODES=(1 2)
# shellcheck source=e2e/stack/processes.sh
source "$E2E/stack/processes.sh"
# shellcheck source=e2e/stack/node.sh
source "$E2E/stack/node.sh"
# shellcheck source=e2e/stack/control-plane.sh
source "$E2E/stack/control-plane.sh"
# shellcheck source=e2e/stack/servers.sh
source "$E2E/stack/servers.sh"

up() {
  local n began=$SECONDS tar
  clear_all
  mkdir -p "$LOG" "$RUN"
  # Mounts made by a pod's runtime must be seen by the kubelet and the other way round.
  mount --make-rshared /
  make_cgroup corrente-stack
  for n in "${NODES[@]}"; do make_cgroup "corrente-node-$n"; done
  # Each containerd, each kubelet and each pod watches files.
  sysctl -qw fs.inotify.max_user_instances=1024 fs.inotify.max_user_watches=524288
  make_bridge

  say "starting Kafka and PostgreSQL ..."
  make_kafka
  start_kafka
  make_postgres
  start_postgres

  say "starting the cluster ..."
  identities
  for n in "${NODES[@]}"; do
    node_network "$n"
    start_containerd "$n"
  done
  ip route replace "$SERVICES" via "$(node_ip 1)" # tests on this machine reach Services through node 1
  start_control_plane
  for n in "${NODES[@]}"; do
    wait_for 60 "containerd of node $n ($LOG/containerd-$n.log)" ctr -a "$(node_socket "$n")" version
  done
  tar=$DIR/base.tar
  "$E2E/image.py" localhost/pause:1 "/pause=$CORRENTE_CACHE/bin/pause" -- /pause >"$tar"
  import_image "$tar"
  "$E2E/image.py" localhost/coredns:1 "/coredns=$CORRENTE_CACHE/bin/coredns" -- /coredns >"$tar"
  import_image "$tar"
  rm "$tar"
  for n in "${NODES[@]}"; do start_kubelet "$n"; done

  wait_for_postgres
  make_database
  wait_for_kafka
  for n in "${NODES[@]}"; do
    wait_for 90 "node $n ($LOG/kubelet-$n.log)" kubectl wait --for=condition=Ready --timeout=1s "node/node-$n"
  done
  add_ons
  # Events are kept when their namespace is gone, for whoever looks for a cause.
  start events kubectl get events -A --watch -o custom-columns=T:.lastTimestamp,N:.involvedObject.namespace,KIND:.involvedObject.kind,NAME:.involvedObject.name,REASON:.reason,MESSAGE:.message
  touch "$RUN/up"
  say "up after $((SECONDS - began)) s; logs in $LOG"
}

# All at once and by force: nothing of it is kept, and a killed run left the same.
clear_all() {
  local n
  kill_cgroup corrente-stack
  for n in "${NODES[@]}"; do
    kill_cgroup "corrente-node-$n"
    ip link del "corrente-n$n" 2>/dev/null || true
    ip netns del "corrente-node-$n" 2>/dev/null || true
  done
  ip link del "$BRIDGE" 2>/dev/null || true
  delete_tree "$DIR"
  rm -rf "${ROOTFS:?}$PGDATA"
}

status() {
  local file name pid broken=0
  [ -e "$RUN/up" ] || fail "the stack is not up; start it with: e2e/stack.sh up"
  for file in "$RUN"/*.pid; do
    name=$(basename "$file" .pid)
    if pid=$(running "$name"); then echo "$name runs as process $pid"; else echo "$name does NOT run"; broken=1; fi
  done
  kubectl get nodes
  return $broken
}

addresses() {
  cat <<END
KUBECONFIG=$KUBECONFIG
CORRENTE_TEST_KUBECONFIG=$KUBECONFIG
CORRENTE_STACK=$E2E/stack.sh
END
  server_addresses
}

kill_container() { # kill_container N ID: from outside, so that the runtime is as surprised as the pod
  local pid
  pid=$(ctr -a "$(node_socket "$1")" -n k8s.io task ls | awk -v id="$2" '$1 == id { print $2 }')
  [ -n "$pid" ] || fail "node $1 runs no container $2"
  kill -9 "$pid"
}

lock() { # two at a time would each clear what the other starts
  exec 9>/run/corrente-e2e.lock
  flock -w 300 9 || fail "another stack.sh is still starting or stopping the stack"
}

[ "$(id -u)" = 0 ] || fail "the stack needs root: run as root"
command=${1:-}
shift || true
case $command in
up) lock; up ;;
down) lock; clear_all ;;
status) status ;;
env) addresses ;;
load) import_image "$@" ;;
cut) ip link set "corrente-n$1" down ;;
mend) ip link set "corrente-n$1" up ;;
kill-container) kill_container "$1" "$2" ;;
kafka | postgres) server "$command" "${1:-}" ;;
psql) psql "$@" ;;
*) fail "unknown command '$command'; see the head of this file" ;;
esac
