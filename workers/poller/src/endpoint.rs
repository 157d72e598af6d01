//! The task of an endpoint: it alone owns the line, and polls the meters behind it when they are due.
//!
//! What comes next is chosen anew after each poll, by the [`crate::agenda`]: healthy units first, the others in spare
//! time. Around that:
//! - A unit that says it is busy keeps its poll suspended; the line goes on with others meanwhile.
//! - A poll that found the line held by an earlier question nobody answered, and so found nobody, is made again when
//!   the line should be free, and is not held against its unit.
//! - A meter whose poll comes so late that its next slot is due already goes on with the newest slot; those in
//!   between are skipped and counted, in the next record too, never piled up.
//! - Where the endpoint takes several requests at a time, those of all meters that are due are sent ahead. What is
//!   not answered then is asked for again alone, since a device may take one at a time and drop the others; it is left
//!   in peace for a while after that. Once it has proved that it takes several, what is lost counts as asked.
//! - What requests were seen to cost changes the read plans, when it changes materially.
//!
//! Once the end is asked for, no poll begins.

use std::{collections::VecDeque, pin::pin, sync::Arc, time::Duration};

use corrente_modbus::{CostModel, schedule::Slots};
use corrente_record::{Quality, Reading, Timestamp};
use tokio::time::{Instant, sleep, timeout};
use tokio_util::sync::CancellationToken;

use crate::{
    agenda::{Agenda, LineView, Manner, Next},
    backoff::{Backoff, Policy},
    client::{Connector, ReadError},
    clock::Clock,
    line::{BUSY_PAUSE, Line},
    meter::{Ahead, Meter, Poll, Run, Scratch, Slot, Step, Terms, Verdict},
    observe::EndpointMetrics,
    setup::EndpointSetup,
    spool::shared::SharedSpool,
    state::{LeftOutState, Measured, MeterId, PollerState},
};

/// How long the poll that is under way at the end may take.
const LAST_POLL: Duration = Duration::from_millis(800);
/// Most questions that are sent ahead, the last meter's aside.
const MOST_AHEAD: usize = 256;
/// For how long an endpoint that does not take several requests at a time is asked one at a time.
const ALONE: Policy = Policy {
    tolerated: 0,
    first: Duration::from_secs(10),
    longest: Duration::from_secs(600),
};
/// How often what was measured is shown; it is asked for less often.
pub(crate) const SHOWN_EVERY: Duration = Duration::from_secs(5);

/// What an endpoint needs around it.
#[derive(Clone)]
pub struct Surroundings {
    /// Where readings go.
    pub spool: SharedSpool,
    /// Where it says how it is.
    pub state: Arc<PollerState>,
    /// When to stop.
    pub shutdown: CancellationToken,
    /// What time it is.
    pub clock: Clock,
}

struct Entry {
    index: usize,
    meter: Meter,
    slots: Slots,
    /// The slot to poll next.
    slot: Slot,
    /// Its poll, while the unit is busy.
    suspended: Option<Run>,
    /// Whether this slot was tried already while the line was held.
    held: bool,
    /// Answers that came ahead of the poll.
    ahead: VecDeque<Ahead>,
    /// Whether they are all of the poll's, so that it need not wait for the line.
    complete: bool,
    /// Whether it was asked ahead in this slot and did not answer: it is not again.
    asked_ahead: bool,
}

/// Polls the meters of endpoint number `number` until the end is asked for.
pub async fn run<C: Connector>(number: usize, setup: EndpointSetup<C>, around: Surroundings) {
    let metrics = EndpointMetrics::new(&setup.name, number, around.state.clone());
    let Some(connector) = setup.connector else {
        // Its meters are reported as failing; there is nothing to do but not to end.
        return around.shutdown.cancelled().await;
    };
    let line = Line::new(connector, setup.pause, metrics.clone()).assuming(setup.timeout, setup.cost);
    let (wall, now) = (around.clock.now(), Instant::now());
    let units: Vec<u8> = setup.meters.iter().map(|meter| meter.meter.unit()).collect();
    let mut agenda = Agenda::new(&setup.name, &units, now);
    let entries: Vec<Entry> = setup
        .meters
        .into_iter()
        .map(|meter| Entry {
            slot: meter.slots.first_after(wall).into(),
            index: meter.index,
            meter: meter.meter,
            slots: meter.slots,
            suspended: None,
            held: false,
            ahead: VecDeque::new(),
            complete: false,
            asked_ahead: false,
        })
        .collect();
    for (at, entry) in entries.iter().enumerate() {
        agenda.schedule(at, entry.due(), entry.ends());
    }
    let interval = entries.iter().map(|entry| entry.slots.interval()).min();
    let mut endpoint = Endpoint {
        number,
        retries: setup.retries,
        max_in_flight: setup.max_in_flight,
        takes_several: false,
        alone: Backoff::new(ALONE),
        interval: interval.unwrap_or_default(),
        cost: setup.cost,
        line,
        entries,
        agenda,
        metrics,
        shown: (now, Duration::ZERO),
        busy: None,
        scratch: Scratch::default(),
        unwritten: Vec::new(),
        around,
    };
    endpoint.run().await;
    // What the last burst gave.
    endpoint.write().await;
}

impl Entry {
    fn due(&self) -> Timestamp {
        self.slots.due(self.slot.at)
    }

    /// When the slot after the next is due.
    fn ends(&self) -> Timestamp {
        self.slots.due(self.slots.following(self.slot.at))
    }
}

struct Endpoint<C: Connector> {
    number: usize,
    retries: u32,
    max_in_flight: usize,
    /// Whether it has answered several requests at a time lately.
    takes_several: bool,
    /// After it did not.
    alone: Backoff,
    /// The shortest of its meters.
    interval: Duration,
    cost: CostModel,
    line: Line<C, EndpointMetrics>,
    entries: Vec<Entry>,
    agenda: Agenda,
    metrics: EndpointMetrics,
    /// When figures were shown last, and how long the line had been busy by then.
    shown: (Instant, Duration),
    /// The part of the time that the line is busy.
    busy: Option<f64>,
    scratch: Scratch,
    /// Readings of one burst, which are written before anything else is waited for.
    unwritten: Vec<Unwritten>,
    around: Surroundings,
}

/// A reading on its way into the spool.
struct Unwritten {
    id: MeterId,
    reading: Reading,
    reason: Option<String>,
}

/// What became of a poll.
enum Polled {
    Done(Poll, Duration),
    /// It found nobody, and that says nothing about the unit.
    Unlucky(Poll),
    /// It is made, or gone on with, after this.
    Later(Duration),
    /// Broken off at the end.
    BrokenOff,
}

impl<C: Connector> Endpoint<C> {
    async fn run(&mut self) {
        // Made once, and looked at again and again: registering costs a lock.
        let shutdown = self.around.shutdown.child_token();
        let mut end = pin!(shutdown.cancelled());
        let mut last = pin!(async {
            shutdown.cancelled().await;
            sleep(LAST_POLL).await;
        });
        while !shutdown.is_cancelled() {
            let (wall, now) = (self.around.clock.now(), Instant::now());
            // On a line that is never idle too.
            self.show(now);
            let view = LineView {
                held_until: self.line.hold().until(now),
                doubted: self.line.hold().may_be_doubted(),
                expected: self.line.hold().expected(),
            };
            let next = self.agenda.next(wall, now, view);
            let goes_on =
                matches!(next, Next::Poll(at, _) if self.entries.get(at).is_some_and(|e| e.complete));
            if !goes_on {
                self.write().await;
            }
            match next {
                Next::Poll(at, manner) => {
                    if self.max_in_flight > 1 && manner == Manner::Usual {
                        self.read_ahead(at, wall).await;
                    }
                    self.poll(at, manner, wall, last.as_mut()).await;
                }
                Next::Report(at) => self.report(at),
                Next::Wait(pause) => {
                    tokio::select! {
                        () = self.around.clock.sleep(wall, pause) => {}
                        () = end.as_mut() => {}
                    }
                }
            }
        }
    }

    async fn poll(
        &mut self,
        at: usize,
        manner: Manner,
        wall: Timestamp,
        last: std::pin::Pin<&mut impl Future<Output = ()>>,
    ) {
        let polled = tokio::select! {
            biased;
            polled = self.try_poll(at, manner, wall) => polled,
            () = last => Polled::BrokenOff,
        };
        let Some(entry) = self.entries.get_mut(at) else {
            return;
        };
        match polled {
            // Whoever polls next begins with a later slot.
            Polled::BrokenOff => {}
            Polled::Later(pause) => {
                let due = Timestamp(self.around.clock.now().0.saturating_add(millis(pause)));
                self.agenda.schedule(at, due, entry.ends());
            }
            Polled::Unlucky(poll) => self.keep(at, poll),
            Polled::Done(poll, cost) => {
                entry.held = false;
                self.judge(at, manner, &poll, cost);
                self.keep(at, poll);
            }
        }
    }

    async fn try_poll(&mut self, at: usize, manner: Manner, wall: Timestamp) -> Polled {
        let began = Instant::now();
        // What was lost ahead of its turn was asked when the line was free.
        let lost = |ahead: &Ahead| matches!(ahead.result, Err(ReadError::Timeout(_)));
        let was_lost = self
            .entries
            .get(at)
            .is_some_and(|entry| entry.ahead.iter().any(lost));
        let held = self.line.hold().until(began).filter(|_| !was_lost);
        // Whoever answered until now is believed before the estimate is.
        let doubtful = self.agenda.answers(at) && !was_lost && self.line.hold().may_be_longer(began);
        let expected = self.line.hold().expected();
        let timeouts = self.agenda.may_cost(wall, began, expected);
        let Some(entry) = self.entries.get_mut(at) else {
            return Polled::BrokenOff;
        };
        let run = match entry.suspended.take() {
            Some(run) => run,
            None => {
                self.metrics.late(wall.0 - entry.due().0);
                let terms = Terms {
                    // A unit on trial that answers is asked for the rest as usual.
                    retries: if manner == Manner::Hopeful {
                        0
                    } else {
                        self.retries
                    },
                    timeouts: timeouts && manner == Manner::Usual,
                    probe: matches!(manner, Manner::Probe | Manner::Forced).then(|| self.agenda.attempts(at)),
                };
                entry.meter.set_cost(self.cost);
                entry.complete = false;
                let ahead = std::mem::take(&mut entry.ahead);
                entry.meter.begin(entry.slot, terms, ahead, &mut self.scratch)
            }
        };
        let poll = match entry.meter.go(run, &mut self.line, &self.around.clock).await {
            Step::Done(poll) => poll,
            Step::Busy(run) => {
                entry.suspended = Some(*run);
                return Polled::Later(BUSY_PAUSE);
            }
        };
        let now = Instant::now();
        let free = self.line.hold().until(now).unwrap_or(now);
        let innocent = matches!(manner, Manner::Usual | Manner::Hopeful);
        if poll.verdict == Verdict::Silent && (held.is_some() || doubtful) && innocent {
            if held.is_none() {
                self.line.prolong();
            }
            if manner == Manner::Hopeful {
                self.line.queue();
            }
            let free = self.line.hold().until(now).unwrap_or(now);
            // It waited for the line. If there is time for it in this slot, it is asked again.
            self.agenda
                .unlucky(at, poll.reason.as_deref().unwrap_or_default());
            let again = self.around.clock.now().0.saturating_add(millis(free - now));
            if !entry.held && again < entry.ends().0 {
                entry.held = true;
                return Polled::Later(free - now);
            }
            if !entry.held || doubtful {
                return Polled::Unlucky(poll);
            }
        }
        if let Some(cost) = self.line.cost().revised() {
            tracing::debug!(
                meter = %entry.meter.name(), round_trip_us = cost.round_trip_micros,
                register_us = cost.register_micros, "requests cost other than assumed; plans are made anew"
            );
            self.cost = cost;
        }
        // What a question that nobody answers costs ends when the gateway is free again.
        Polled::Done(poll, free - began)
    }

    /// What a poll says about its unit.
    fn judge(&mut self, at: usize, manner: Manner, poll: &Poll, cost: Duration) {
        let now = Instant::now();
        self.metrics.asked(manner, cost);
        match poll.verdict {
            Verdict::Down | Verdict::NotAsked => {}
            Verdict::Answered => {
                self.agenda.answered(at);
                if self.line.hold().until(now).is_some() {
                    self.agenda.spent(cost);
                }
            }
            Verdict::Silent | Verdict::Unreachable => {
                let told = poll.verdict == Verdict::Unreachable;
                let reason = poll.reason.as_deref().unwrap_or_default();
                self.agenda.silent(at, manner, cost, told, reason, now);
            }
        }
    }

    /// Writes a record that says that a meter was not asked.
    fn report(&mut self, at: usize) {
        let reason = self.agenda.reason(at);
        let Some(entry) = self.entries.get_mut(at) else {
            return;
        };
        entry.suspended = None;
        entry.ahead.clear();
        entry.complete = false;
        let reading = entry.meter.not_read(entry.slot, &reason, self.around.clock.now());
        self.keep(at, Poll::not_made(reading, &reason));
    }

    /// Keeps a reading, which is written soon, and goes on to the meter's next slot.
    fn keep(&mut self, at: usize, mut poll: Poll) {
        let Some(entry) = self.entries.get_mut(at) else {
            return;
        };
        let next = entry.slots.next_after(entry.slot.at, self.around.clock.now());
        entry.slot = Slot {
            at: next.slot,
            skipped: u32::try_from(next.skipped).unwrap_or(u32::MAX),
        };
        (entry.held, entry.asked_ahead) = (false, false);
        self.agenda.schedule(at, entry.due(), entry.ends());
        self.metrics.polled(poll.reading.quality, next.skipped);
        self.around.state.skipped(next.skipped);
        let id = MeterId {
            endpoint: self.number,
            meter: entry.index,
        };
        if poll.quarantine_changed {
            let left_out = left_out(&entry.meter, self.around.clock.now());
            self.around.state.left_out(id, left_out);
            let meters = self.entries.iter();
            self.metrics
                .quarantined(meters.map(|entry| entry.meter.learned().left_out_count()).sum());
        }
        self.unwritten.push(Unwritten {
            id,
            reason: poll.reason.take(),
            reading: poll.into_reading(&mut self.scratch),
        });
    }

    /// Writes into the spool what was read since the last time.
    async fn write(&mut self) {
        if self.unwritten.is_empty() {
            return;
        }
        let (state, mut has_failed) = (&self.around.state, false);
        let readings = self.unwritten.iter().map(|unwritten| &unwritten.reading);
        self.around.spool.append_all(readings, &mut |reading, error| {
            tracing::error!(
                meter = %reading.meter, %error,
                "failed to write a reading to the spool; it is lost"
            );
            state.written(Err(&error));
            has_failed = true;
        });
        if has_failed {
            // A disk that fails is not hammered, and the end is not held up by it.
            let _ = timeout(Duration::from_millis(100), self.around.shutdown.cancelled()).await;
        } else {
            self.around.state.written(Ok(()));
        }
        for Unwritten { id, reading, reason } in self.unwritten.drain(..) {
            if reading.quality != Quality::Good {
                tracing::debug!(meter = %reading.meter, quality = reading.quality.as_str(), reason, "not all was read");
            }
            self.around.state.polled(id, &reading, reason);
            self.scratch.take_back(reading);
        }
    }

    /// Sends the questions of `first`, and of all other due meters whose units answer, several at a time. Each poll
    /// finds its answers when its turn comes, and asks again for what is missing.
    async fn read_ahead(&mut self, first: usize, wall: Timestamp) {
        let is_open = |entry: &Entry| {
            // A meter that wants pauses gets them.
            entry.suspended.is_none()
                && entry.ahead.is_empty()
                && !entry.asked_ahead
                && entry.meter.pause().is_zero()
        };
        if self.alone.left(Instant::now()).is_some() {
            return;
        }
        if !self.entries.get(first).is_some_and(is_open) {
            return;
        }
        let (mut blocks, mut whose) = (Vec::new(), Vec::new());
        for at in std::iter::once(first).chain(self.agenda.healthy_due(wall)) {
            if let Some(entry) = self.entries.get(at).filter(|entry| is_open(entry)) {
                blocks.extend(entry.meter.questions());
                whose.resize(blocks.len(), at);
            }
            if blocks.len() >= MOST_AHEAD {
                break;
            }
        }
        if blocks.len() < 2 {
            return;
        }
        let mut came = Vec::with_capacity(blocks.len());
        let clock = &self.around.clock;
        let mut take = |place, result| came.push((place, result, clock.now()));
        let read = self.line.read_ahead(&blocks, &mut take);
        // What was not answered by the end is not waited for.
        tokio::select! {
            () = read => {}
            () = self.around.shutdown.cancelled() => {}
        }
        let all = came.len() == blocks.len();
        let lost = |result: &Result<_, ReadError>| {
            matches!(result, Err(ReadError::Timeout(_) | ReadError::Connection(_)))
        };
        let proved = self.takes_several;
        if came.iter().any(|(_, result, _)| lost(result)) {
            self.takes_several = false;
            if !proved {
                self.alone.failed(Instant::now());
            }
        } else if all {
            self.takes_several = true;
            self.alone.succeeded();
        }
        for (place, result, at) in came {
            let (Some(&block), Some(&entry)) = (blocks.get(place), whose.get(place)) else {
                continue;
            };
            if let Some(entry) = self.entries.get_mut(entry) {
                if lost(&result) {
                    entry.asked_ahead = true;
                    if !proved || matches!(result, Err(ReadError::Connection(_))) {
                        continue;
                    }
                }
                entry.ahead.push_back(Ahead { block, result, at });
            }
        }
        for asked in whose.chunk_by(|one, next| one == next) {
            if let Some(entry) = asked.first().and_then(|&at| self.entries.get_mut(at)) {
                let is_read = entry.ahead.iter().all(|ahead| ahead.result.is_ok());
                entry.complete = entry.ahead.len() == asked.len() && is_read;
            }
        }
    }

    /// Shows what was measured, from time to time.
    fn show(&mut self, now: Instant) {
        let (since, before) = self.shown;
        let passed = now.saturating_duration_since(since);
        if passed < SHOWN_EVERY {
            return;
        }
        let busy = self.line.busy();
        let share = busy.saturating_sub(before).as_secs_f64() / passed.as_secs_f64();
        let share = self.busy.map_or(share, |old| old + (share - old) / 3.0);
        self.busy = Some(share);
        self.shown = (now, busy);
        let hold = self.line.hold().expected();
        let measured = Measured {
            requests: self.line.cost().measured().map(Into::into),
            busy: (share * 1_000.0).round() / 1_000.0,
            interval_ms: u64::try_from(self.interval.as_millis()).unwrap_or(u64::MAX),
            cycle_ms: (self.interval.as_secs_f64() * share * 1_000.0 * 10.0).round() / 10.0,
            held_ms: u64::try_from(hold.as_millis()).unwrap_or(u64::MAX),
            silent_units: self.agenda.failing(),
        };
        self.metrics.measured(&measured);
        self.around.state.measured(self.number, measured);
    }
}

fn millis(duration: Duration) -> i64 {
    i64::try_from(duration.as_millis()).unwrap_or(i64::MAX)
}

/// What a meter's quarantine holds, for people.
fn left_out(meter: &Meter, wall: Timestamp) -> Vec<LeftOutState> {
    let now = Instant::now();
    let at = |instant: Instant| {
        let ahead = instant.saturating_duration_since(now).as_millis();
        let ago = now.saturating_duration_since(instant).as_millis();
        let millis = |millis: u128| i64::try_from(millis).unwrap_or(i64::MAX);
        Timestamp(wall.0.saturating_add(millis(ahead)).saturating_sub(millis(ago)))
    };
    let left_out = meter.learned().left_out().into_iter();
    left_out
        .filter_map(|left_out| {
            Some(LeftOutState {
                meter: meter.name().to_string(),
                metric: meter.learned().map().values.get(left_out.value)?.name.to_string(),
                reason: left_out.cause.to_string(),
                since: at(left_out.since),
                next_retry: at(left_out.until),
            })
        })
        .collect()
}
