//! The frame: how one record lies in a segment. Pure: bytes in, bytes out.
//!
//! ```text
//! offset  size  field
//!      0     4  length of the body in bytes, little endian
//!      4     4  CRC-32 (ISO-HDLC, as in zip and Ethernet) of the length field and the body, little endian
//!      8        the body:
//!      8     8    seq, little endian
//!     16     1    length of the key in bytes
//!     17     k    the key: the meter's name
//!   17+k     r    the record: JSON, to the end of the body
//! ```
//!
//! The checksum covers the length as well, so that a torn or rotten length is found like any other damage.
//! Frames follow each other without padding; a segment is frames and nothing else.

/// Bytes before the body.
const HEADER: usize = 8;
/// Bytes of the body before the key.
const BODY_HEADER: usize = 9;
/// The longest body that is believed. A longer one is damage, since no record comes near it.
pub const MAX_BODY: usize = 16 * 1024 * 1024;

/// A record in its frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Frame<'a> {
    /// The record's number in the stream.
    pub seq: u64,
    /// The record's key.
    pub key: &'a [u8],
    /// The record.
    pub payload: &'a [u8],
}

/// A record that no frame can hold.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum TooLong {
    /// The key has more than 255 bytes.
    #[error("a key has at most 255 bytes, and this one has {0}")]
    Key(usize),
    /// The record is longer than [`MAX_BODY`] allows.
    #[error("a record has at most 16 MiB, and this one has {0} bytes")]
    Payload(usize),
}

/// Bytes that are no frame.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("the bytes are not a frame: their checksum or their length is wrong")]
pub struct Damaged;

/// Appends a frame to `out`.
///
/// # Errors
/// Where the key or the record is too long; `out` is then as it was.
pub fn encode(frame: Frame<'_>, out: &mut Vec<u8>) -> Result<(), TooLong> {
    let key_length = u8::try_from(frame.key.len()).map_err(|_| TooLong::Key(frame.key.len()))?;
    let body = BODY_HEADER + frame.key.len() + frame.payload.len();
    let length = u32::try_from(body)
        .ok()
        .filter(|_| body <= MAX_BODY)
        .ok_or(TooLong::Payload(frame.payload.len()))?
        .to_le_bytes();
    out.reserve(HEADER + body);
    out.extend_from_slice(&length);
    let at = out.len();
    out.extend_from_slice(&[0; 4]);
    out.extend_from_slice(&frame.seq.to_le_bytes());
    out.push(key_length);
    out.extend_from_slice(frame.key);
    out.extend_from_slice(frame.payload);
    // The checksum is quick over a long piece, and slow over several short ones.
    let mut crc = crc32fast::Hasher::new();
    crc.update(&length);
    if let Some((place, body)) = out.get_mut(at..).and_then(<[u8]>::split_first_chunk_mut::<4>) {
        crc.update(body);
        *place = crc.finalize().to_le_bytes();
    }
    Ok(())
}

/// Reads the frame at the start of `bytes`, and says how many bytes it takes. `None` where `bytes` ends
/// within the frame.
///
/// # Errors
/// Where the bytes are not a frame.
pub fn decode(bytes: &[u8]) -> Result<Option<(Frame<'_>, usize)>, Damaged> {
    let Some((length, rest)) = bytes.split_first_chunk::<4>() else {
        return Ok(None);
    };
    let body_length = u32::from_le_bytes(*length) as usize;
    if !(BODY_HEADER..=MAX_BODY).contains(&body_length) {
        return Err(Damaged);
    }
    let Some((crc, rest)) = rest.split_first_chunk::<4>() else {
        return Ok(None);
    };
    let Some(body) = rest.get(..body_length) else {
        return Ok(None);
    };
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(length);
    hasher.update(body);
    if hasher.finalize() != u32::from_le_bytes(*crc) {
        return Err(Damaged);
    }
    let (seq, rest) = body.split_first_chunk::<8>().ok_or(Damaged)?;
    let (key_length, rest) = rest.split_first().ok_or(Damaged)?;
    let (key, payload) = rest.split_at_checked(usize::from(*key_length)).ok_or(Damaged)?;
    let frame = Frame {
        seq: u64::from_le_bytes(*seq),
        key,
        payload,
    };
    Ok(Some((frame, HEADER + body_length)))
}

/// The whole frames at the start of a segment's bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Scan {
    /// How many bytes they take. What follows is a torn tail or damage.
    pub bytes: usize,
    /// How many there are.
    pub frames: u64,
    /// The seq of the last one.
    pub last: Option<u64>,
}

/// Walks over the frames at the start of `bytes`, as far as they are whole and their seq rises.
#[must_use]
pub fn scan(bytes: &[u8]) -> Scan {
    let mut scan = Scan::default();
    while let Some(Ok(Some((frame, length)))) = bytes.get(scan.bytes..).map(decode) {
        if scan.last.is_some_and(|last| frame.seq <= last) {
            break;
        }
        scan.bytes += length;
        scan.frames += 1;
        scan.last = Some(frame.seq);
    }
    scan
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn bytes(frames: &[(u64, Vec<u8>, Vec<u8>)]) -> Vec<u8> {
        let mut out = Vec::new();
        for (seq, key, payload) in frames {
            encode(
                Frame {
                    seq: *seq,
                    key,
                    payload,
                },
                &mut out,
            )
            .unwrap();
        }
        out
    }

    #[test]
    fn refuses_what_no_frame_holds() {
        let mut out = vec![7];
        let frame = |key, payload| Frame { seq: 1, key, payload };
        assert_eq!(encode(frame(&[0; 256], b""), &mut out), Err(TooLong::Key(256)));
        let long = vec![0; MAX_BODY];
        assert_eq!(
            encode(frame(b"m", &long), &mut out),
            Err(TooLong::Payload(MAX_BODY))
        );
        assert_eq!(out, [7]);
    }

    #[test]
    fn a_seq_that_does_not_rise_ends_the_scan() {
        let bytes = bytes(&[
            (5, b"m".to_vec(), b"a".to_vec()),
            (5, b"m".to_vec(), b"b".to_vec()),
        ]);
        assert_eq!(scan(&bytes).frames, 1);
    }

    prop_compose! {
        fn records()(
            payloads in prop::collection::vec(
                (prop::collection::vec(any::<u8>(), 0..40), prop::collection::vec(any::<u8>(), 0..200)), 1..8),
            first in 1u64..1_000_000,
        ) -> Vec<(u64, Vec<u8>, Vec<u8>)> {
            payloads.into_iter().zip(first..).map(|((key, payload), seq)| (seq, key, payload)).collect()
        }
    }

    proptest! {
        #[test]
        fn what_is_encoded_is_decoded(records in records()) {
            let bytes = bytes(&records);
            let mut rest = &bytes[..];
            for (seq, key, payload) in &records {
                let (frame, length) = decode(rest).unwrap().unwrap();
                prop_assert_eq!(frame, Frame { seq: *seq, key, payload });
                rest = &rest[length..];
            }
            prop_assert!(rest.is_empty());
            prop_assert_eq!(scan(&bytes).bytes, bytes.len());
        }

        #[test]
        fn a_flipped_bit_is_found(records in records(), at in any::<prop::sample::Index>(), bit in 0u8..8) {
            let mut bytes = bytes(&records);
            let at = at.index(bytes.len());
            bytes[at] ^= 1 << bit;
            let scan = scan(&bytes);
            prop_assert!(scan.bytes <= at, "the frame with the flipped bit was believed");
        }

        #[test]
        fn a_cut_loses_the_cut_frame_alone(records in records(), at in any::<prop::sample::Index>()) {
            let bytes = bytes(&records);
            let cut = at.index(bytes.len());
            let scan = scan(&bytes[..cut]);
            let whole = bytes_until(&records, cut);
            prop_assert_eq!((scan.bytes, scan.frames), whole);
        }

        #[test]
        fn noise_is_never_a_panic(noise in prop::collection::vec(any::<u8>(), 0..300)) {
            prop_assert!(scan(&noise).bytes <= noise.len());
        }
    }

    fn bytes_until(records: &[(u64, Vec<u8>, Vec<u8>)], cut: usize) -> (usize, u64) {
        let (mut end, mut frames) = (0, 0);
        for (_, key, payload) in records {
            let next = end + HEADER + BODY_HEADER + key.len() + payload.len();
            if next > cut {
                break;
            }
            end = next;
            frames += 1;
        }
        (end, frames)
    }
}
