//! What is asked in one poll: the plan, then what the answers make necessary, within a budget.

use std::{collections::VecDeque, sync::Arc};

use corrente_modbus::{
    ReadPlan, ReadRequest,
    map::{NamedRange, is_bits},
};
use tokio::time::Instant;

use super::{BUDGET, Cause, FAILURES, Learned, Quarantined, RETRY, RETRY_ALL, SILENCES, Suspect, cuts::Cut};

/// What a poll may do beyond asking for what is known to be answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Allowance {
    /// Whether the line has time for a question that is expected to cost a timeout.
    pub timeouts: bool,
}

/// Why something is asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Purpose {
    /// It is in the plan, or a half of what was refused.
    Read,
    /// To see whether this place can be spanned.
    Span(NamedRange),
    /// To see whether a quarantined part can be read again.
    Retry(usize),
    /// To see whether as much can be read at a time.
    Length,
}

/// A poll's questions.
#[derive(Debug)]
pub struct Asking {
    plan: Arc<ReadPlan>,
    /// How far in the plan it is.
    at: usize,
    firm: usize,
    /// How many requests of the plan are asked in any case.
    sure: usize,
    extra: VecDeque<(ReadRequest, Purpose)>,
    /// Whether the current question is the first of `extra`, rather than of the plan.
    beyond: bool,
    budget: u32,
    /// Whether a question may still cost a timeout.
    timeouts: bool,
    silences: u32,
    /// Whether registers came.
    good: bool,
    answered: bool,
    asked: bool,
    /// The parts that were read, where that matters.
    read: Vec<bool>,
    /// Blocks that failed with an exception that is not about registers.
    failed: Vec<(ReadRequest, Cause)>,
    /// Parts that were quarantined in this poll.
    pub(super) quarantined: Vec<usize>,
}

impl Asking {
    /// Whether the meter answered anything, if only with an exception.
    #[must_use]
    pub fn answered(&self) -> bool {
        self.answered
    }

    /// Whether anything was asked.
    #[must_use]
    pub fn asked(&self) -> bool {
        self.asked
    }

    pub(super) fn has_read(&self, part: usize) -> bool {
        self.read.get(part).copied().unwrap_or(false)
    }

    /// The current question.
    #[must_use]
    pub fn request(&self) -> Option<&ReadRequest> {
        if self.beyond {
            self.extra.front().map(|(request, _)| request)
        } else {
            self.plan.requests.get(self.at)
        }
    }

    /// Whether the current question is an ordinary one, which may be asked again after a timeout.
    #[must_use]
    pub fn is_firm(&self) -> bool {
        !self.beyond && self.at < self.firm
    }

    /// The unit answered a question that is none of the poll's own, such as a probe.
    pub fn alive(&mut self) {
        self.answered = true;
        self.asked = true;
    }

    fn purpose(&self) -> Purpose {
        match self.extra.front() {
            Some(&(_, purpose)) if self.beyond => purpose,
            _ => Purpose::Read,
        }
    }

    fn pass(&mut self) {
        if self.beyond {
            self.extra.pop_front();
        } else {
            self.at += 1;
        }
    }
}

impl Learned {
    /// Begins a poll.
    pub fn begin(&mut self, allowance: Allowance, now: Instant) -> Asking {
        self.expire(now);
        if self.changed {
            self.replan();
        }
        let mut asking = Asking {
            plan: self.plan.clone(),
            at: 0,
            firm: self.firm,
            sure: self.sure,
            extra: VecDeque::new(),
            beyond: false,
            budget: BUDGET,
            // Where all is under suspicion there is nobody to wait for it, and the unit answers for itself.
            timeouts: self.sure == 0 || allowance.timeouts && self.pace.left(now).is_none(),
            silences: 0,
            good: false,
            answered: false,
            asked: false,
            read: Vec::new(),
            failed: Vec::new(),
            quarantined: Vec::new(),
        };
        if let Some(retry) = self.due_retry(&asking, now) {
            asking.extra.push_back(retry);
        }
        self.settle(&mut asking, now);
        asking
    }

    /// What is tried again in this poll: one thing, the longest due.
    fn due_retry(&self, asking: &Asking, now: Instant) -> Option<(ReadRequest, Purpose)> {
        let due = |part: &&Quarantined| part.until <= now && (asking.timeouts || !part.silent);
        // Where all is refused, whoever was first would hide that the others are fine again.
        let turn = |part: usize| {
            let all = self.is_all_quarantined();
            let count = self.parts.list.len().max(1);
            all.then(|| (part + count - self.turn % count) % count)
        };
        let parts = self.quarantine.iter().filter(|(_, part)| due(part));
        if let Some((&part, _)) = parts.min_by_key(|(at, part)| (turn(**at), part.until)) {
            let careful = self.requests(&[part]).into_iter().next()?;
            let is_even = !self.map.limits.even_count || is_bits(careful.function) || careful.count % 2 == 0;
            if is_even {
                return Some((careful, Purpose::Retry(part)));
            }
            // What it was padded with is out of reach as well: the two may heal together.
            let plan = ReadPlan::build_for(&self.map, &self.parts.values(&[part]), &self.cost);
            return Some((plan.requests.into_iter().next()?, Purpose::Retry(part)));
        }
        let cut = self
            .cuts
            .iter()
            .find(|cut| cut.sure_until.is_some_and(|until| until <= now))?;
        Some((self.across(cut)?, Purpose::Span(cut.at)))
    }

    fn expire(&mut self, now: Instant) {
        let (lengths, blocks, cuts) = (self.longest.len(), self.blocks.len(), self.cuts.len());
        self.longest.retain(|_, longest| longest.until > now);
        self.blocks.retain(|(_, until)| *until > now);
        // What cannot be tried again by one read is tried by the plan.
        let hopeless: Vec<Cut> = self
            .cuts
            .iter()
            .filter(|cut| cut.sure_until.is_some_and(|until| until <= now) && self.across(cut).is_none())
            .cloned()
            .collect();
        self.cuts.retain(|cut| !hopeless.contains(cut));
        self.changed |= lengths > self.longest.len() || blocks > self.blocks.len() || cuts > self.cuts.len();
    }

    /// The current question was answered with registers.
    pub fn answered(&mut self, asking: &mut Asking, now: Instant) {
        let purpose = asking.purpose();
        (asking.good, asking.answered, asking.asked) = (true, true, true);
        if let Some(request) = asking.request() {
            let range = request.range();
            let longest = self.accepted.entry(request.function).or_default();
            *longest = (*longest).max(request.count);
            if !self.suspects.is_empty() {
                self.clear(range);
                if !self.suspects.iter().any(|suspect| suspect.silent) {
                    self.pace.succeeded();
                }
            }
            if !self.cuts.is_empty() {
                let parts = self.parts.in_request(request);
                asking.read.resize(self.parts.list.len(), false);
                for part in parts {
                    if let Some(read) = asking.read.get_mut(part) {
                        *read = true;
                    }
                }
            }
        }
        match purpose {
            Purpose::Read => {}
            Purpose::Span(at) => self.spanned(at, now),
            Purpose::Length => self.tried_length(asking, true),
            Purpose::Retry(_) if self.is_all_quarantined() => self.forget(),
            Purpose::Retry(part) => {
                self.quarantine.remove(&part);
                self.changed = true;
            }
        }
        self.next(asking, now);
    }

    /// The current question was answered with an exception that says there is nothing to read: 01, 02 or 03.
    pub fn refused(&mut self, asking: &mut Asking, cause: Cause, now: Instant) {
        (asking.answered, asking.asked) = (true, true);
        self.not_readable(asking, cause, false, now);
        self.next(asking, now);
    }

    /// The current question was answered with another exception.
    pub fn failed(&mut self, asking: &mut Asking, cause: Cause, now: Instant) {
        (asking.answered, asking.asked) = (true, true);
        if let Some(range) = asking.request().map(ReadRequest::range) {
            let before = self.suspects.len();
            self.suspects
                .retain(|suspect| !(suspect.silent && range.contains(&suspect.range)));
            self.changed |= self.suspects.len() < before;
        }
        match (asking.purpose(), asking.request().cloned()) {
            (Purpose::Read, Some(request)) => asking.failed.push((request, cause)),
            (Purpose::Retry(part), _) => self.renew(part, cause, now),
            (Purpose::Length, _) => self.tried_length(asking, false),
            // Not again in this poll.
            _ => asking.budget = 0,
        }
        self.next(asking, now);
    }

    /// The unit has no time for the current question, which says nothing about what is asked for.
    pub fn busy(&mut self, asking: &mut Asking, now: Instant) {
        (asking.answered, asking.asked) = (true, true);
        asking.budget = 0;
        self.next(asking, now);
    }

    /// Nobody answered the current question. Returns whether the poll goes on.
    pub fn silent(&mut self, asking: &mut Asking, cause: Cause, now: Instant) -> bool {
        asking.asked = true;
        asking.timeouts = false;
        asking.silences += 1;
        let range = asking.request().map(ReadRequest::range);
        if !asking.answered {
            // The unit may be gone. If it is only this block, the others come first the next time.
            if let Some(range) = range.filter(|_| asking.purpose() == Purpose::Read) {
                self.suspect(range, cause, true, 0);
            }
            return false;
        }
        self.pace.failed(now);
        match (asking.purpose(), range) {
            (Purpose::Read, Some(range)) => {
                if self.suspect(range, cause.clone(), true, 1) >= SILENCES {
                    self.not_readable(asking, cause, true, now);
                }
            }
            _ => self.not_readable(asking, cause, true, now),
        }
        self.next(asking, now);
        asking.silences < 2 && asking.request().is_some()
    }

    /// Ends a poll. Returns the values that it brought into quarantine.
    pub fn finish(&mut self, mut asking: Asking, now: Instant) -> Vec<usize> {
        for (request, cause) in std::mem::take(&mut asking.failed) {
            // A meter that fails altogether says nothing about one block.
            if asking.good && self.suspect(request.range(), cause.clone(), false, 1) >= FAILURES {
                asking.budget = 0;
                self.bisect(&mut asking, &request, cause, false, now);
            }
        }
        if !asking.quarantined.is_empty() && self.is_all_quarantined() {
            self.postpone(now);
        }
        if self.changed {
            self.replan();
        }
        self.parts.values(&asking.quarantined)
    }

    fn next(&mut self, asking: &mut Asking, now: Instant) {
        asking.pass();
        self.settle(asking, now);
    }

    /// Goes to the next question that may be asked.
    fn settle(&mut self, asking: &mut Asking, now: Instant) {
        if asking.at < asking.sure || asking.timeouts && asking.at < asking.plan.requests.len() {
            asking.beyond = false;
            return;
        }
        asking.beyond = true;
        if !asking.extra.is_empty() || asking.budget == 0 {
            return;
        }
        let mut ask = None;
        if !self.cuts.is_empty() {
            ask = self.decide(asking, now);
        }
        if ask.is_none() && !self.longest.is_empty() {
            ask = self
                .longer(asking.timeouts)
                .map(|request| (request, Purpose::Length));
        }
        if let Some(ask) = ask {
            asking.budget -= 1;
            asking.extra.push_back(ask);
        }
    }

    fn not_readable(&mut self, asking: &mut Asking, cause: Cause, silent: bool, now: Instant) {
        match (asking.purpose(), asking.request().cloned()) {
            (Purpose::Read, Some(request)) => self.bisect(asking, &request, cause, silent, now),
            (Purpose::Span(at), _) => self.keep_cut(at, now),
            (Purpose::Retry(part), _) => self.renew(part, cause, now),
            (Purpose::Length, _) => self.tried_length(asking, false),
            _ => {}
        }
    }

    fn tried_length(&mut self, asking: &Asking, answered: bool) {
        if let Some(request) = asking.request() {
            self.tried(request, answered);
        }
    }

    /// A block cannot be read: it is cut in two, or is the one part that cannot be read.
    fn bisect(&mut self, asking: &mut Asking, block: &ReadRequest, cause: Cause, silent: bool, now: Instant) {
        let range = block.range();
        let parts = self.parts.in_request(block);
        self.suspects.retain(|suspect| !range.contains(&suspect.range));
        self.changed = true;
        let middle = self.parts.middle(&parts).filter(|_| parts.len() > 1);
        let halves = if let Some((at, between)) = middle {
            self.cuts.push(Cut {
                at: between,
                block: range,
                sure_until: None,
                silent,
            });
            let (before, after) = parts.split_at(at.min(parts.len()));
            [self.requests(before), self.requests(after)].concat()
        } else if let Some(widest) = self.parts.widest(&parts) {
            self.quarantine(asking, widest, range, cause.clone(), silent, now);
            let rest: Vec<usize> = parts.into_iter().filter(|&part| part != widest).collect();
            self.requests(&rest)
        } else {
            let until = self.retry(u64::from(range.start), RETRY, now);
            self.blocks.push((range, until));
            self.requests(&parts)
        };
        if silent {
            // Either half may be the one. Once more, and it is cut as well.
            for half in halves {
                self.suspect(half.range(), cause.clone(), true, SILENCES - 1);
            }
        } else if halves.len() <= asking.budget as usize {
            asking.budget -= halves.len() as u32;
            let asks = halves.into_iter().map(|half| (half, Purpose::Read));
            asking.extra.extend(asks);
        }
    }

    fn quarantine(
        &mut self,
        asking: &mut Asking,
        part: usize,
        asked: NamedRange,
        cause: Cause,
        silent: bool,
        now: Instant,
    ) {
        let until = self.retry(part as u64, RETRY, now);
        // Whoever was refused together with this part, as the padding of a read, deserves another try.
        if let Some(range) = self.parts.range(part) {
            let padded = |other: &&mut Quarantined| other.asked.overlaps(&range);
            for other in self.quarantine.values_mut().filter(padded) {
                other.until = other.until.min(now);
                other.asked.end = other.asked.start;
            }
        }
        let quarantined = Quarantined {
            cause,
            since: now,
            until,
            asked,
            silent,
        };
        self.quarantine.insert(part, quarantined);
        asking.quarantined.push(part);
    }

    fn renew(&mut self, part: usize, cause: Cause, now: Instant) {
        if self.is_all_quarantined() {
            return self.postpone(now);
        }
        let until = self.retry(part as u64, RETRY, now);
        if let Some(quarantined) = self.quarantine.get_mut(&part) {
            quarantined.until = until;
            quarantined.cause = cause;
        }
    }

    /// Everything is refused: one part is tried again soon, the next one.
    fn postpone(&mut self, now: Instant) {
        self.turn = self.turn.wrapping_add(1);
        let until = self.retry(0, RETRY_ALL, now);
        for quarantined in self.quarantine.values_mut() {
            quarantined.until = until;
        }
    }

    /// The meter did not answer: whoever answers next may be another one, which may take shorter reads.
    pub fn away(&mut self) {
        self.accepted.clear();
    }

    /// The same meter, of which nothing is known.
    #[must_use]
    pub fn anew(&self) -> Self {
        let mut anew = self.clone();
        anew.forget();
        anew.replan();
        anew
    }

    fn forget(&mut self) {
        self.quarantine.clear();
        self.cuts.clear();
        self.blocks.clear();
        self.longest.clear();
        self.accepted.clear();
        self.suspects.clear();
        self.changed = true;
    }

    /// A range was read: what of it was under suspicion is so no more.
    fn clear(&mut self, range: NamedRange) {
        let before = self.suspects.len();
        let mut trimmed = false;
        self.suspects.retain_mut(|suspect| {
            let old = suspect.range;
            if old.overlaps(&range) {
                // The plan may have changed meanwhile, so that no request reads all of it.
                if range.start <= old.start {
                    suspect.range.start = range.end.min(old.end);
                }
                if range.end >= old.end {
                    suspect.range.end = range.start.max(suspect.range.start);
                }
                trimmed |= suspect.range != old;
            }
            suspect.range.start < suspect.range.end
        });
        self.changed |= trimmed || self.suspects.len() < before;
    }

    /// Takes note of a block that was silent or failed; returns how often it was so in a row.
    fn suspect(&mut self, range: NamedRange, cause: Cause, silent: bool, times: u32) -> u32 {
        self.changed |= silent;
        if let Some(suspect) = self.suspects.iter_mut().find(|suspect| suspect.range == range) {
            suspect.cause = cause;
            suspect.silent |= silent;
            suspect.times += times;
            return suspect.times;
        }
        self.suspects.push(Suspect {
            range,
            cause,
            times,
            silent,
        });
        times
    }
}
