# shellcheck shell=bash
# The environment of everything that builds or tests the project: sourced, never run.
#
# One folder outside the checkout holds what is slow to make (compiled Rust, the
# cluster's binaries, the servers), so that a fresh clone on the same machine does
# not start from nothing. One target folder and one set of flags for every cargo
# command, so that nothing is compiled twice.

export CORRENTE_CACHE=${CORRENTE_CACHE:-$HOME/.cache/corrente}

# Where Rust and Go are installed by default: a CI shell may not have them on PATH.
for folder in "$HOME/.cargo/bin" /usr/local/go/bin; do
  case :$PATH: in
  *":$folder:"*) ;;
  *) [ ! -d "$folder" ] || export PATH=$PATH:$folder ;;
  esac
done
unset folder

# Named explicitly, even though it is the machine's own: flags given for a named
# target do not reach build scripts and procedural macros, which cannot be static.
export CARGO_TARGET_DIR=$CORRENTE_CACHE/target
if command -v rustc >/dev/null; then
  CARGO_BUILD_TARGET=$(rustc -vV | sed -n 's/^host: //p')
  export CARGO_BUILD_TARGET
fi

# Static glibc binaries run in an image that holds nothing else. Elsewhere (musl,
# macOS) the default linkage stands.
case ${CARGO_BUILD_TARGET:-} in
*-linux-gnu)
  flags_of_target=CARGO_TARGET_$(tr 'a-z-' 'A-Z_' <<<"$CARGO_BUILD_TARGET")_RUSTFLAGS
  export "$flags_of_target=-C target-feature=+crt-static"
  unset flags_of_target
  # OpenSSL built from source takes "static" for "without threads", and two connections
  # at a time then corrupt the memory. The system's static library has its threads.
  for dir in "/usr/lib/$(uname -m)-linux-gnu" /usr/lib64 /usr/lib; do
    if [ -e "$dir/libssl.a" ] && [ -e /usr/include/openssl/ssl.h ]; then
      export OPENSSL_NO_VENDOR=1 OPENSSL_STATIC=1 OPENSSL_LIB_DIR=$dir OPENSSL_INCLUDE_DIR=/usr/include
      break
    fi
  done
  unset dir
  ;;
esac

# Backtraces of panics, not of errors: those say by themselves where they come from.
export RUST_LIB_BACKTRACE=0

case :$PATH: in
*":$CORRENTE_CACHE/bin:"*) ;;
*) export PATH=$CORRENTE_CACHE/bin:$PATH ;;
esac
