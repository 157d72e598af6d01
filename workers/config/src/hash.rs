//! The hash of a configuration, for names: same content, same name, on every machine and in every version.

use serde::Serialize;
use xxhash_rust::xxh3::xxh3_128;

/// Characters of a hash.
pub const LENGTH: usize = 16;

/// Small letters and digits without vowels and look-alikes, so that no word appears by chance.
const ALPHABET: &[u8; 27] = b"bcdfghjklmnpqrstvwxz2456789";

/// The hash of what a value is as JSON: 16 small letters and digits (76 bits), fit for a resource's name.
///
/// Maps must be sorted, as `BTreeMap` is, for the hash to be the content's alone.
///
/// # Errors
/// Where the value cannot be written as JSON.
pub fn of<T: Serialize>(value: &T) -> Result<String, serde_json::Error> {
    Ok(of_bytes(&serde_json::to_vec(value)?))
}

/// The hash of bytes, in the same form.
#[must_use]
pub fn of_bytes(bytes: &[u8]) -> String {
    let base = ALPHABET.len() as u128;
    let mut rest = xxh3_128(bytes);
    let mut text = String::with_capacity(LENGTH);
    for _ in 0..LENGTH {
        text.push(char::from(ALPHABET[(rest % base) as usize]));
        rest /= base;
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn is_the_same_in_every_version() {
        // Names of ConfigMaps on running clusters: if this changes, every pod is replaced at the upgrade.
        assert_eq!(of_bytes(b""), "xk465cj6ttr5tjhj");
        assert_eq!(of_bytes(b"corrente"), "gm7dz827vtr9pkj5");
        assert_eq!(of(&"corrente").unwrap(), of_bytes(b"\"corrente\""));
    }
}
