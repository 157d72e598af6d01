//! A read plan that learns what a meter refuses. Pure; time comes in.
//!
//! A meter refuses a block (exception 02 or 03) because of a register in it, because of a gap between its values, or
//! because of its length. Which one it is is found by bisection, in the course of polls:
//! 1. A refused block is cut in its middle, and the halves are asked for in the same poll, as far as a budget of
//!    extra requests goes. The cut stays, so that the next poll goes on where this one ended.
//! 2. A part (what can only be read as a whole; see `parts`) that is refused alone is **quarantined**: left out, not
//!    spanned as a gap either, and asked for again alone after an hour, more or less, so that the meters of a line
//!    do not all come at once.
//! 3. A cut whose block holds something quarantined has served its purpose and goes. Where both halves are good,
//!    the parts on either side of the cut are read together: refused, it is the gap between them, and the cut is
//!    kept; answered, it is the **length**. The longest that was answered is the most from now on, and between that
//!    and the shortest that was refused the limit is searched for. Both are tried again like a quarantined part. See
//!    [`cuts`] and [`length`].
//! 4. A block that is **silent**, or fails with another exception, while the meter answers others, is taken for
//!    refused when it has been so repeatedly. Silence costs a timeout and the connection, so the suspect is asked
//!    last, once in a poll at most, with pauses that double, and only when the line has time; the others do not
//!    wait for it. What was silent while nothing else was answered is asked after the others, and no suspect yet:
//!    it may have been the unit, or the line.
//! 5. Where everything is refused, that is no bad register but the wrong map, the wrong unit or a meter that is not
//!    ready: one part is tried again after a minute, each in its turn, and when it answers all is forgotten.

mod asking;
mod cuts;
mod length;
mod parts;
#[cfg(test)]
mod tests;

use std::{
    collections::BTreeMap,
    hash::{Hash, Hasher},
    sync::Arc,
    time::Duration,
};

use corrente_crds::profile::Function;
use corrente_modbus::{CompiledMap, Constraints, CostModel, ReadPlan, ReadRequest, map::NamedRange};
use tokio::time::Instant;
use xxhash_rust::xxh3::Xxh3;

pub use self::asking::{Allowance, Asking};
use self::{cuts::Cut, length::Longest, parts::Parts};
use crate::backoff::{Backoff, Policy};

/// How long something refused is not asked for again, give or take a tenth.
pub const RETRY: Duration = Duration::from_secs(60 * 60);
/// The same for the longest read: to be wrong about it costs a bisection.
pub const RETRY_LENGTH: Duration = Duration::from_secs(4 * 60 * 60);
/// The same where the meter refused everything.
pub const RETRY_ALL: Duration = Duration::from_secs(60);
/// Extra requests that a poll may make to find out what a meter refuses.
pub const BUDGET: u32 = 16;
/// How often in a row a block is silent, while others are answered, before it is cut.
const SILENCES: u32 = 2;
/// How often in a row it fails.
const FAILURES: u32 = 3;
/// The pauses between questions that are expected to cost a timeout.
const PACE: Policy = Policy {
    tolerated: 0,
    first: Duration::from_secs(2),
    longest: Duration::from_secs(60),
};

/// Why something was refused, in words.
pub type Cause = Arc<str>;

/// A part that is left out.
#[derive(Clone, Debug, PartialEq)]
struct Quarantined {
    cause: Cause,
    since: Instant,
    until: Instant,
    /// What was read when it was refused: more than the part, where a read had to be padded.
    asked: NamedRange,
    silent: bool,
}

/// A block that was silent or failed lately.
#[derive(Clone, Debug, PartialEq)]
struct Suspect {
    range: NamedRange,
    cause: Cause,
    times: u32,
    silent: bool,
}

/// A value that is left out, for people.
#[derive(Clone, Debug, PartialEq)]
pub struct LeftOut {
    /// Its index in the map.
    pub value: usize,
    /// Why.
    pub cause: Cause,
    /// Since when.
    pub since: Instant,
    /// When it is asked for again.
    pub until: Instant,
}

fn seed(name: &str) -> u64 {
    let mut hasher = Xxh3::new();
    name.hash(&mut hasher);
    hasher.finish()
}

/// What is known of one meter, and its plan.
#[derive(Clone, Debug)]
pub struct Learned {
    map: Arc<CompiledMap>,
    cost: CostModel,
    /// The meter's own number, to spread retries.
    seed: u64,
    parts: Arc<Parts>,
    quarantine: BTreeMap<usize, Quarantined>,
    cuts: Vec<Cut>,
    /// Ranges that cannot be cut and are not read whole, and until when.
    blocks: Vec<(NamedRange, Instant)>,
    longest: BTreeMap<Function, Longest>,
    /// The longest read that was answered.
    accepted: BTreeMap<Function, u16>,
    suspects: Vec<Suspect>,
    pace: Backoff,
    plan: Arc<ReadPlan>,
    /// How many requests of the plan are above suspicion; they come first.
    firm: usize,
    /// How many are asked in any case: those, and what was silent when nothing else was answered either.
    sure: usize,
    /// Which part is tried again where all are quarantined: each in its turn.
    turn: usize,
    changed: bool,
}

impl Learned {
    /// Nothing is known yet: the cheapest plan. `name` spreads the retries of meters.
    #[must_use]
    pub fn new(name: &str, map: Arc<CompiledMap>, cost: CostModel) -> Self {
        let plan = ReadPlan::build(&map, &cost);
        Self {
            seed: seed(name),
            parts: Arc::new(Parts::of(&map)),
            firm: plan.requests.len(),
            sure: plan.requests.len(),
            turn: 0,
            plan: Arc::new(plan),
            map,
            cost,
            quarantine: BTreeMap::new(),
            cuts: Vec::new(),
            blocks: Vec::new(),
            longest: BTreeMap::new(),
            accepted: BTreeMap::new(),
            suspects: Vec::new(),
            pace: Backoff::new(PACE),
            changed: false,
        }
    }

    /// The same for another meter. What is not learned, the map and its plan, they share: a thousand meters of one
    /// model need it once.
    #[must_use]
    pub fn of(&self, name: &str) -> Self {
        Self {
            seed: seed(name),
            ..self.clone()
        }
    }

    /// The map it is for.
    #[must_use]
    pub fn map(&self) -> &Arc<CompiledMap> {
        &self.map
    }

    /// The plan at the moment, counted from the map's base; what is under suspicion is last.
    #[must_use]
    pub fn plan(&self) -> &Arc<ReadPlan> {
        &self.plan
    }

    /// Whether nothing is out of the ordinary: every request of the plan can be sent ahead of its turn.
    #[must_use]
    pub fn is_plain(&self) -> bool {
        self.suspects.is_empty()
            && self.quarantine.is_empty()
            && self.cuts.is_empty()
            && self.blocks.is_empty()
    }

    /// Plans with other costs from now on.
    pub fn set_cost(&mut self, cost: CostModel) {
        if self.cost != cost {
            self.cost = cost;
            self.replan();
        }
    }

    /// The values that are left out at the moment.
    #[must_use]
    pub fn left_out(&self) -> Vec<LeftOut> {
        self.quarantine
            .iter()
            .flat_map(|(&part, quarantined)| {
                self.parts.values(&[part]).into_iter().map(|value| LeftOut {
                    value,
                    cause: quarantined.cause.clone(),
                    since: quarantined.since,
                    until: quarantined.until,
                })
            })
            .collect()
    }

    /// How many values are left out.
    #[must_use]
    pub fn left_out_count(&self) -> usize {
        let parts = self
            .quarantine
            .keys()
            .filter_map(|&part| self.parts.list.get(part));
        parts.map(|part| part.values.len()).sum()
    }

    /// The longest reads that the meter was found to take, by table, where they are shorter than allowed.
    pub fn longest(&self) -> impl Iterator<Item = (Function, u16)> {
        self.longest
            .iter()
            .map(|(&function, longest)| (function, longest.most))
    }

    /// Calls `out` with the values that are left out, or in a block that is not asked for at the moment, and why.
    pub fn reasons(&self, out: &mut impl FnMut(usize, &Cause)) {
        for (&part, quarantined) in &self.quarantine {
            for value in self.parts.values(&[part]) {
                out(value, &quarantined.cause);
            }
        }
        for request in self.plan.requests.iter().skip(self.sure) {
            let range = request.range();
            if let Some(suspect) = self
                .suspects
                .iter()
                .find(|suspect| suspect.range.overlaps(&range))
            {
                for &value in &request.values {
                    out(value, &suspect.cause);
                }
            }
        }
    }

    /// A cheap request to see whether the meter is there at all: one part, another one at each attempt, so that one
    /// that is never answered does not hide the meter. `None` where the plan is as cheap: it is one request, and every
    /// other attempt.
    #[must_use]
    pub fn probe(&self, attempt: u64) -> Option<ReadRequest> {
        if self.plan.requests.len() == 1 && attempt.is_multiple_of(2) {
            return None;
        }
        let mut wanted = self.wanted();
        if wanted.is_empty() {
            wanted = (0..self.parts.list.len()).collect();
        }
        // The smallest first.
        wanted.sort_by_key(|&part| self.parts.range(part).map(|range| range.end - range.start));
        let turn = attempt.checked_rem(wanted.len() as u64)?;
        let part = wanted.get(usize::try_from(turn).ok()?)?;
        self.requests(&[*part]).into_iter().next()
    }

    fn wanted(&self) -> Vec<usize> {
        let parts = 0..self.parts.list.len();
        parts.filter(|part| !self.quarantine.contains_key(part)).collect()
    }

    fn is_all_quarantined(&self) -> bool {
        self.quarantine.len() == self.parts.list.len()
    }

    fn requests(&self, parts: &[usize]) -> Vec<ReadRequest> {
        self.within(parts, &self.constraints()).requests
    }

    fn within(&self, parts: &[usize], constraints: &Constraints) -> ReadPlan {
        ReadPlan::build_within(&self.map, &self.parts.values(parts), &self.cost, constraints)
    }

    fn constraints(&self) -> Constraints {
        let mut barriers: Vec<NamedRange> = self.cuts.iter().map(|cut| cut.at).collect();
        let wanted = self.wanted();
        for &part in self.quarantine.keys() {
            let Some(range) = self.parts.range(part) else {
                continue;
            };
            // Registers that others need are not at fault.
            let good = |at: u32| {
                let here = NamedRange {
                    start: at,
                    end: at + 1,
                    ..range
                };
                let ranges = wanted.iter().filter_map(|&part| self.parts.range(part));
                ranges.into_iter().any(|range| range.overlaps(&here))
            };
            let bad = (range.start..range.end).filter(|&at| !good(at));
            barriers.extend(bad.map(|at| NamedRange {
                start: at,
                end: at + 1,
                ..range
            }));
        }
        Constraints {
            longest: self.longest().collect(),
            barriers,
            blocks: self.blocks.iter().map(|block| block.0).collect(),
        }
    }

    fn replan(&mut self) {
        self.changed = false;
        let mut plan = self.within(&self.wanted(), &self.constraints());
        // What is read no more, or was read meanwhile but for a gap, is no matter of suspicion.
        let ranges: Vec<NamedRange> = plan.requests.iter().map(ReadRequest::range).collect();
        self.suspects
            .retain(|suspect| ranges.iter().any(|range| range.overlaps(&suspect.range)));
        let doubt = |request: &ReadRequest| {
            let range = request.range();
            let suspects = self.suspects.iter().filter(|suspect| suspect.silent);
            let times = suspects.filter(|suspect| suspect.range.overlaps(&range));
            times.map(|suspect| 1 + suspect.times.min(1)).max().unwrap_or(0)
        };
        plan.requests.sort_by_key(doubt);
        self.firm = plan.requests.iter().filter(|request| doubt(request) == 0).count();
        self.sure = plan.requests.iter().filter(|request| doubt(request) <= 1).count();
        self.plan = Arc::new(plan);
    }

    /// When to ask again for something that was refused now.
    fn retry(&self, what: u64, after: Duration, now: Instant) -> Instant {
        let mut hasher = Xxh3::new();
        (self.seed, what).hash(&mut hasher);
        // From nine to eleven tenths.
        let tenths = 0.9 + 0.2 * (hasher.finish() % 1_000) as f64 / 1_000.0;
        now + after.mul_f64(tenths)
    }
}
