//! How long a read a meter takes: found by halving between the longest that was answered and the shortest refused.
//!
//! Only reads that a plan could make are tried: from the start of a part to the end of one, with what the map asks
//! for, within the block that was too long, all of which was read in pieces. So each is refused for its length, if it
//! is. The budget of a poll bounds how many it makes; each leaves half of what was in question, or less.

use corrente_modbus::{CostModel, ReadPlan, ReadRequest, map::NamedRange};
use tokio::time::Instant;

use super::Learned;

/// The longest read of a table, as far as it is known.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Longest {
    /// It was answered.
    pub most: u16,
    /// Until when it is believed.
    pub until: Instant,
    /// The shortest that was refused.
    pub refused: u16,
    /// What was refused first.
    pub block: NamedRange,
    /// Whether by silence, so that each try may cost a timeout.
    pub silent: bool,
}

impl Learned {
    /// A read that says more about the length, if there is one.
    pub(super) fn longer(&mut self, timeouts: bool) -> Option<ReadRequest> {
        let open = |longest: &&Longest| {
            longest.most.saturating_add(1) < longest.refused && (timeouts || !longest.silent)
        };
        while let Some(longest) = self.longest.values().find(open) {
            let function = longest.block.function;
            let request = self.between(longest);
            if request.is_some() {
                return request;
            }
            // No read has a length that is in question.
            if let Some(longest) = self.longest.get_mut(&function) {
                longest.refused = longest.most.saturating_add(1);
            }
        }
        None
    }

    /// The read nearest to the middle of what is in question.
    fn between(&self, longest: &Longest) -> Option<ReadRequest> {
        let middle = u32::midpoint(longest.most.into(), longest.refused.into());
        let parts: Vec<(usize, NamedRange)> = (0..self.parts.list.len())
            .filter_map(|part| Some((part, self.parts.range(part)?)))
            .filter(|(_, range)| longest.block.contains(range))
            .collect();
        let mut best: Option<(u32, ReadRequest)> = None;
        for (at, &(first, start)) in parts.iter().enumerate() {
            for &(last, end) in parts.get(at..).unwrap_or_default() {
                let length = end.end.saturating_sub(start.start);
                let distance = length.abs_diff(middle);
                // A request may be padded by one.
                let possible = u32::from(longest.most) <= length && length < longest.refused.into();
                if !possible || best.as_ref().is_some_and(|best| best.0 <= distance) {
                    continue;
                }
                if let Some(request) = self.whole(longest, first, last) {
                    best = Some((distance, request));
                }
            }
        }
        best.map(|(_, request)| request)
    }

    /// The one request for some parts, if its length is in question.
    fn whole(&self, longest: &Longest, first: usize, last: usize) -> Option<ReadRequest> {
        let mut constraints = self.constraints();
        constraints.longest.remove(&longest.block.function);
        // At such a price one request is always the cheapest, if one is allowed.
        let dear = CostModel {
            round_trip_micros: u64::MAX / 8,
            register_micros: 0,
            pause_micros: 0,
        };
        let values = self.parts.values(&[first, last]);
        let plan = ReadPlan::build_within(&self.map, &values, &dear, &constraints);
        let mut requests = plan.requests.into_iter();
        requests.next().filter(|request| {
            requests.next().is_none() && longest.most < request.count && request.count < longest.refused
        })
    }

    /// A read to find out about the length was answered, or not.
    pub(super) fn tried(&mut self, request: &ReadRequest, answered: bool) {
        let Some(longest) = self.longest.get_mut(&request.function) else {
            return;
        };
        if answered {
            longest.most = longest.most.max(request.count);
            self.changed = true;
        } else {
            longest.refused = longest.refused.min(request.count);
        }
    }
}
