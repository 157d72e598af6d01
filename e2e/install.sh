#!/bin/bash
# Install what the tests need, each part once, from package registries alone.
#
#   install.sh all       everything below (the default)
#   install.sh tools     cargo-nextest and cargo-deny, from crates.io
#   install.sh servers   the servers alone
#   install.sh kind      all but the cluster, which kind brings along
#   install.sh stack     the cluster and the servers:
#     Debian packages    InfluxDB, Mosquitto, RabbitMQ, containerd, runc, CNI plugins, Java, Maven, debootstrap ...
#     Go module proxy    Kubernetes, etcd, CoreDNS, Helm, a schema registry, FerretDB
#     Maven Central      Apache Kafka, Kafka Connect with a JDBC sink, Apache Cassandra
#     Debian trixie      PostgreSQL with TimescaleDB, in a tree of its own
#     PyPI               pymodbus, and readers of records, in a virtual environment of their own
#
# All but the Debian packages goes to $CORRENTE_CACHE (see env.sh). Heavy builds run
# one after the other: two at a time on a small machine are slower than in turn.
set -euo pipefail
# shellcheck source=e2e/lib.sh
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

version_in() { sed -n "s#^[[:space:]]*$2 v\\([0-9.]*\\).*#\\1#p" "$E2E/stack/$1/go.mod"; }
KUBERNETES=$(version_in kube k8s.io/kubernetes)
ETCD=$(version_in etcd go.etcd.io/etcd/server/v3)
COREDNS=1.14.7
HELM=4.3.1
KAFKA=4.1.1
POSTGRES=17
REGISTRY=$(version_in registry github.com/twmb/franz-go/pkg/sr)
FERRETDB=$(version_in mongo github.com/FerretDB/FerretDB)
CASSANDRA=$(sed -n 's#.*cassandra-all</artifactId><version>\([^<]*\)<.*#\1#p' "$E2E/stack/cassandra/pom.xml")
DEBEZIUM=$(sed -n 's#.*debezium-connector-jdbc</artifactId><version>\([^<]*\)<.*#\1#p' "$E2E/stack/connect/pom.xml")
PYMODBUS=3.16.1
# What reads the records back: kafka-python, with lz4 for its batches, and the formats' own decoders.
READERS=(kafka-python==3.0.12 lz4==4.4.5 fastavro==1.13.1 protobuf==7.36.2 grpcio-tools==1.85.1)
NEXTEST=0.9.151
DENY=0.20.2

PACKAGES=(binutils build-essential ca-certificates cmake conntrack containerd containernetworking-plugins
  debootstrap influxdb iproute2 iptables jq libssl-dev maven mosquitto openjdk-17-jre-headless openssl procps
  prometheus-alertmanager python3-venv rabbitmq-server runc shellcheck)

# --- Debian packages --------------------------------------------------------------

debian_packages() {
  local missing=() package
  for package in "${PACKAGES[@]}"; do
    [ "$(dpkg-query -W -f '${db:Status-Status}' "$package" 2>/dev/null)" = installed ] || missing+=("$package")
  done
  ((${#missing[@]})) || return 0
  say "installing Debian packages: ${missing[*]}"
  export DEBIAN_FRONTEND=noninteractive
  # Servers are started by the tests, and not by their packages.
  if [ ! -e /usr/sbin/policy-rc.d ]; then
    printf '#!/bin/sh\nexit 101\n' >/usr/sbin/policy-rc.d
    chmod +x /usr/sbin/policy-rc.d
    trap 'rm -f /usr/sbin/policy-rc.d' EXIT
  fi
  apt-get -qq update </dev/null
  apt-get -qq install -y --no-remove --no-install-recommends "${missing[@]}" </dev/null >/dev/null
}

# --- from the Go module proxy -----------------------------------------------------

go_build() { # go_build ARGUMENTS...: static, reproducible, with caches that are deleted at the end
  CGO_ENABLED=0 GOFLAGS='-buildvcs=false -modcacherw' GOCACHE=$CORRENTE_CACHE/go/build GOMODCACHE=$CORRENTE_CACHE/go/mod \
    go "$1" -trimpath "${@:2}"
}

# Without these the server reports v0.0.0, and Helm's kubeVersion checks refuse it.
version_flags() {
  local package minor=${KUBERNETES#1.}
  for package in k8s.io/component-base/version k8s.io/client-go/pkg/version; do
    printf -- '-X %s.%s ' "$package" "gitVersion=v$KUBERNETES" "$package" gitMajor=1 "$package" "gitMinor=${minor%.*}" \
      "$package" gitTreeState=clean "$package" gitCommit=none "$package" buildDate=2026-01-01T00:00:00Z
  done
}

build_hyperkube() ( # in a subshell, for its cd
  cd "$E2E/stack/kube"
  go_build build -mod=readonly -tags grpcnotrace -ldflags "-s -w $(version_flags)" -o "$1/hyperkube" .
)
build_kubectl() (
  cd "$E2E/stack/kube"
  go_build build -mod=readonly -ldflags "-s -w $(version_flags)" -o "$1/kubectl" k8s.io/kubernetes/cmd/kubectl
)
build_etcd() (
  cd "$E2E/stack/etcd"
  go_build build -mod=readonly -ldflags "-s -w" -o "$1/etcd" go.etcd.io/etcd/server/v3
)
build_registry() (
  cd "$E2E/stack/registry"
  go_build build -mod=readonly -ldflags "-s -w" -o "$1/schema-registry" .
)
build_ferretdb() ( # no MongoDB is to be had; this speaks its protocol
  cd "$E2E/stack/mongo"
  go_build build -mod=readonly -ldflags "-s -w" -o "$1/ferretdb" .
)
install_go_program() { GOBIN=$2 go_build install -ldflags "-s -w" "$1"; }
build_pause() { gcc -static -Os -s -o "$1/pause" "$E2E/stack/kube/pause.c"; }

clients() {
  once_program kubectl "$KUBERNETES" build_kubectl
  once_program helm "$HELM" install_go_program "helm.sh/helm/v4/cmd/helm@v$HELM"
}

cluster() {
  once_program hyperkube "$KUBERNETES" build_hyperkube # first: it compiles most of what kubectl needs
  once_program etcd "$ETCD" build_etcd
  once_program coredns "$COREDNS" install_go_program "github.com/coredns/coredns@v$COREDNS"
  once_program pause 1 build_pause
  local name
  for name in kube-apiserver kube-controller-manager kube-scheduler kube-proxy kubelet; do
    ln -sf hyperkube "$CORRENTE_CACHE/bin/$name"
  done
}

registry() {
  once_program schema-registry "$REGISTRY" build_registry
  once_program ferretdb "$FERRETDB-tls" build_ferretdb
}

forget_go() { delete_tree "$CORRENTE_CACHE/go"; } # gigabytes that only a new version would need again

# --- servers and meters -----------------------------------------------------------

copy_jars() { # copy_jars POM FOLDER: all of them beside each other
  mvn -q -B -Dstyle.color=never -f "$E2E/stack/$1/pom.xml" "-Dkafka.version=$KAFKA" "-Dmaven.repo.local=$CORRENTE_CACHE/maven" \
    dependency:copy-dependencies -DincludeScope=runtime -DoutputDirectory="$2" </dev/null
}

unpack_postgres() { # Debian 12 itself has no PostgreSQL 17 with TimescaleDB, its successor has
  debootstrap --variant=minbase --include="postgresql-$POSTGRES,postgresql-$POSTGRES-timescaledb" trixie "$1" </dev/null >/dev/null
}

install_python() {
  python3 -m venv "$1"
  "$1/bin/python" -m pip install -q --no-deps --disable-pip-version-check "pymodbus==$PYMODBUS" "${READERS[@]}"
}

servers() {
  once_tree kafka "$KAFKA" copy_jars kafka
  once_tree connect "$KAFKA, Debezium $DEBEZIUM" copy_jars connect
  once_tree cassandra "$CASSANDRA" copy_jars cassandra
  delete_tree "$CORRENTE_CACHE/maven"
  once_tree postgres "$POSTGRES-trixie" unpack_postgres
  # A virtual environment is bound to the interpreter that made it.
  once_tree python "pymodbus $PYMODBUS, ${READERS[*]}, $(python3 -c 'import sys; print(sys.base_prefix, sys.version.split()[0])')" install_python
}

# --- from crates.io ---------------------------------------------------------------

install_cargo_tool() { # install_cargo_tool CRATE VERSION FOLDER: unoptimised: building takes longer than running ever will
  (
    unset CARGO_BUILD_TARGET "${!CARGO_TARGET_@}" # an ordinary program of this machine, not a static one
    CARGO_PROFILE_DEV_DEBUG=0 CARGO_TARGET_DIR=$CORRENTE_CACHE/tools \
      cargo install --quiet --locked --debug --no-track --version "$2" --root "$3" "$1"
  )
  mv "$3/bin/$1" "$3/$1"
}

tools() {
  once_program cargo-nextest "$NEXTEST" install_cargo_tool cargo-nextest "$NEXTEST"
  once_program cargo-deny "$DENY" install_cargo_tool cargo-deny "$DENY"
  delete_tree "$CORRENTE_CACHE/tools"
}

# --- commands ---------------------------------------------------------------------

check_machine() {
  [ "$(id -u)" = 0 ] || fail "the stack needs root (network namespaces, containerd): run as root"
  command -v apt-get >/dev/null || fail "the stack is installed from Debian packages: run on Debian 12 or later"
  command -v go >/dev/null || fail "the cluster is built from source: install Go 1.26 or later (https://go.dev/dl) and put it on PATH"
}

case ${1:-all} in
all) parts=(check_machine debian_packages cluster clients registry forget_go servers tools) ;;
stack) parts=(check_machine debian_packages cluster clients registry forget_go servers) ;;
kind) parts=(check_machine debian_packages clients registry forget_go servers tools) ;;
servers) parts=(check_machine debian_packages registry forget_go servers) ;;
tools) parts=(tools) ;;
*) fail "unknown command $1; usage: install.sh [all|stack|servers|kind|tools]" ;;
esac

mkdir -p "$CORRENTE_CACHE"
exec 9>"$CORRENTE_CACHE/install.lock" # two runs at once would delete each other's parts
flock -n 9 || { say "waiting for another installation to finish"; flock 9; }
for part in "${parts[@]}"; do "$part"; done
