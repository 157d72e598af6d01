#!/bin/bash
# Build the product's container images, and print the path of each one's tar.
#
#   images.sh TAG                  of the dev profile's binaries
#   PROFILE=dist images.sh TAG     of the profile that releases are built with
#
# docker.io/corrente/operator:TAG, and poller, pipeline and simulator likewise; a
# manifest may write corrente/operator:TAG. Each holds one static binary as its
# entrypoint and nothing else: no base image to pull, no shell, not even /tmp; it runs
# as user 65532. The tars (docker-archive) are what an air-gapped site carries in:
#
#   e2e/stack.sh load $(e2e/images.sh dev)                          the tests' cluster
#   cp $(e2e/images.sh dev) /var/lib/rancher/k3s/agent/images/      k3s
#   docker load -i TAR, kind load image-archive TAR                 Docker, kind
set -euo pipefail
# shellcheck source=e2e/lib.sh
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

tag=${1:?usage: images.sh TAG}
programs=(operator poller pipeline simulator)
folder=$CORRENTE_CACHE/images/$tag

case $CARGO_BUILD_TARGET in
*-linux-*) ;;
*) fail "images are for Linux, and this machine's Rust builds for $CARGO_BUILD_TARGET: run it on Linux" ;;
esac

cd "$ROOT"
case ${PROFILE:-dev} in
# The same packages, targets and so features as the tests: nothing is compiled twice.
dev)
  cargo build --workspace --all-targets --locked >&2
  built=debug
  ;;
dist)
  cargo build --profile dist --locked "${programs[@]/#/--package=corrente-}" >&2
  built=dist
  ;;
*) fail "PROFILE is '$PROFILE'; use dev or dist" ;;
esac

mkdir -p "$folder"
part=$folder/.part
for program in "${programs[@]}"; do
  name=corrente-$program
  binary=$CARGO_TARGET_DIR/$CARGO_BUILD_TARGET/$built/$name
  strip --strip-debug -o "$part" "$binary" # a fifth of the size, and function names stay in backtraces
  "$E2E/image.py" "docker.io/corrente/$program:$tag" "/$name=$part" -- "/$name" >"$folder/.tar"
  mv -f "$folder/.tar" "$folder/$name.tar"
  echo "$folder/$name.tar"
done
rm -f "$part"
say "images corrente/{$(IFS=,; echo "${programs[*]}")}:$tag in $folder"
