//! Cuts: where a refused block was halved, and what becomes of a cut once both halves are settled.

use corrente_modbus::{CostModel, ReadPlan, ReadRequest, map::NamedRange};
use tokio::time::Instant;

use super::{
    Learned, RETRY, RETRY_LENGTH,
    asking::{Asking, Purpose},
    length::Longest,
};

/// A place that no request spans.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Cut {
    /// What lies between the halves; often nothing.
    pub at: NamedRange,
    /// The block that was refused.
    pub block: NamedRange,
    /// Until when it is sure that this place cannot be spanned; `None` while nothing is.
    pub sure_until: Option<Instant>,
    /// Whether it was refused by silence.
    pub silent: bool,
}

/// What is to become of a cut.
enum Fate {
    /// Its block holds something that explains the refusal.
    Drop,
    /// A read over the cut will show.
    Ask(ReadRequest),
    /// This place cannot be spanned.
    Keep,
    /// The block was too long.
    Length,
    /// Something in its block is not settled yet.
    Wait,
}

impl Learned {
    /// Decides the cuts that can be decided. Returns a request that is needed for one more, if there is one.
    pub(super) fn decide(&mut self, asking: &Asking, now: Instant) -> Option<(ReadRequest, Purpose)> {
        // The innermost first: what they turn out to be explains those around them.
        let mut blocks: Vec<NamedRange> = self.cuts.iter().map(|cut| cut.block).collect();
        blocks.sort_by_key(|block| block.end - block.start);
        blocks.dedup();
        for block in blocks {
            let undecided = |cut: &&Cut| cut.block == block && cut.sure_until.is_none();
            let Some(cut) = self.cuts.iter().find(undecided).cloned() else {
                continue;
            };
            match self.fate(&cut, asking) {
                Fate::Drop => self.drop_cut(&cut),
                Fate::Keep => self.keep_cut(cut.at, now),
                Fate::Length => self.learn_length(&cut, now),
                Fate::Ask(request) => return Some((request, Purpose::Span(cut.at))),
                Fate::Wait => {}
            }
        }
        None
    }

    fn fate(&self, cut: &Cut, asking: &Asking) -> Fate {
        let within = |part: &usize| {
            self.parts
                .range(*part)
                .is_some_and(|range| cut.block.overlaps(&range))
        };
        let inner = |other: &&Cut| {
            other.at.function == cut.at.function
                && other.at != cut.at
                && cut.block.start < other.at.start
                && other.at.end < cut.block.end
        };
        let length = cut.block.end - cut.block.start;
        if self.quarantine.keys().any(within)
            || self.cuts.iter().filter(inner).any(|cut| cut.sure_until.is_some())
            || self.blocks.iter().any(|(block, _)| cut.block.contains(block))
            || self
                .longest
                .get(&cut.at.function)
                .is_some_and(|longest| u32::from(longest.most) < length)
        {
            return Fate::Drop;
        }
        let mut parts = (0..self.parts.list.len()).filter(within);
        if self.cuts.iter().any(|other| inner(&other)) || !parts.all(|part| asking.has_read(part)) {
            return Fate::Wait;
        }
        match self.across(cut) {
            Some(request) if request.range() != cut.block => Fate::Ask(request),
            // To read over the cut is to read the block, which was refused: a gap, or the length.
            Some(_) if cut.at.start == cut.at.end && self.accepted(cut) < length => Fate::Length,
            _ => Fate::Keep,
        }
    }

    /// The request for the parts on either side of a cut.
    pub(super) fn across(&self, cut: &Cut) -> Option<ReadRequest> {
        let ranges = || (0..self.parts.list.len()).filter_map(|part| Some((part, self.parts.range(part)?)));
        let here = |range: &NamedRange| range.function == cut.at.function;
        let before = ranges()
            .find(|(_, range)| here(range) && range.end == cut.at.start)?
            .0;
        let after = ranges()
            .find(|(_, range)| here(range) && range.start == cut.at.end)?
            .0;
        let mut constraints = self.constraints();
        constraints.barriers.retain(|barrier| *barrier != cut.at);
        // At such a price one request is always the cheapest, if one is allowed.
        let dear = CostModel {
            round_trip_micros: u64::MAX / 8,
            register_micros: 0,
            pause_micros: 0,
        };
        let values = self.parts.values(&[before, after]);
        let plan = ReadPlan::build_within(&self.map, &values, &dear, &constraints);
        let mut requests = plan.requests.into_iter();
        requests.next().filter(|_| requests.next().is_none())
    }

    fn accepted(&self, cut: &Cut) -> u32 {
        self.accepted
            .get(&cut.at.function)
            .map_or(0, |&most| u32::from(most))
    }

    pub(super) fn drop_cut(&mut self, cut: &Cut) {
        self.cuts.retain(|other| other != cut);
        self.changed = true;
    }

    pub(super) fn keep_cut(&mut self, at: NamedRange, now: Instant) {
        let until = self.retry(u64::from(at.start), RETRY, now);
        for cut in self.cuts.iter_mut().filter(|cut| cut.at == at) {
            cut.sure_until = Some(until);
        }
    }

    /// A read over the cut was answered: the place is fine, so that it was the length.
    pub(super) fn spanned(&mut self, at: NamedRange, now: Instant) {
        let Some(cut) = self.cuts.iter().find(|cut| cut.at == at).cloned() else {
            return;
        };
        if cut.sure_until.is_some() {
            self.drop_cut(&cut);
        } else if self.accepted(&cut) < cut.block.end - cut.block.start {
            self.learn_length(&cut, now);
        } else {
            // As long a read was answered elsewhere: this block is not to the meter's liking as a whole.
            self.keep_cut(at, now);
        }
    }

    fn learn_length(&mut self, cut: &Cut, now: Instant) {
        let function = cut.at.function;
        if let Some(&most) = self.accepted.get(&function) {
            let until = self.retry(u64::from(most), RETRY_LENGTH, now);
            let longest = Longest {
                most,
                until,
                refused: u16::try_from(cut.block.end - cut.block.start).unwrap_or(u16::MAX),
                block: cut.block,
                silent: cut.silent,
            };
            self.longest.insert(function, longest);
            self.changed = true;
        }
        self.drop_cut(cut);
    }
}
