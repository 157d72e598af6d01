//! One meter: its register map, what was learned about it, and one poll of it.
//!
//! A poll, in this order:
//! 1. Where the unit is on trial, one small question first: only who answers it is asked for more.
//! 2. Where the map counts from a SunSpec model, the model is looked for once. Its address is kept over
//!    reconnects; one read checks it when the unit was away, and when something is refused, before anything is
//!    learned from the refusal.
//! 3. The requests of the plan are sent, then what their answers make necessary; see [`crate::learned`].
//! 4. A question that nobody answers ends the poll where nothing was answered: the rest would only hold the line.
//! 5. Whatever came of it becomes a reading: every value is there, or named in `bad` with the reason.
//!
//! A unit that says it is busy (exception 06) suspends the poll: the line is free for others meanwhile.

mod results;

use std::{
    collections::{BTreeMap, VecDeque},
    sync::Arc,
};

use corrente_modbus::{
    CompiledMap, CostModel, ReadRequest,
    sunspec::{Step as WalkStep, Walk},
};
use corrente_record::{Name, Reading, Timestamp, Value};
use tokio::time::{Instant, sleep};

use self::results::Results;
use crate::{
    client::{Connector, Exception, ReadBlock, ReadError, Registers},
    clock::Clock,
    learned::{Allowance, Asking, Cause, Learned},
    line::{BUSY_PAUSE, BUSY_RETRIES, Line, LineError, LineObserver},
};

/// How many readings' places are kept for the next ones: more than a line's meters are seldom read at once.
const SPARE: usize = 32;

/// What a poll said about the unit, for its back-off.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// The unit answered something, if only with exceptions.
    Answered,
    /// The unit did not answer.
    Silent,
    /// A gateway answered that the unit does not.
    Unreachable,
    /// There was no connection to ask it on.
    Down,
    /// There was nothing to ask: everything is in quarantine at the moment.
    NotAsked,
}

/// A poll.
#[derive(Clone, Debug, PartialEq)]
pub struct Poll {
    /// What it gave.
    pub reading: Reading,
    /// What it said about the unit.
    pub verdict: Verdict,
    /// Why values are missing, in a sentence for people; `None` where all are there.
    pub reason: Option<String>,
    /// Whether something came into quarantine, or left it.
    pub quarantine_changed: bool,
    /// What it was made in.
    results: Results,
}

impl Poll {
    /// A poll that was not made.
    #[must_use]
    pub fn not_made(reading: Reading, reason: &str) -> Self {
        Self {
            reading,
            verdict: Verdict::NotAsked,
            reason: Some(reason.to_owned()),
            quarantine_changed: false,
            results: Results::default(),
        }
    }

    /// Leaves the reading, and lets `scratch` have the rest.
    pub fn into_reading(self, scratch: &mut Scratch) -> Reading {
        scratch.results = self.results;
        self.reading
    }
}

/// The slot that a poll is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Slot {
    /// The slot.
    pub at: Timestamp,
    /// How many right before it were skipped.
    pub skipped: u32,
}

impl From<Timestamp> for Slot {
    fn from(at: Timestamp) -> Self {
        Self { at, skipped: 0 }
    }
}

/// How a poll is made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Terms {
    /// How often a question that is not answered is asked again.
    pub retries: u32,
    /// Whether the line has time for a question that is expected to cost a timeout.
    pub timeouts: bool,
    /// One small question first; the number of the attempt.
    pub probe: Option<u64>,
}

/// An answer that came before its question's turn, and when.
#[derive(Clone, Debug, PartialEq)]
pub struct Ahead {
    /// The question.
    pub block: ReadBlock,
    /// What came.
    pub result: Result<Registers, ReadError>,
    /// When.
    pub at: Timestamp,
}

/// One meter, as it is polled.
#[derive(Clone, Debug)]
pub struct Meter {
    name: Arc<str>,
    unit: u8,
    labels: Arc<BTreeMap<String, String>>,
    learned: Learned,
    base: Base,
}

/// What polls worked with and need no more: the next ones work in the same places, whichever meter they are of.
#[derive(Debug, Default)]
pub struct Scratch {
    results: Results,
    values: Vec<Vec<(Name, Value)>>,
}

impl Scratch {
    /// Takes back what a reading was made in, once it is written.
    pub fn take_back(&mut self, reading: Reading) {
        if self.values.len() < SPARE {
            self.values.push(reading.values);
        }
    }
}

/// Where the map's addresses count from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Base {
    Known(u16),
    /// Where the model was, if it was ever found; whether it still is there is to be seen.
    Unsure(Option<u16>),
}

/// Why a poll does not go on.
enum Halt {
    /// The unit wants to be asked again later.
    Busy,
    /// For good, and what this says about the unit where it has answered nothing.
    Ended(Verdict, Cause),
}

/// Whether a poll is over.
#[derive(Debug)]
pub enum Step {
    /// It is.
    Done(Poll),
    /// The unit is busy; the poll can go on after a pause.
    Busy(Box<Run>),
}

/// A poll under way.
#[derive(Debug)]
pub struct Run {
    slot: Slot,
    terms: Terms,
    asking: Asking,
    results: Results,
    ahead: VecDeque<Ahead>,
    walk: Option<Walk>,
    base_checked: bool,
    busy: u32,
    read_at: Option<Timestamp>,
    left_out: usize,
}

impl Meter {
    /// A meter that was never polled.
    #[must_use]
    pub fn new(
        name: &str,
        unit: u8,
        labels: BTreeMap<String, String>,
        map: Arc<CompiledMap>,
        cost: CostModel,
    ) -> Self {
        Self::of(name, unit, labels, &Learned::new(name, map, cost))
    }

    /// The same for one of many meters that share a map: nothing was learned about `model` yet.
    #[must_use]
    pub fn of(name: &str, unit: u8, labels: BTreeMap<String, String>, model: &Learned) -> Self {
        Self {
            name: name.into(),
            unit,
            labels: Arc::new(labels),
            base: match Walk::for_map(model.map()) {
                None => Base::Known(0),
                Some(_) => Base::Unsure(None),
            },
            learned: model.of(name),
        }
    }

    /// The meter's name.
    #[must_use]
    pub fn name(&self) -> &Arc<str> {
        &self.name
    }

    /// The unit it is.
    #[must_use]
    pub fn unit(&self) -> u8 {
        self.unit
    }

    /// What was learned about it.
    #[must_use]
    pub fn learned(&self) -> &Learned {
        &self.learned
    }

    /// Plans with other costs from now on.
    pub fn set_cost(&mut self, cost: CostModel) {
        self.learned.set_cost(cost);
    }

    /// The reading of a poll that was not made, such as of a unit that is left alone.
    #[must_use]
    pub fn not_read(&self, slot: Slot, reason: &Cause, now: Timestamp) -> Reading {
        let mut results = Results::default();
        results.reset(self.learned.map(), Vec::new());
        results.reading(reason, self.blank(slot, now))
    }

    /// The questions of the next poll, in the order of its plan, where it is clear beforehand which they are.
    pub fn questions(&self) -> impl Iterator<Item = ReadBlock> {
        let base = match self.base {
            Base::Known(base) if self.learned.is_plain() => Some(base),
            _ => None,
        };
        let requests = base.map(|base| {
            let requests = self.learned.plan().requests.iter();
            requests.map(move |request| self.block(request, base))
        });
        requests.into_iter().flatten()
    }

    /// The pause that the meter wants between an answer and the next request.
    #[must_use]
    pub fn pause(&self) -> std::time::Duration {
        self.learned.plan().pause
    }

    /// Polls the meter once, from beginning to end.
    pub async fn poll<C: Connector, O: LineObserver>(
        &mut self,
        line: &mut Line<C, O>,
        slot: impl Into<Slot>,
        retries: u32,
    ) -> Poll {
        let terms = Terms {
            retries,
            timeouts: true,
            probe: None,
        };
        let mut run = self.begin(slot.into(), terms, VecDeque::new(), &mut Scratch::default());
        loop {
            match self.go(run, line, &Clock::system()).await {
                Step::Done(poll) => return poll,
                Step::Busy(suspended) => run = *suspended,
            }
            sleep(BUSY_PAUSE).await;
        }
    }

    /// Begins a poll. `ahead` are answers to [`Meter::questions`] that are there already.
    pub fn begin(&mut self, slot: Slot, terms: Terms, ahead: VecDeque<Ahead>, scratch: &mut Scratch) -> Run {
        let allowance = Allowance {
            timeouts: terms.timeouts,
        };
        let left_out = self.learned.left_out_count();
        let mut results = std::mem::take(&mut scratch.results);
        results.reset(self.learned.map(), scratch.values.pop().unwrap_or_default());
        Run {
            slot,
            terms,
            asking: self.learned.begin(allowance, Instant::now()),
            results,
            ahead,
            walk: None,
            base_checked: false,
            busy: 0,
            read_at: None,
            left_out,
        }
    }

    /// Goes on with a poll until it is over, or the unit is busy.
    pub async fn go<C: Connector, O: LineObserver>(
        &mut self,
        mut run: Run,
        line: &mut Line<C, O>,
        clock: &Clock,
    ) -> Step {
        let ended = match self.ask(&mut run, line, clock).await {
            Ok(()) => None,
            Err(Halt::Busy) => return Step::Busy(Box::new(run)),
            Err(Halt::Ended(verdict, cause)) => Some((verdict, cause)),
        };
        Step::Done(self.finish(run, ended, clock))
    }

    async fn ask<C: Connector, O: LineObserver>(
        &mut self,
        run: &mut Run,
        line: &mut Line<C, O>,
        clock: &Clock,
    ) -> Result<(), Halt> {
        self.probe(run, line).await?;
        let mut base = self.locate(run, line).await?;
        loop {
            let Some(request) = run.asking.request() else {
                return Ok(());
            };
            let retries = if run.asking.is_firm() {
                run.terms.retries
            } else {
                0
            };
            let block = self.block(request, base);
            let ahead = ahead(run, block);
            let was_ahead = matches!(ahead, Some(Ok(_)));
            let result = match ahead {
                // That was the first try.
                Some(Err(LineError::Read(ReadError::Timeout(_)))) if retries > 0 => {
                    line.read(block, self.pause(), retries - 1).await
                }
                Some(result) => result,
                None => line.read(block, self.pause(), retries).await,
            };
            let now = Instant::now();
            match result {
                Ok(registers) => {
                    if !was_ahead {
                        run.read_at = Some(clock.now());
                    }
                    if let Some(request) = run.asking.request() {
                        run.results.take(self.learned.map(), request, &registers);
                    }
                    run.terms.probe = None;
                    self.learned.answered(&mut run.asking, now);
                }
                Err(LineError::Read(ReadError::Exception(exception))) if !exception.is_from_gateway() => {
                    if exception.is_busy() && run.busy < BUSY_RETRIES {
                        run.busy += 1;
                        return Err(Halt::Busy);
                    }
                    if exception.says_not_here() && self.may_have_moved(run) {
                        // Before anything is learned from it: is the model still where it was?
                        let before = base;
                        base = self.locate(run, line).await?;
                        if base != before {
                            self.learned = self.learned.anew();
                            run.asking = self.learned.begin(Allowance { timeouts: false }, now);
                            run.asking.alive();
                        }
                        continue;
                    }
                    self.refused(run, exception, now);
                }
                Err(error) => {
                    let (verdict, cause) = halt(&error);
                    if let Some(request) = run.asking.request() {
                        run.results.refuse(&request.values, &cause);
                    }
                    let goes_on =
                        verdict != Verdict::Down && self.learned.silent(&mut run.asking, cause.clone(), now);
                    if !goes_on {
                        return Err(Halt::Ended(verdict, cause));
                    }
                    // It may be gone: whatever else is asked of it is asked once.
                    run.terms.retries = 0;
                }
            }
        }
    }

    fn refused(&mut self, run: &mut Run, exception: Exception, now: Instant) {
        let cause: Cause = exception.to_string().into();
        if let Some(request) = run.asking.request() {
            run.results.refuse(&request.values, &cause);
        }
        if exception.says_not_here() {
            self.learned.refused(&mut run.asking, cause, now);
        } else if exception.is_busy() {
            self.learned.busy(&mut run.asking, now);
        } else {
            self.learned.failed(&mut run.asking, cause, now);
        }
    }

    /// One small question, before anything else is asked of a unit on trial.
    async fn probe<C: Connector, O: LineObserver>(
        &mut self,
        run: &mut Run,
        line: &mut Line<C, O>,
    ) -> Result<(), Halt> {
        // The first question of a walk is as small.
        let (Some(attempt), Base::Known(base)) = (run.terms.probe, self.base) else {
            return Ok(());
        };
        let Some(request) = self.learned.probe(attempt) else {
            return Ok(());
        };
        match line.read(self.block(&request, base), self.pause(), 0).await {
            Ok(_) => {}
            Err(LineError::Read(ReadError::Exception(exception))) if !exception.is_from_gateway() => {}
            Err(error) => {
                let (verdict, cause) = halt(&error);
                return Err(Halt::Ended(verdict, cause));
            }
        }
        run.terms.probe = None;
        run.asking.alive();
        Ok(())
    }

    /// Where the map's addresses count from.
    async fn locate<C: Connector, O: LineObserver>(
        &mut self,
        run: &mut Run,
        line: &mut Line<C, O>,
    ) -> Result<u16, Halt> {
        let last = match self.base {
            Base::Known(base) => return Ok(base),
            Base::Unsure(last) => last,
        };
        let Some(walk) = Walk::for_map(self.learned.map()) else {
            return Ok(0);
        };
        let walk = run.walk.get_or_insert_with(|| match last {
            Some(base) => walk.again_at(base),
            None => walk,
        });
        loop {
            match walk.step() {
                WalkStep::Read { address, count } => {
                    let block = ReadBlock {
                        unit: self.unit,
                        function: corrente_crds::profile::Function::Holding,
                        address,
                        count,
                    };
                    let retries = if run.terms.probe.is_some() {
                        0
                    } else {
                        run.terms.retries
                    };
                    match line.read(block, self.learned.plan().pause, retries).await {
                        Ok(Registers::Words(words)) => walk.words(&words),
                        Ok(Registers::Bits(_)) => walk.refused(),
                        Err(LineError::Read(ReadError::Exception(exception))) => {
                            let halt = Err(Halt::Ended(Verdict::Answered, exception.to_string().into()));
                            match exception {
                                exception if exception.says_not_here() => walk.refused(),
                                exception if exception.is_from_gateway() => {
                                    return Err(Halt::Ended(
                                        Verdict::Unreachable,
                                        exception.to_string().into(),
                                    ));
                                }
                                exception if exception.is_busy() && run.busy < BUSY_RETRIES => {
                                    run.busy += 1;
                                    return Err(Halt::Busy);
                                }
                                _ => return halt,
                            }
                        }
                        Err(error) => {
                            let (verdict, cause) = halt(&error);
                            return Err(Halt::Ended(verdict, cause));
                        }
                    }
                    run.terms.probe = None;
                    run.asking.alive();
                }
                WalkStep::Found(base) => {
                    run.base_checked = true;
                    self.base = Base::Known(base);
                    return Ok(base);
                }
                WalkStep::Failed(error) => {
                    run.walk = None;
                    self.base = Base::Unsure(None);
                    return Err(Halt::Ended(Verdict::Answered, error.to_string().into()));
                }
            }
        }
    }

    /// Whether the address of a SunSpec model is to be checked before a refusal is believed. It is then unsure.
    fn may_have_moved(&mut self, run: &mut Run) -> bool {
        if run.base_checked || Walk::for_map(self.learned.map()).is_none() {
            return false;
        }
        if let Base::Known(base) = self.base {
            self.base = Base::Unsure(Some(base));
        }
        run.walk = None;
        true
    }

    fn block(&self, request: &ReadRequest, base: u16) -> ReadBlock {
        ReadBlock {
            unit: self.unit,
            function: request.function,
            // A model that reaches past the last address was not found.
            address: base.wrapping_add(request.address),
            count: request.count,
        }
    }

    fn finish(&mut self, mut run: Run, ended: Option<(Verdict, Cause)>, clock: &Clock) -> Poll {
        let ts = run.read_at.unwrap_or_else(|| clock.now());
        let verdict = match &ended {
            _ if run.asking.answered() => Verdict::Answered,
            Some((verdict, _)) => *verdict,
            None if run.asking.asked() => Verdict::Answered,
            None => Verdict::NotAsked,
        };
        if matches!(verdict, Verdict::Silent | Verdict::Unreachable | Verdict::Down) {
            // Whoever answers next may be another device.
            self.learned.away();
            if let Base::Known(base) = self.base
                && Walk::for_map(self.learned.map()).is_some()
            {
                self.base = Base::Unsure(Some(base));
            }
        }
        let quarantined = self.learned.finish(run.asking, Instant::now());
        for value in &quarantined {
            if let Some(value) = self.learned.map().values.get(*value) {
                tracing::warn!(
                    meter = %self.name, metric = %value.name,
                    "the meter does not let a value be read; it is left out for a while"
                );
            }
        }
        self.learned
            .reasons(&mut |value, cause| run.results.explain(value, cause));
        let rest = ended.map_or_else(|| "not read".into(), |(_, cause)| cause);
        let reading = run.results.reading(&rest, self.blank(run.slot, ts));
        let all_missing = reading.values.is_empty();
        let reason = match reading.bad.first() {
            None => None,
            // All for one reason, which is not about one value.
            Some((_, reason)) if all_missing && reading.bad.iter().all(|bad| bad.1 == *reason) => {
                Some(reason.clone())
            }
            Some((name, reason)) => Some(format!("{name}: {reason}")),
        };
        Poll {
            reading,
            verdict,
            reason,
            quarantine_changed: !quarantined.is_empty() || self.learned.left_out_count() != run.left_out,
            results: run.results,
        }
    }

    fn blank(&self, slot: Slot, ts: Timestamp) -> Reading {
        Reading {
            ts,
            meter: self.name.clone(),
            slot: slot.at,
            quality: corrente_record::Quality::Failed,
            skipped: slot.skipped,
            labels: self.labels.clone(),
            values: Vec::new(),
            bad: Vec::new(),
        }
    }
}

/// The answer to a question, if it is there already.
fn ahead(run: &mut Run, block: ReadBlock) -> Option<Result<Registers, LineError>> {
    // They come in the order of the plan, but for some that were not answered.
    let place = run.ahead.iter().position(|ahead| ahead.block == block)?;
    let ahead = run.ahead.remove(place)?;
    match ahead.result {
        Ok(registers) => {
            run.read_at = run.read_at.max(Some(ahead.at));
            Some(Ok(registers))
        }
        Err(error @ (ReadError::Exception(_) | ReadError::Timeout(_))) => Some(Err(error.into())),
        // It is asked again in its turn.
        Err(ReadError::Connection(_)) => None,
    }
}

/// What a failure on the line says about the unit.
fn halt(error: &LineError) -> (Verdict, Cause) {
    let verdict = match error {
        LineError::Down(_) => Verdict::Down,
        LineError::Read(ReadError::Exception(_)) => Verdict::Unreachable,
        LineError::Read(_) => Verdict::Silent,
    };
    (verdict, error.to_string().into())
}
