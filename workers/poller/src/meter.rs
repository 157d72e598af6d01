//! One meter: its register map, its read plan, and one poll of it.
//!
//! A poll, in this order:
//! 1. Where the map counts from a SunSpec model, the model is looked for, once per connection.
//! 2. The requests of the plan are sent, without the values that the meter has refused lately.
//! 3. A block that is refused with exception 02 or 03 is read value by value, so that one bad register costs
//!    one register. Those that are refused alone are left out for a while, and for as long the plan is more
//!    careful ([`Caution`]), so that the next poll is not refused for the same reason.
//! 4. A request that nobody answers ends the poll: the rest would only hold the line.
//! 5. Whatever came of it becomes a reading: every value is there, or named in `bad` with the reason.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use corrente_modbus::{
    CompiledMap, CostModel, ReadPlan, ReadRequest, decode,
    map::NamedRange,
    sunspec::{Step, Walk},
};
use corrente_record::{Quality, Reading, Timestamp, Value};
use tokio::time::Instant;

use crate::{
    client::{Connector, Exception, ReadBlock, ReadError, Registers},
    line::{Line, LineError, LineObserver},
};

/// How long a register that the meter refused is left out.
const REFUSED_FOR: Duration = Duration::from_secs(60 * 60);
/// The same where the meter refused everything: that is no bad register, but the wrong map or the wrong
/// unit, or a meter that is not ready, and its owner will want to see that it is right again.
const ALL_REFUSED_FOR: Duration = Duration::from_secs(60);

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

/// How carefully a plan is made for a meter that has refused a block.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
enum Caution {
    /// As the cost has it.
    #[default]
    None,
    /// No request spans a register that is not to be read: a gap may be what was refused.
    NoGaps,
    /// Each value has a request of its own.
    Apart,
}

/// One meter, as it is polled.
#[derive(Clone, Debug)]
pub struct Meter {
    name: Arc<str>,
    unit: u8,
    labels: Arc<BTreeMap<String, String>>,
    map: Arc<CompiledMap>,
    cost: CostModel,
    /// The plan for every value that is not refused, counted from the map's base.
    plan: ReadPlan,
    /// What the meter refused, and until when it is left out.
    refused: BTreeMap<usize, (Exception, Instant)>,
    caution: Caution,
    /// Until when.
    careful_until: Option<Instant>,
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
    newly_refused: Vec<(usize, Exception)>,
    /// Whether a block was refused whose values were then read one by one.
    block_refused: bool,
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
        let plan = ReadPlan::build(&map, &cost);
        Self {
            name: name.into(),
            unit,
            labels: Arc::new(labels),
            map,
            cost,
            plan,
            refused: BTreeMap::new(),
            caution: Caution::None,
            careful_until: None,
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
            &mut vec![None; self.map.values.len()],
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
        self.forgive(Instant::now());
        let mut progress = Progress {
            results: vec![None; self.map.values.len()],
            newly_refused: Vec::new(),
            block_refused: false,
            answered: false,
            read_at: None,
        };
        let stop = self.requests(line, retries, &mut progress).await.err();
        let ts = progress.read_at.unwrap_or_else(Timestamp::now);
        for (&index, (exception, _)) in &self.refused {
            if let Some(result) = progress.results.get_mut(index) {
                *result = Some(Err(exception.to_string()));
            }
        }
        let any = progress.results.iter().flatten().any(Result::is_ok);
        if !any && progress.answered {
            // The model may have moved, if the device is another one.
            self.base = None;
        }
        self.learn(
            progress.newly_refused,
            progress.block_refused,
            any,
            Instant::now(),
        );
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
        for request in self.at(&self.plan, base)?.requests {
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
        let parts = self.parts(&block.values);
        if parts.len() < 2 {
            refuse_all(progress, &block.values, exception);
            return Ok(());
        }
        progress.block_refused = true;
        for part in parts {
            let plan = self.at(&ReadPlan::build_for(&self.map, &part, &self.cost), base)?;
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

    /// The values, each alone but for coherent groups.
    fn parts(&self, values: &[usize]) -> Vec<Vec<usize>> {
        let mut parts: Vec<Vec<usize>> = Vec::new();
        let mut groups: BTreeMap<&str, usize> = BTreeMap::new();
        for &index in values {
            let group = self
                .map
                .values
                .get(index)
                .and_then(|value| value.coherent.as_deref());
            match group {
                None => parts.push(vec![index]),
                Some(group) => match groups.get(group).and_then(|&at| parts.get_mut(at)) {
                    Some(part) => part.push(index),
                    None => {
                        groups.insert(group, parts.len());
                        parts.push(vec![index]);
                    }
                },
            }
        }
        parts
    }

    /// Where the map's addresses count from.
    async fn locate<C: Connector, O: LineObserver>(
        &mut self,
        line: &mut Line<C, O>,
        retries: u32,
        progress: &mut Progress,
    ) -> Result<u16, Stop> {
        let Some(mut walk) = Walk::for_map(&self.map) else {
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
                            if !exception.is_from_gateway() =>
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
        line.read(block, self.plan.pause, retries).await
    }

    fn at(&self, plan: &ReadPlan, base: u16) -> Result<ReadPlan, Stop> {
        plan.at(base).map_err(|error| Stop {
            verdict: Verdict::Answered,
            reason: error.to_string(),
        })
    }

    fn take(&self, request: &ReadRequest, registers: &Registers, progress: &mut Progress) {
        progress.answered = true;
        progress.read_at = Some(Timestamp::now());
        decode(&self.map, request, registers.answer(), &mut |index, value| {
            if let Some(result) = progress.results.get_mut(index) {
                *result = Some(value.map_err(|bad| bad.to_string()));
            }
        });
    }

    /// Lets values in again whose time is over.
    fn forgive(&mut self, now: Instant) {
        let before = self.refused.len();
        self.refused.retain(|_, (_, until)| *until > now);
        let calm = self.careful_until.is_some_and(|until| until <= now);
        if calm {
            self.caution = Caution::None;
            self.careful_until = None;
        }
        if calm || self.refused.len() < before {
            self.replan();
        }
    }

    /// Takes note of what was refused in a poll.
    fn learn(&mut self, refused: Vec<(usize, Exception)>, block_refused: bool, any_good: bool, now: Instant) {
        if refused.is_empty() && !block_refused {
            return;
        }
        let pause = if any_good { REFUSED_FOR } else { ALL_REFUSED_FOR };
        // A block that is refused although it spans nothing but what is then read well is too long for the
        // meter, or otherwise not to its liking.
        let unexplained = block_refused && refused.is_empty() && self.caution() >= Caution::NoGaps;
        self.caution = self.caution.max(if unexplained {
            Caution::Apart
        } else {
            Caution::NoGaps
        });
        self.careful_until = Some(now + pause);
        for (index, exception) in refused {
            if let Some(value) = self.map.values.get(index) {
                tracing::warn!(
                    meter = %self.name, metric = %value.name, reason = %exception,
                    minutes = pause.as_secs() / 60, "the meter refuses a register; it is left out for a while"
                );
            }
            self.refused.insert(index, (exception, now + pause));
        }
        self.replan();
    }

    fn caution(&self) -> Caution {
        let least = if self.refused.is_empty() {
            Caution::None
        } else {
            Caution::NoGaps
        };
        match self.caution.max(least) {
            // Without gaps there may be nothing to pad a value of an odd length with.
            Caution::NoGaps if self.map.limits.even_count => Caution::Apart,
            caution => caution,
        }
    }

    fn replan(&mut self) {
        let wanted: Vec<usize> = (0..self.map.values.len())
            .filter(|index| !self.refused.contains_key(index))
            .collect();
        self.plan = match self.caution() {
            Caution::None => ReadPlan::build_for(&self.map, &wanted, &self.cost),
            Caution::NoGaps => ReadPlan::build_for(&self.without_gaps(&wanted), &wanted, &self.cost),
            Caution::Apart => {
                let plans = self.parts(&wanted);
                let plans = plans
                    .iter()
                    .map(|part| ReadPlan::build_for(&self.map, part, &self.cost));
                ReadPlan {
                    requests: plans.flat_map(|plan| plan.requests).collect(),
                    pause: self.map.limits.pause,
                }
            }
        };
    }

    /// The map of a meter that answers for the wanted values alone.
    fn without_gaps(&self, wanted: &[usize]) -> CompiledMap {
        let mut map = (*self.map).clone();
        map.limits.whole_values = true;
        let values = wanted.iter().filter_map(|&index| self.map.values.get(index));
        map.named = values
            .flat_map(|value| {
                let range = |start: u16, count: u16| NamedRange {
                    function: value.function,
                    start: u32::from(start),
                    end: u32::from(start) + u32::from(count),
                };
                let factor = value.scale_from.map(|address| range(address, 1));
                [Some(range(value.address, value.count)), factor]
            })
            .flatten()
            .collect();
        map.named.sort_unstable();
        map.named.dedup();
        map
    }

    /// `rest` is the reason of what has no result.
    fn reading(
        &self,
        slot: Timestamp,
        ts: Timestamp,
        results: &mut [Option<Result<Value, String>>],
        rest: &str,
    ) -> Reading {
        let (mut values, mut bad) = (Vec::new(), Vec::new());
        for (value, result) in self.map.values.iter().zip(results) {
            match result.take() {
                Some(Ok(number)) => values.push((value.name.clone(), number)),
                Some(Err(reason)) => bad.push((value.name.clone(), reason)),
                None => bad.push((value.name.clone(), rest.to_owned())),
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
            labels: self.labels.clone(),
            values,
            bad,
        }
    }
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
        .newly_refused
        .extend(values.iter().map(|&index| (index, exception)));
}
