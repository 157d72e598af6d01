//! The parts of a map: what can only be read as a whole, and so is good or bad as a whole.
//!
//! A part is a value with its scale factor, or a coherent group. Values with exactly the same registers, such as
//! the bits of one, are one part.

use std::collections::BTreeMap;

use corrente_modbus::{CompiledMap, ReadRequest, map::NamedRange};

/// What can only be read as a whole.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Part {
    pub range: NamedRange,
    /// By their indices in the map.
    pub values: Vec<usize>,
}

/// All parts of a map, by table and address.
#[derive(Clone, Debug)]
pub(super) struct Parts {
    pub list: Vec<Part>,
    /// The part of each value.
    of: Vec<usize>,
}

impl Parts {
    pub fn of(map: &CompiledMap) -> Self {
        let mut list: Vec<Part> = Vec::new();
        let mut groups = BTreeMap::new();
        for (index, value) in map.values.iter().enumerate() {
            let range = value.range();
            if let Some(group) = value.coherent.as_deref() {
                if let Some(part) = groups
                    .get(&(value.function, group))
                    .and_then(|&at: &usize| list.get_mut(at))
                {
                    part.range.start = part.range.start.min(range.start);
                    part.range.end = part.range.end.max(range.end);
                    part.values.push(index);
                    continue;
                }
                groups.insert((value.function, group), list.len());
            }
            list.push(Part {
                range,
                values: vec![index],
            });
        }
        list.sort_by_key(|part| part.range);
        list.dedup_by(|part, kept| {
            let same = part.range == kept.range;
            if same {
                kept.values.append(&mut part.values);
            }
            same
        });
        let mut of = vec![0; map.values.len()];
        for (number, part) in list.iter().enumerate() {
            for &value in &part.values {
                if let Some(of) = of.get_mut(value) {
                    *of = number;
                }
            }
        }
        Self { list, of }
    }

    /// The parts that a request reads, rising.
    pub fn in_request(&self, request: &ReadRequest) -> Vec<usize> {
        let mut parts: Vec<usize> = request
            .values
            .iter()
            .filter_map(|&value| self.of.get(value).copied())
            .collect();
        parts.sort_unstable();
        parts.dedup();
        parts
    }

    /// The values of some parts.
    pub fn values(&self, parts: &[usize]) -> Vec<usize> {
        parts
            .iter()
            .filter_map(|&part| self.list.get(part))
            .flat_map(|part| part.values.iter().copied())
            .collect()
    }

    pub fn range(&self, part: usize) -> Option<NamedRange> {
        self.list.get(part).map(|part| part.range)
    }

    /// Where to cut a block of parts in two, as near to its middle as can be: the parts before, and what lies
    /// between the two halves. `None` where every part overlaps the next.
    pub fn middle(&self, parts: &[usize]) -> Option<(usize, NamedRange)> {
        let mut end = 0;
        let mut best: Option<(usize, NamedRange)> = None;
        for (at, &part) in parts.iter().enumerate() {
            let range = self.range(part)?;
            let between = NamedRange {
                start: end,
                end: range.start,
                ..range
            };
            // Of two that are as near, the wider gap, which may well be what was refused.
            let merit = |at: usize, between: &NamedRange| {
                let distance = at.abs_diff(parts.len() - at);
                (distance, std::cmp::Reverse(between.end - between.start))
            };
            let better = |(than, gap): (usize, NamedRange)| merit(at, &between) < merit(than, &gap);
            if at > 0 && end <= range.start && best.is_none_or(better) {
                best = Some((at, between));
            }
            end = end.max(range.end);
        }
        best
    }

    /// The part that takes all the addresses of these.
    pub fn widest(&self, parts: &[usize]) -> Option<usize> {
        parts.iter().copied().find(|&part| {
            let range = self.range(part);
            range.is_some_and(|range| {
                parts
                    .iter()
                    .filter_map(|&other| self.range(other))
                    .all(|other| range.contains(&other))
            })
        })
    }
}
