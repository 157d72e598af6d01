//! What an endpoint does next. Pure; both clocks come in: the wall's for slots, the steady one for pauses.
//!
//! **Healthy units first.** A unit stands in one of three classes:
//! - it *answers*: its meters are polled when they are due, the longest due first;
//! - there is *hope*: it was never asked, or did not answer just once. It is asked without retries;
//! - it is *silent*: it is asked one small question at most once in each back-off period.
//!
//! A question to a unit that does not answer costs the others of its line up to what a gateway holds it
//! ([`crate::hold`]). So both latter classes are asked in **spare time** only: when that ends before the next healthy
//! meter is due, and when the line is not held by the question before. There are these exceptions, or some units
//! would never be found:
//! - Hope is not put off as long as no other unit of the line fails: a single lost packet, and a start on which all
//!   answer, cost nothing. On a line that had no spare time in a whole slot, hope may cost a fifth of the time.
//! - Somebody there is hope for may be asked while the line is believed to be held, once, if there is time for both:
//!   the answer shows that it is not.
//! - A line without any spare time asks silent units for at most a hundredth of its time.
//!
//! Of several the one asked least recently is next. Whoever there is hope for waits for those that are due longer,
//! counted from the first slot that passed without a question: on a line with more to do than time it has its turn
//! like the others. A meter whose unit is left alone gets a record that says so for
//! each slot: when the slot is due, if there is a pause; when it ends, if it waited for spare time in vain.
//!
//! What is next is found in ordered sets, so that it costs the same with two meters and with hundreds.

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use corrente_record::Timestamp;
use tokio::time::Instant;

use crate::backoff::{self, Backoff};

/// The part of a line's time that hope may cost where there is no spare time.
const HOPE_SHARE: f64 = 0.2;
/// The same for silent units.
const FORCED_SHARE: f64 = 0.01;
/// A question is expected to cost so much more than was seen.
const MARGIN: f64 = 1.1;

/// How a meter is to be polled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Manner {
    /// As usual, with retries.
    Usual,
    /// Without retries: it did not answer the last time, or was never asked.
    Hopeful,
    /// With one small question first; in spare time.
    Probe,
    /// The same, though there is no spare time.
    Forced,
}

/// What to do next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    /// Poll this meter.
    Poll(usize, Manner),
    /// Write a record that says that this meter was not asked.
    Report(usize),
    /// There is nothing to do for so long.
    Wait(Duration),
}

/// What the line says of itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LineView {
    /// Until when it is expected to be held.
    pub held_until: Option<Instant>,
    /// Whether it may be tried out that it is.
    pub doubted: bool,
    /// What a question that nobody answers is expected to cost it.
    pub expected: Duration,
}

/// Which set a meter is in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    Nowhere,
    /// Its unit answers.
    Healthy,
    /// Its unit does not, and the slot is not due yet.
    Later,
    /// Its unit does not, and the slot waits for its turn.
    Waiting,
}

#[derive(Clone, Debug)]
struct Entry {
    unit: usize,
    due: Timestamp,
    /// When the slot after it is due.
    ends: Timestamp,
    place: Place,
    /// What it is in `waiting` under.
    key: (bool, u64, usize),
}

#[derive(Clone, Debug)]
struct Unit {
    backoff: Backoff,
    has_answered: bool,
    /// The number of the last question; 0 before the first.
    asked: u64,
    /// Questions since it last answered.
    attempts: u64,
    /// Slots since then that passed without a question.
    passed: u32,
    reason: Arc<str>,
    meters: Vec<usize>,
    /// What the last failed question cost, where a gateway said so itself.
    cost: Option<Duration>,
}

impl Unit {
    fn answers(&self) -> bool {
        self.has_answered && self.backoff.failures() == 0
    }

    fn is_hopeful(&self) -> bool {
        self.backoff.failures() < 2
    }
}

/// A part of the line's time.
#[derive(Clone, Debug)]
struct Budget {
    share: f64,
    seconds: f64,
    since: Instant,
}

impl Budget {
    fn filled(&mut self, now: Instant, most: Duration) -> f64 {
        let gained = now.saturating_duration_since(self.since).as_secs_f64() * self.share;
        self.since = now;
        self.seconds = (self.seconds + gained).min(most.as_secs_f64());
        self.seconds
    }
}

/// The agenda of an endpoint.
#[derive(Clone, Debug)]
pub struct Agenda {
    entries: Vec<Entry>,
    units: Vec<Unit>,
    healthy: BTreeSet<(Timestamp, usize)>,
    later: BTreeSet<(Timestamp, usize)>,
    /// Silent or not, the number of the last question, the meter.
    waiting: BTreeSet<(bool, u64, usize)>,
    /// When the slots of those end.
    ends: BTreeSet<(Timestamp, usize)>,
    questions: u64,
    /// Units that do not answer, those that were never asked aside.
    failing: usize,
    hope: Budget,
    forced: Budget,
    /// When somebody was last asked in spare time.
    spare_at: Option<Instant>,
}

impl Agenda {
    /// The agenda of meters by the ids of their units; none is scheduled yet. `name` spreads the pauses.
    #[must_use]
    pub fn new(name: &str, units: &[u8], now: Instant) -> Self {
        let mut ids: Vec<u8> = units.to_vec();
        ids.sort_unstable();
        ids.dedup();
        let entries = units.iter().map(|unit| Entry {
            unit: ids.binary_search(unit).unwrap_or(0),
            due: Timestamp(0),
            ends: Timestamp(0),
            place: Place::Nowhere,
            key: (false, 0, 0),
        });
        let entries: Vec<Entry> = entries.collect();
        let seed = xxhash_rust::xxh3::xxh3_64(name.as_bytes());
        let budget = |share, seconds| Budget {
            share,
            seconds,
            since: now,
        };
        Self {
            units: ids
                .iter()
                .enumerate()
                .map(|(index, id)| Unit {
                    backoff: Backoff::spread(backoff::UNIT, seed ^ u64::from(*id)),
                    has_answered: false,
                    asked: 0,
                    attempts: 0,
                    passed: 0,
                    reason: "not asked yet".into(),
                    meters: (0..entries.len())
                        .filter(|&at| entries.get(at).is_some_and(|e| e.unit == index))
                        .collect(),
                    cost: None,
                })
                .collect(),
            entries,
            healthy: BTreeSet::new(),
            later: BTreeSet::new(),
            waiting: BTreeSet::new(),
            ends: BTreeSet::new(),
            questions: 0,
            failing: 0,
            // Enough for the first surprises.
            hope: budget(HOPE_SHARE, f64::MAX),
            forced: budget(FORCED_SHARE, 0.0),
            spare_at: None,
        }
    }

    /// The next slot of a meter is due at `due`, and the one after it at `ends`.
    pub fn schedule(&mut self, meter: usize, due: Timestamp, ends: Timestamp) {
        self.take_out(meter);
        if let Some(entry) = self.entries.get_mut(meter) {
            (entry.due, entry.ends) = (due, ends);
            let unit = entry.unit;
            let place = if self.units.get(unit).is_some_and(Unit::answers) {
                Place::Healthy
            } else {
                Place::Later
            };
            self.put(meter, place);
        }
    }

    /// What to do next. A meter that is named is out of the agenda until it is scheduled again.
    pub fn next(&mut self, wall: Timestamp, now: Instant, line: LineView) -> Next {
        if let Some(next) = self.due_later(wall, now) {
            return next;
        }
        let cost = line.expected.mul_f64(MARGIN);
        let hope = self.hope.filled(now, 2 * cost) > 0.0;
        let forced = self.forced.filled(now, 2 * cost) / cost.as_secs_f64().max(0.001);
        let is_held = line.held_until.is_some_and(|until| until > now);
        let healthy = self.healthy.first().copied();
        let candidate = self.candidate().map(|(meter, own)| {
            let hopeful = self.unit(meter).is_some_and(Unit::is_hopeful);
            (meter, hopeful, own.map_or(cost, |own| own.mul_f64(MARGIN)))
        });
        // Where there is time for both, somebody who may well answer shows whether the line is held at all.
        let held = line
            .held_until
            .map_or(Duration::ZERO, |until| until.saturating_duration_since(now));
        let candidate = candidate
            .map(|(meter, hopeful, cost)| (meter, hopeful, cost + held))
            .filter(|(_, hopeful, _)| !is_held || *hopeful && line.doubted);
        if let Some((meter, hopeful, cost)) = candidate {
            let due = self.waiting_since(meter);
            let spare = healthy.is_none_or(|(next, _)| wall.0.saturating_add(millis(cost)) <= next.0);
            // What needs no spare time still waits for those that are due longer.
            let in_turn = healthy.is_none_or(|(next, _)| next > wall || Some(next) > due);
            let manner = match hopeful {
                _ if spare => Some(if hopeful { Manner::Hopeful } else { Manner::Probe }),
                true if in_turn && !is_held && self.may_hope(meter, hope, now) => Some(Manner::Hopeful),
                // Best in a moment when nobody else is due; but if there is none, all the same.
                _ if !is_held
                    && forced >= 1.0
                    && (forced >= 1.5 || healthy.is_none_or(|(next, _)| next > wall)) =>
                {
                    Some(Manner::Forced)
                }
                _ => None,
            };
            if let Some(manner) = manner {
                if spare {
                    // There is spare time: nothing needs to be forced.
                    self.forced.seconds = 0.0;
                    self.spare_at = Some(now);
                }
                return self.ask(meter, manner);
            }
        }
        if let Some((due, meter)) = healthy
            && due <= wall
        {
            return self.ask(meter, Manner::Usual);
        }
        let soonest = [
            healthy.map(|(due, _)| due),
            self.later.first().map(|(due, _)| *due),
            self.ends.first().map(|(ends, _)| *ends),
        ];
        let soonest = soonest.into_iter().flatten().min();
        let mut wait = soonest.map_or(Duration::from_secs(1), |at| {
            Duration::from_millis(u64::try_from(at.0.saturating_sub(wall.0)).unwrap_or(0))
        });
        if !self.waiting.is_empty() {
            // What they wait for grows with time.
            wait = wait.min(Duration::from_secs(1));
            if let Some(until) = line.held_until {
                wait = wait.min(until.saturating_duration_since(now));
            }
        }
        Next::Wait(wait.max(Duration::from_millis(1)))
    }

    /// The due meters of units that answer, the longest due first.
    pub fn healthy_due(&self, wall: Timestamp) -> impl Iterator<Item = usize> {
        self.healthy
            .iter()
            .take_while(move |(due, _)| *due <= wall)
            .map(|(_, meter)| *meter)
    }

    /// Whether the line has time for a question that nobody may answer: it would end before a healthy meter is due,
    /// or hope may cost something.
    #[must_use]
    pub fn may_cost(&mut self, wall: Timestamp, now: Instant, cost: Duration) -> bool {
        let cost = cost.mul_f64(MARGIN);
        let ends = wall.0.saturating_add(millis(cost));
        self.healthy.first().is_none_or(|(due, _)| ends <= due.0) || self.hope.filled(now, 2 * cost) > 0.0
    }

    /// Such a question cost so much.
    pub fn spent(&mut self, cost: Duration) {
        self.hope.seconds -= cost.as_secs_f64();
    }

    /// Why a meter's unit is left alone.
    #[must_use]
    pub fn reason(&self, meter: usize) -> Arc<str> {
        self.unit(meter)
            .map_or_else(|| "not asked".into(), |unit| unit.reason.clone())
    }

    /// Questions to a meter's unit since it last answered.
    #[must_use]
    pub fn attempts(&self, meter: usize) -> u64 {
        self.unit(meter).map_or(0, |unit| unit.attempts)
    }

    /// Units that do not answer at the moment.
    #[must_use]
    pub fn failing(&self) -> usize {
        self.failing
    }

    /// The unit of a meter answered.
    pub fn answered(&mut self, meter: usize) {
        let Some(unit) = self.entries.get(meter).map(|entry| entry.unit) else {
            return;
        };
        if let Some(unit) = self.units.get_mut(unit) {
            if unit.answers() {
                return;
            }
            self.failing -= usize::from(unit.backoff.failures() > 0);
            unit.backoff.succeeded();
            (unit.has_answered, unit.attempts, unit.passed, unit.cost) = (true, 0, 0, None);
        }
        self.replace(unit, Place::Healthy);
    }

    /// The unit of a meter did not answer a question that was asked in some manner and cost the line so much.
    /// `told` where a gateway said so, so that the line is free again.
    pub fn silent(
        &mut self,
        meter: usize,
        manner: Manner,
        cost: Duration,
        told: bool,
        reason: &str,
        now: Instant,
    ) {
        match manner {
            Manner::Usual | Manner::Probe => {}
            Manner::Hopeful => self.hope.seconds -= cost.as_secs_f64(),
            Manner::Forced => self.forced.seconds -= cost.as_secs_f64(),
        }
        let Some(entry) = self.entries.get(meter) else {
            return;
        };
        let index = entry.unit;
        let slot = entry.ends.0.saturating_sub(entry.due.0).max(1).unsigned_abs();
        if let Some(unit) = self.units.get_mut(index) {
            unit.backoff
                .begin_with(backoff::first_pause(Duration::from_millis(slot)));
            self.failing += usize::from(unit.backoff.failures() == 0);
            unit.backoff.failed(now);
            unit.attempts += 1;
            unit.passed = 0;
            unit.cost = told.then_some(cost);
            unit.reason = reason.into();
        }
        self.replace(index, Place::Later);
    }

    /// Whether the unit of a meter answered the last time.
    #[must_use]
    pub fn answers(&self, meter: usize) -> bool {
        self.unit(meter).is_some_and(Unit::answers)
    }

    /// The unit of a meter did not answer while the line was held, which says nothing about it.
    pub fn unlucky(&mut self, meter: usize, reason: &str) {
        if let Some(unit) = self.entries.get(meter).map(|entry| entry.unit)
            && let Some(unit) = self.units.get_mut(unit)
        {
            unit.reason = reason.into();
        }
    }

    fn unit(&self, meter: usize) -> Option<&Unit> {
        self.entries
            .get(meter)
            .and_then(|entry| self.units.get(entry.unit))
    }

    /// The next slot that became due, or ended, of a unit that does not answer.
    fn due_later(&mut self, wall: Timestamp, now: Instant) -> Option<Next> {
        while let Some(&(due, meter)) = self.later.first()
            && due <= wall
        {
            self.take_out(meter);
            let unit = self.unit(meter)?;
            // Somebody who answered until just now is asked again soon.
            if !unit.is_hopeful() && unit.backoff.left(now).is_some() {
                return Some(Next::Report(meter));
            }
            self.put(meter, Place::Waiting);
        }
        let &(ends, meter) = self.ends.first()?;
        if ends > wall {
            return None;
        }
        self.take_out(meter);
        let unit = self.entries.get(meter)?.unit;
        let unit = self.units.get_mut(unit)?;
        unit.passed = unit.passed.saturating_add(1);
        Some(Next::Report(meter))
    }

    /// When the first slot was due that a meter's unit was not asked in. Those that answer are not put before it for
    /// ever, on a line that has more to do than time.
    fn waiting_since(&self, meter: usize) -> Option<Timestamp> {
        let (entry, unit) = (self.entries.get(meter)?, self.unit(meter)?);
        let slot = entry.ends.0.saturating_sub(entry.due.0);
        let passed = slot.saturating_mul(i64::from(unit.passed));
        Some(Timestamp(entry.due.0.saturating_sub(passed)))
    }

    /// Who would be asked without being known to answer, and what that cost where a gateway told the last time.
    fn candidate(&self) -> Option<(usize, Option<Duration>)> {
        let &(_, _, meter) = self.waiting.first()?;
        Some((meter, self.unit(meter)?.cost))
    }

    fn may_hope(&self, meter: usize, budget: bool, now: Instant) -> bool {
        let (Some(unit), Some(entry)) = (self.unit(meter), self.entries.get(meter)) else {
            return false;
        };
        let others = self.failing - usize::from(unit.backoff.failures() > 0);
        let slot = Duration::from_millis(u64::try_from(entry.ends.0 - entry.due.0).unwrap_or(0));
        // Where there was spare time just now there will be some again.
        let spare = self
            .spare_at
            .is_some_and(|at| now.saturating_duration_since(at) <= 2 * slot);
        others == 0 || budget && unit.passed > 0 && !spare
    }

    fn ask(&mut self, meter: usize, manner: Manner) -> Next {
        self.take_out(meter);
        self.questions += 1;
        let asked = self.questions;
        if let Some(unit) = self.entries.get(meter).map(|entry| entry.unit)
            && let Some(unit) = self.units.get_mut(unit)
        {
            unit.asked = asked;
        }
        Next::Poll(meter, manner)
    }

    /// All meters of a unit that are in the agenda go to another place in it.
    fn replace(&mut self, unit: usize, place: Place) {
        let meters = self
            .units
            .get(unit)
            .map(|unit| unit.meters.clone())
            .unwrap_or_default();
        for meter in meters {
            if self
                .entries
                .get(meter)
                .is_some_and(|entry| entry.place != Place::Nowhere)
            {
                self.take_out(meter);
                self.put(meter, place);
            }
        }
    }

    fn key(&self, meter: usize, unit: usize) -> (bool, u64, usize) {
        let unit = self.units.get(unit);
        (
            unit.is_some_and(|unit| !unit.is_hopeful()),
            unit.map_or(0, |unit| unit.asked),
            meter,
        )
    }

    fn put(&mut self, meter: usize, place: Place) {
        let Some(entry) = self.entries.get(meter).cloned() else {
            return;
        };
        let key = self.key(meter, entry.unit);
        match place {
            Place::Nowhere => {}
            Place::Healthy => _ = self.healthy.insert((entry.due, meter)),
            Place::Later => _ = self.later.insert((entry.due, meter)),
            Place::Waiting => {
                self.waiting.insert(key);
                self.ends.insert((entry.ends, meter));
            }
        }
        if let Some(entry) = self.entries.get_mut(meter) {
            (entry.place, entry.key) = (place, key);
        }
    }

    fn take_out(&mut self, meter: usize) {
        let Some(entry) = self.entries.get_mut(meter) else {
            return;
        };
        let place = std::mem::replace(&mut entry.place, Place::Nowhere);
        let (due, ends, key) = (entry.due, entry.ends, entry.key);
        match place {
            Place::Nowhere => {}
            Place::Healthy => _ = self.healthy.remove(&(due, meter)),
            Place::Later => _ = self.later.remove(&(due, meter)),
            Place::Waiting => {
                self.waiting.remove(&key);
                self.ends.remove(&(ends, meter));
            }
        }
    }
}

fn millis(duration: Duration) -> i64 {
    i64::try_from(duration.as_millis()).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Whoever waits for spare time or for the line is looked at again within a second, however long it is to the next
    /// slot; nobody else is a reason to be woken.
    #[tokio::test]
    async fn who_waits_is_looked_at_each_second_and_else_nobody_is() {
        let (wall, now) = (Timestamp(1_000_000), Instant::now());
        let (next_slot, far) = (Timestamp(1_900_000), Timestamp(2_800_000));
        let held = |until| LineView {
            held_until: Some(until),
            doubted: false,
            expected: Duration::from_secs(1),
        };
        let mut agenda = Agenda::new("e", &[1, 2], now);
        agenda.answered(0);
        agenda.schedule(0, next_slot, far);
        let line = held(now + Duration::from_secs(60));
        assert_eq!(agenda.next(wall, now, line), Next::Wait(Duration::from_secs(900)));
        // Its slot is due, and the line is not free.
        agenda.schedule(1, wall, next_slot);
        assert_eq!(agenda.next(wall, now, line), Next::Wait(Duration::from_secs(1)));
        let line = held(now + Duration::from_millis(300));
        assert_eq!(
            agenda.next(wall, now, line),
            Next::Wait(Duration::from_millis(300))
        );
    }
}
