//! Refuses to build what would corrupt its own memory.
//!
//! OpenSSL's own build takes a static glibc target for one without threads, and leaves its locks out: two TLS
//! handshakes at a time then free the same memory twice. So a static build takes the system's static OpenSSL,
//! which `e2e/env.sh` names; without it, this is where the build ends.

use std::env;

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    let target = env::var("TARGET").unwrap_or_default();
    let names = [
        format!("{}_OPENSSL_NO_VENDOR", target.to_uppercase().replace('-', "_")),
        "OPENSSL_NO_VENDOR".to_owned(),
    ];
    for name in &names {
        println!("cargo::rerun-if-env-changed={name}");
    }
    let is_set = |name: &String| env::var(name).is_ok_and(|value| value != "0");
    let features = env::var("CARGO_CFG_TARGET_FEATURE").unwrap_or_default();
    let is_static = features.split(',').any(|feature| feature == "crt-static");
    let is_glibc = env::var("CARGO_CFG_TARGET_ENV").is_ok_and(|abi| abi == "gnu");
    let with_kafka = env::var_os("CARGO_FEATURE_KAFKA").is_some();
    if with_kafka && is_static && is_glibc && !names.iter().any(is_set) {
        println!(
            "cargo::error=a static glibc build would take an OpenSSL without threads, which corrupts memory: install \
             the system's static OpenSSL (libssl-dev on Debian) and build with the variables that e2e/env.sh sets \
             (OPENSSL_NO_VENDOR=1 OPENSSL_STATIC=1 OPENSSL_LIB_DIR=... OPENSSL_INCLUDE_DIR=...)"
        );
    }
}
