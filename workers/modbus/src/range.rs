//! Which ranges one request may read, under a meter's limits.

use std::fmt;

use crate::{
    map::{CompiledMap, MAX_BITS, NamedRange, is_bits},
    plan::Constraints,
};

/// Why a range cannot be read in one request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Unreadable {
    /// It is longer than one request carries.
    TooLong {
        /// Registers or bits that it spans.
        spans: u32,
        /// The most that one request carries.
        most: u32,
    },
    /// The meter refuses gaps, and there is one at this address.
    Gap(u32),
    /// The meter wants an even number of registers and refuses gaps, and the map names no register to
    /// read along.
    NoPadding,
    /// The meter has refused this before.
    Refused,
}

impl fmt::Display for Unreadable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::TooLong { spans, most } => write!(
                f,
                "it spans {spans} addresses and the limit is {most}; raise maxRegistersPerRead if the meter \
                 allows it, or leave the group apart"
            ),
            Self::Gap(address) => write!(
                f,
                "the map names nothing at address {address}, and wholeValueReads forbids reading gaps; name \
                 the value that is there, or leave the group apart"
            ),
            Self::Refused => write!(f, "the meter has refused to read it in one request"),
            Self::NoPadding => write!(
                f,
                "evenRegisterCount wants another register beside it, and wholeValueReads forbids reading one \
                 that the map does not name; name the value beside it"
            ),
        }
    }
}

/// The request that reads this range: its first address, and its count after padding.
pub(crate) fn request(
    map: &CompiledMap,
    range: NamedRange,
    constraints: &Constraints,
) -> Result<(u32, u32), Unreadable> {
    let limits = &map.limits;
    let bits = is_bits(range.function);
    let even = limits.even_count && !bits;
    let most = match (bits, even) {
        (true, _) => u32::from(MAX_BITS),
        (false, _) => u32::from(limits.max_registers),
    };
    let most = constraints
        .longest(range.function)
        .map_or(most, |learned| most.min(learned));
    let most = if even { most & !1 } else { most };
    let spans = range.end - range.start;
    if spans > most {
        return Err(Unreadable::TooLong { spans, most });
    }
    if limits.whole_values
        && let Some(gap) = gap(map, range)
    {
        return Err(Unreadable::Gap(gap));
    }
    if !constraints.allow(range) {
        return Err(Unreadable::Refused);
    }
    if !even || spans.is_multiple_of(2) {
        return Ok((range.start, spans));
    }
    // The extra register comes after, where there is one, since that is what people do by hand.
    let after = (range.end < 65536).then(|| NamedRange {
        end: range.end + 1,
        ..range
    });
    let before = range
        .start
        .checked_sub(1)
        .map(|start| NamedRange { start, ..range });
    let possible: Vec<NamedRange> = [after, before]
        .into_iter()
        .flatten()
        .filter(|padded| !limits.whole_values || (gap(map, *padded).is_none() && whole(map, *padded)))
        .collect();
    // Better one that crosses nothing at all; a register that is known to be bad never.
    let best = possible.iter().find(|padded| constraints.allow(**padded));
    best.or_else(|| possible.iter().find(|padded| !constraints.touch(**padded)))
        .map(|padded| (padded.start, padded.end - padded.start))
        .ok_or(Unreadable::NoPadding)
}

/// The first address of the range that the map does not name.
fn gap(map: &CompiledMap, range: NamedRange) -> Option<u32> {
    let mut covered = range.start;
    for named in &map.named {
        if named.function == range.function && named.start <= covered {
            covered = covered.max(named.end);
        }
    }
    (covered < range.end).then_some(covered)
}

/// Whether neither end of the range cuts through a named value.
fn whole(map: &CompiledMap, range: NamedRange) -> bool {
    let cuts = |named: &NamedRange, at: u32| named.start < at && at < named.end;
    !map.named
        .iter()
        .filter(|named| named.function == range.function)
        .any(|named| cuts(named, range.start) || cuts(named, range.end))
}
