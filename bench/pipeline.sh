#!/bin/bash
# Measure the pipeline worker beside Kafka Connect with Debezium's JDBC sink and PostgreSQL's own COPY, on the same
# topic, broker and database.
#
#   bench/pipeline.sh                       all shapes, about 15 minutes, and the build
#   bench/pipeline.sh plain hyper           these shapes alone; see README.md
#   RECORDS=500000 ROUNDS=1 bench/pipeline.sh     quicker, and less sure
#   PROFILE=release bench/pipeline.sh             instead of dist, which releases are built with
#
# Writes results/pipeline.json, and from it results/pipeline.md. Needs root on Debian and Rust; everything else is
# installed once into the cache.
set -euo pipefail
BENCH=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
# Set for a worktree's own target folder; env.sh would name the common one.
target=${CARGO_TARGET_DIR:-}
# shellcheck source=e2e/lib.sh
source "$BENCH/../e2e/lib.sh"
[ -z "$target" ] || export CARGO_TARGET_DIR=$target

TELEGRAF=1.37.2
CONFLUENT_KAFKA=2.16.1
XXHASH=3.6.0
PROFILE=${PROFILE:-dist}

[ "$(id -u)" = 0 ] || fail "PostgreSQL runs in a tree of its own: run as root"
command -v cargo >/dev/null || fail "Rust is not installed: see https://rustup.rs"

# Two runs at a time would use the same ports and folders, and each other's processor time.
mkdir -p "$CORRENTE_CACHE"
exec 9>"$CORRENTE_CACHE/bench.lock"
flock -n 9 || { say "another run is under way; waiting for it"; flock 9; }

install_python() {
  python3 -m venv "$1"
  "$1/bin/python" -m pip install -q --no-deps --disable-pip-version-check \
    "confluent-kafka==$CONFLUENT_KAFKA" "xxhash==$XXHASH"
}

# The two plugins that are compared and nothing else.
build_telegraf() {
  GOBIN=$1 CGO_ENABLED=0 GOFLAGS='-buildvcs=false' timeout 600 go install -trimpath -ldflags "-s -w" \
    -tags custom,inputs.kafka_consumer,outputs.postgresql,parsers.json_v2 \
    "github.com/influxdata/telegraf/cmd/telegraf@v$TELEGRAF" &&
    mv "$1/telegraf" "$1/telegraf-pipeline"
}

for part in kafka connect postgres; do
  [ -e "$CORRENTE_CACHE/stamps/$part" ] || "$E2E/install.sh" servers
done
once_tree bench-python "confluent-kafka $CONFLUENT_KAFKA, xxhash $XXHASH, $(python3 -c 'import sys; print(sys.base_prefix, sys.version.split()[0])')" install_python
if command -v go >/dev/null; then
  once_program telegraf-pipeline "$TELEGRAF" build_telegraf || say "Telegraf cannot be built: it is left out"
else
  say "Go is not installed: Telegraf is left out"
fi

cd "$ROOT"
say "building the $PROFILE binary ..."
cargo build --profile "$PROFILE" --locked -p corrente-pipeline
BENCH_BINARIES=$CARGO_TARGET_DIR/${CARGO_BUILD_TARGET:-}/$PROFILE

export BENCH BENCH_BINARIES PROFILE TELEGRAF
export PYTHONPATH=$BENCH PYTHONDONTWRITEBYTECODE=1
exec "$CORRENTE_CACHE/bench-python/bin/python" -m pipeline "$@"
