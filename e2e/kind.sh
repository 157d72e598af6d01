#!/bin/bash
# The same stack where Docker and kind are present: the cluster by kind, broker and
# database as on the other stack. Everything that is particular to kind is here.
#
#   kind.sh up | down | env | load TAR... | cut N | mend N
#   kind.sh kafka kill|start, postgres kill|start, psql ARGUMENT..., status
#
# The commands mean what they mean in stack.sh. Written from kind's documentation, and
# linted, but not run by the project's own tests: the machine they run on has no
# container engine.
set -euo pipefail
# shellcheck source=e2e/lib.sh
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

NAME=corrente-e2e
DIR=/var/lib/corrente-e2e-kind
export KUBECONFIG=$DIR/kubeconfig
for program in docker kind; do
  command -v "$program" >/dev/null || fail "$program is not installed: install it, or use e2e/stack.sh, which needs neither"
done
[ "$(id -u)" = 0 ] || fail "broker and database need root: run as root"

# The address of this machine on kind's network: pods reach it, and so broker, database and meters.
host_address() {
  docker network inspect kind --format '{{range .IPAM.Config}}{{println .Gateway}}{{end}}' | grep -m1 -E '^[0-9.]+$'
}

node_container() { # node_container N: kind names its workers NAME-worker, NAME-worker2, ...
  if [ "$1" = 1 ]; then echo "$NAME-worker"; else echo "$NAME-worker$1"; fi
}

HOST_IP=$(host_address 2>/dev/null || true) # unknown before the first cluster
# shellcheck source=e2e/stack/processes.sh
source "$E2E/stack/processes.sh"
# shellcheck source=e2e/stack/servers.sh
source "$E2E/stack/servers.sh"

up() {
  down
  mkdir -p "$LOG" "$RUN"
  make_cgroup corrente-stack
  say "creating the cluster ..."
  kind create cluster --name "$NAME" --kubeconfig "$KUBECONFIG" --wait 180s --config - <<'END'
kind: Cluster
apiVersion: kind.x-k8s.io/v1alpha4
nodes:
- role: control-plane
- role: worker
- role: worker
END
  HOST_IP=$(host_address)
  say "starting Kafka and PostgreSQL ..."
  make_kafka
  start_kafka
  make_postgres
  start_postgres
  wait_for_postgres
  make_database
  wait_for_kafka
}

down() {
  kind delete cluster --name "$NAME" 2>/dev/null || true
  kill_cgroup corrente-stack
  delete_tree "$DIR"
}

# By dropping its packets: a container put back on a Docker network may get another address.
drop_traffic() { # drop_traffic -I|-D N
  docker exec "$(node_container "$2")" iptables -t raw "$1" PREROUTING -i eth0 -j DROP
  docker exec "$(node_container "$2")" iptables -t mangle "$1" POSTROUTING -o eth0 -j DROP
}

addresses() {
  cat <<END
KUBECONFIG=$KUBECONFIG
CORRENTE_TEST_KUBECONFIG=$KUBECONFIG
CORRENTE_STACK=$E2E/kind.sh
END
  server_addresses
}

load() {
  local tar
  for tar in "$@"; do kind load image-archive "$tar" --name "$NAME"; done
}

command=${1:-}
shift || true
case $command in
up) up ;;
down) down ;;
status) kubectl get nodes ;;
env) addresses ;;
load) load "$@" ;;
kill-container) # kill-container N ID
  # shellcheck disable=SC2016 # expanded by the node's shell
  docker exec "$(node_container "$1")" sh -c 'kill -9 "$(ctr -n k8s.io task ls | awk -v id="$0" "\$1 == id { print \$2 }")"' "$2"
  ;;
cut) drop_traffic -I "$1" ;;
mend) drop_traffic -D "$1" ;;
kafka | postgres) server "$command" "${1:-}" ;;
psql) psql "$@" ;;
*) fail "unknown command '$command'; see the head of this file" ;;
esac
