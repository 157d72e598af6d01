//! One meter: its register map, its read plan, and one poll of it.
//!
//! A poll, in this order:
//! 1. Where the map counts from a SunSpec model, the model is looked for, once per connection.
//! 2. The requests of the plan are sent, without the values that the meter has refused lately.
//! 3. A block that is refused with exception 02 or 03 is read value by value, so that one bad register costs
//!    one register. What was refused changes the plan for a while; see [`crate::learned`].
//! 4. A request that nobody answers ends the poll: the rest would only hold the line.
//! 5. Whatever came of it becomes a reading: every value is there, or named in `bad` with the reason.

use std::{collections::BTreeMap, sync::Arc};

use corrente_modbus::{
    CompiledMap, CostModel, ReadPlan, ReadRequest, decode,
    sunspec::{Step, Walk},
};
use corrente_record::{Quality, Reading, Timestamp, Value};
use tokio::time::Instant;

use crate::{
    client::{Connector, Exception, ReadBlock, ReadError, Registers},
    learned::{LearnedPlan, Lesson},
    line::{Line, LineError, LineObserver},
};

/// The longest reason in a record, in characters.
const REASON_LENGTH: usize = 120;

/// What a poll said about the unit, for its back-off.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// The unit answered something, if only with exceptions.
    Answered,
    /// The unit did not answer.
    Silent,
    /// There was no connection to ask it on.
    Down,
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
}

/// One meter, as it is polled.
#[derive(Clone, Debug)]
pub struct Meter {
    name: Arc<str>,
    unit: u8,
    labels: Arc<BTreeMap<String, String>>,
    plan: LearnedPlan,
    /// Where the SunSpec model is, on which connection.
    base: Option<(u64, u16)>,
}

/// Why a poll ended early.
struct Stop {
    verdict: Verdict,
    reason: String,
}

impl From<LineError> for Stop {
    fn from(error: LineError) -> Self {
        let verdict = match error {
            LineError::Down(_) => Verdict::Down,
            LineError::Read(ReadError::Exception(exception)) if !exception.is_from_gateway() => {
                Verdict::Answered
            }
            LineError::Read(_) => Verdict::Silent,
        };
        Self {
            verdict,
            reason: error.to_string(),
        }
    }
}

/// A poll as it goes on.
struct Progress {
    results: Vec<Option<Result<Value, String>>>,
    lesson: Lesson,
    answered: bool,
    read_at: Option<Timestamp>,
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
        Self {
            name: name.into(),
            unit,
            labels: Arc::new(labels),
            plan: LearnedPlan::new(map, cost),
            base: None,
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

    /// The reading of a poll that was not made, such as of a unit that is left alone.
    #[must_use]
    pub fn not_read(&self, slot: Timestamp, reason: &str) -> Reading {
        self.reading(
            slot,
            Timestamp::now(),
            &mut vec![None; self.plan.map().values.len()],
            reason,
        )
    }

    /// Polls the meter once.
    pub async fn poll<C: Connector, O: LineObserver>(
        &mut self,
        line: &mut Line<C, O>,
        slot: Timestamp,
        retries: u32,
    ) -> Poll {
        self.plan.forgive(Instant::now());
        let mut progress = Progress {
            results: vec![None; self.plan.map().values.len()],
            lesson: Lesson::default(),
            answered: false,
            read_at: None,
        };
        let stop = self.requests(line, retries, &mut progress).await.err();
        let ts = progress.read_at.unwrap_or_else(Timestamp::now);
        for (index, exception) in self.plan.left_out() {
            if let Some(result) = progress.results.get_mut(index) {
                *result = Some(Err(exception.to_string()));
            }
        }
        let any = progress.results.iter().flatten().any(Result::is_ok);
        if !any && progress.answered {
            // The model may have moved, if the device is another one.
            self.base = None;
        }
        progress.lesson.any_good = any;
        self.learn(progress.lesson);
        let rest = stop.as_ref().map_or("not read", |stop| stop.reason.as_str());
        let reading = self.reading(slot, ts, &mut progress.results, rest);
        let reason = stop.as_ref().map(|stop| stop.reason.clone()).or_else(|| {
            reading
                .bad
                .first()
                .map(|(name, reason)| format!("{name}: {reason}"))
        });
        let verdict = match stop {
            Some(stop) if !progress.answered => stop.verdict,
            _ => Verdict::Answered,
        };
        Poll {
            reading,
            verdict,
            reason,
        }
    }

    async fn requests<C: Connector, O: LineObserver>(
        &mut self,
        line: &mut Line<C, O>,
        retries: u32,
        progress: &mut Progress,
    ) -> Result<(), Stop> {
        let base = self.locate(line, retries, progress).await?;
        for request in at(self.plan.plan(), base)?.requests {
            match self.read(line, &request, retries).await {
                Ok(registers) => self.take(&request, &registers, progress),
                Err(LineError::Read(ReadError::Exception(exception))) if !exception.is_from_gateway() => {
                    progress.answered = true;
                    if exception.is_about_registers() {
                        self.one_by_one(line, &request, exception, retries, base, progress)
                            .await?;
                    } else {
                        set(&mut progress.results, &request.values, &exception.to_string());
                    }
                }
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }

    /// Reads the values of a refused block one by one; what must come from one request stays together.
    async fn one_by_one<C: Connector, O: LineObserver>(
        &self,
        line: &mut Line<C, O>,
        block: &ReadRequest,
        exception: Exception,
        retries: u32,
        base: u16,
        progress: &mut Progress,
    ) -> Result<(), Stop> {
        let parts = self.plan.parts(&block.values);
        if parts.len() < 2 {
            refuse_all(progress, &block.values, exception);
            return Ok(());
        }
        progress.lesson.block_refused = true;
        for part in parts {
            let plan = at(&self.plan.for_values(&part), base)?;
            for request in plan.requests {
                match self.read(line, &request, retries).await {
                    Ok(registers) => self.take(&request, &registers, progress),
                    Err(LineError::Read(ReadError::Exception(exception))) if !exception.is_from_gateway() => {
                        if exception.is_about_registers() {
                            refuse_all(progress, &request.values, exception);
                        } else {
                            set(&mut progress.results, &request.values, &exception.to_string());
                        }
                    }
                    Err(error) => return Err(error.into()),
                }
            }
        }
        Ok(())
    }

    /// Where the map's addresses count from.
    async fn locate<C: Connector, O: LineObserver>(
        &mut self,
        line: &mut Line<C, O>,
        retries: u32,
        progress: &mut Progress,
    ) -> Result<u16, Stop> {
        let Some(mut walk) = Walk::for_map(self.plan.map()) else {
            return Ok(0);
        };
        if let Some((generation, base)) = self.base
            && generation == line.generation()
            && line.is_connected()
        {
            return Ok(base);
        }
        self.base = None;
        loop {
            match walk.step() {
                Step::Read { address, count } => {
                    let request = ReadRequest {
                        function: corrente_crds::profile::Function::Holding,
                        address,
                        count,
                        base: 0,
                        values: Vec::new(),
                    };
                    match self.read(line, &request, retries).await {
                        Ok(Registers::Words(words)) => walk.words(&words),
                        Ok(Registers::Bits(_)) => walk.refused(),
                        Err(LineError::Read(ReadError::Exception(exception)))
                            if exception.says_not_here() =>
                        {
                            walk.refused();
                        }
                        Err(error) => return Err(error.into()),
                    }
                    progress.answered = true;
                }
                Step::Found(base) => {
                    self.base = Some((line.generation(), base));
                    return Ok(base);
                }
                Step::Failed(error) => {
                    return Err(Stop {
                        verdict: Verdict::Answered,
                        reason: error.to_string(),
                    });
                }
            }
        }
    }

    async fn read<C: Connector, O: LineObserver>(
        &self,
        line: &mut Line<C, O>,
        request: &ReadRequest,
        retries: u32,
    ) -> Result<Registers, LineError> {
        let block = ReadBlock {
            unit: self.unit,
            function: request.function,
            address: request.address,
            count: request.count,
        };
        line.read(block, self.plan.plan().pause, retries).await
    }

    fn take(&self, request: &ReadRequest, registers: &Registers, progress: &mut Progress) {
        progress.answered = true;
        progress.read_at = Some(Timestamp::now());
        decode(
            self.plan.map(),
            request,
            registers.answer(),
            &mut |index, value| {
                if let Some(result) = progress.results.get_mut(index) {
                    *result = Some(value.map_err(|bad| bad.to_string()));
                }
            },
        );
    }

    fn learn(&mut self, lesson: Lesson) {
        let refused = lesson.refused.clone();
        let Some(pause) = self.plan.learn(lesson, Instant::now()) else {
            return;
        };
        for (index, exception) in refused {
            if let Some(value) = self.plan.map().values.get(index) {
                tracing::warn!(
                    meter = %self.name, metric = %value.name, reason = %exception,
                    minutes = pause.as_secs() / 60, "the meter refuses a register; it is left out for a while"
                );
            }
        }
    }

    /// `rest` is the reason of what has no result.
    fn reading(
        &self,
        slot: Timestamp,
        ts: Timestamp,
        results: &mut [Option<Result<Value, String>>],
        rest: &str,
    ) -> Reading {
        // The reason stands at every value, so that a record is bounded only if it is.
        let rest: String = rest.chars().take(REASON_LENGTH).collect();
        let (mut values, mut bad) = (Vec::new(), Vec::new());
        for (value, result) in self.plan.map().values.iter().zip(results) {
            match result.take() {
                Some(Ok(number)) => values.push((value.name.clone(), number)),
                Some(Err(reason)) => bad.push((value.name.clone(), reason)),
                None => bad.push((value.name.clone(), rest.clone())),
            }
        }
        let quality = match (values.is_empty(), bad.is_empty()) {
            (_, true) => Quality::Good,
            (false, false) => Quality::Partial,
            (true, false) => Quality::Failed,
        };
        Reading {
            ts,
            meter: self.name.clone(),
            slot,
            quality,
            skipped: 0,
            labels: self.labels.clone(),
            values,
            bad,
        }
    }
}

/// The plan behind a base address.
fn at(plan: &ReadPlan, base: u16) -> Result<ReadPlan, Stop> {
    plan.at(base).map_err(|error| Stop {
        verdict: Verdict::Answered,
        reason: error.to_string(),
    })
}

fn set(results: &mut [Option<Result<Value, String>>], values: &[usize], reason: &str) {
    for &index in values {
        if let Some(result) = results.get_mut(index) {
            *result = Some(Err(reason.to_owned()));
        }
    }
}

fn refuse_all(progress: &mut Progress, values: &[usize], exception: Exception) {
    set(&mut progress.results, values, &exception.to_string());
    progress
        .lesson
        .refused
        .extend(values.iter().map(|&index| (index, exception)));
}
