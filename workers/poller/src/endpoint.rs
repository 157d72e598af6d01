//! The task of an endpoint: it alone owns the line, and polls the meters behind it when they are due.
//!
//! What comes next is chosen anew after each poll (`choose`):
//! 1. Of the meters that are due, those whose unit is left alone at the moment: that costs no time on the
//!    line, only a record that says so.
//! 2. Then those whose unit answers, the longest due first.
//! 3. Then those whose unit is on trial, without retries: a silent unit costs the others nothing but spare
//!    time.
//!
//! A meter whose poll comes so late that its next slot is due already goes on with the newest slot; those in
//! between are skipped and counted, never piled up. Once the end is asked for, no poll begins.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use corrente_modbus::schedule::Slots;
use corrente_record::{Quality, Reading, Timestamp};
use tokio::time::{Instant, sleep, timeout};
use tokio_util::sync::CancellationToken;

use crate::{
    backoff::{self, Backoff},
    client::Connector,
    line::{Line, LineObserver},
    meter::{Meter, Poll, Verdict},
    observe::EndpointMetrics,
    setup::EndpointSetup,
    spool::shared::SharedSpool,
    state::{MeterId, PollerState},
};

/// The longest sleep: the clock may be set meanwhile.
const LONGEST_SLEEP: Duration = Duration::from_secs(1);
/// How long the poll that is under way at the end may take.
const LAST_POLL: Duration = Duration::from_millis(800);

/// What an endpoint needs around it.
#[derive(Clone)]
pub struct Surroundings {
    /// Where readings go.
    pub spool: SharedSpool,
    /// Where it says how it is.
    pub state: Arc<PollerState>,
    /// When to stop.
    pub shutdown: CancellationToken,
}

struct Entry {
    index: usize,
    meter: Meter,
    slots: Slots,
    /// The slot to poll next.
    slot: Timestamp,
}

/// How a unit has done lately, and why it failed last.
struct Unit {
    backoff: Backoff,
    reason: String,
}

/// What a meter is to the choice of the next poll.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Candidate {
    due: Timestamp,
    standing: Standing,
}

/// How a meter's unit stands. In the order of what comes first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Standing {
    /// It is left alone for now.
    LeftAlone,
    /// It answers.
    Answering,
    /// It did not answer, and is tried out again.
    OnTrial,
}

/// What to do next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Next {
    /// This one.
    Poll(usize, Standing),
    /// Nothing is due before this.
    Wait(Timestamp),
    /// There are no meters.
    Nothing,
}

fn choose(candidates: impl Iterator<Item = Candidate>, now: Timestamp) -> Next {
    let mut wait = Next::Nothing;
    let mut best: Option<(Standing, Timestamp, usize)> = None;
    for (index, candidate) in candidates.enumerate() {
        if candidate.due <= now {
            let this = (candidate.standing, candidate.due, index);
            best = Some(best.map_or(this, |best| best.min(this)));
        } else {
            wait = match wait {
                Next::Wait(until) if until <= candidate.due => wait,
                _ => Next::Wait(candidate.due),
            };
        }
    }
    best.map_or(wait, |(standing, _, index)| Next::Poll(index, standing))
}

/// Polls the meters of endpoint number `number` until the end is asked for.
pub async fn run(number: usize, setup: EndpointSetup, around: Surroundings) {
    let metrics = EndpointMetrics::new(&setup.name, number, around.state.clone());
    let Some(connector) = setup.connector else {
        // Its meters are reported as failing; there is nothing to do but not to end.
        return around.shutdown.cancelled().await;
    };
    let line = Line::new(connector, setup.pause, metrics.clone());
    let now = Timestamp::now();
    let entries = setup
        .meters
        .into_iter()
        .map(|meter| Entry {
            slot: meter.slots.first_after(now),
            index: meter.index,
            meter: meter.meter,
            slots: meter.slots,
        })
        .collect();
    let mut endpoint = Endpoint {
        number,
        retries: setup.retries,
        line,
        entries,
        units: BTreeMap::new(),
        metrics,
        around,
    };
    endpoint.run().await;
}

struct Endpoint<C: Connector, O: LineObserver> {
    number: usize,
    retries: u32,
    line: Line<C, O>,
    entries: Vec<Entry>,
    units: BTreeMap<u8, Unit>,
    metrics: EndpointMetrics,
    around: Surroundings,
}

impl<C: Connector, O: LineObserver> Endpoint<C, O> {
    async fn run(&mut self) {
        let shutdown = self.around.shutdown.clone();
        while !shutdown.is_cancelled() {
            let (now, instant) = (Timestamp::now(), Instant::now());
            let candidates = self.entries.iter().map(|entry| Candidate {
                due: entry.slots.due(entry.slot),
                standing: self.standing(entry.meter.unit(), instant),
            });
            let pause = match choose(candidates, now) {
                Next::Poll(at, standing) => {
                    self.poll(at, standing, now).await;
                    continue;
                }
                Next::Wait(until) => {
                    Duration::from_millis((until.0 - now.0).unsigned_abs()).min(LONGEST_SLEEP)
                }
                Next::Nothing => LONGEST_SLEEP,
            };
            tokio::select! {
                () = sleep(pause) => {}
                () = shutdown.cancelled() => {}
            }
        }
    }

    fn standing(&self, unit: u8, now: Instant) -> Standing {
        match self.units.get(&unit) {
            Some(unit) if unit.backoff.left(now).is_some() => Standing::LeftAlone,
            Some(unit) if unit.backoff.is_suspect() => Standing::OnTrial,
            _ => Standing::Answering,
        }
    }

    async fn poll(&mut self, at: usize, standing: Standing, now: Timestamp) {
        let Some(entry) = self.entries.get_mut(at) else {
            return;
        };
        let slot = entry.slot;
        let unit = entry.meter.unit();
        let lateness = now.0 - entry.slots.due(slot).0;
        let poll = if standing == Standing::LeftAlone {
            let reason = self.units.get(&unit).map_or("no answer", |unit| &unit.reason);
            Some(Poll {
                reading: entry.meter.not_read(slot, reason),
                verdict: Verdict::Down,
                reason: Some(reason.to_owned()),
            })
        } else {
            self.metrics.late(lateness);
            let retries = if standing == Standing::OnTrial {
                0
            } else {
                self.retries
            };
            let poll = entry.meter.poll(&mut self.line, slot, retries);
            let shutdown = &self.around.shutdown;
            let last = async {
                shutdown.cancelled().await;
                sleep(LAST_POLL).await;
            };
            tokio::select! {
                poll = poll => Some(poll),
                () = last => None,
            }
        };
        // Broken off at the end: whoever polls next begins with a later slot.
        let Some(poll) = poll else { return };
        let next = entry.slots.next_after(slot, Timestamp::now());
        entry.slot = next.slot;
        let id = MeterId {
            endpoint: self.number,
            meter: entry.index,
        };
        self.judge(unit, &poll);
        self.metrics.polled(poll.reading.quality, next.skipped);
        self.around.state.skipped(next.skipped);
        keep(&self.around, id, &poll.reading, poll.reason).await;
    }

    /// What a poll says about its unit.
    fn judge(&mut self, unit: u8, poll: &Poll) {
        match poll.verdict {
            Verdict::Down => {}
            Verdict::Answered => {
                self.units.remove(&unit);
            }
            Verdict::Silent => {
                let unit = self.units.entry(unit).or_insert_with(|| Unit {
                    backoff: Backoff::new(backoff::UNIT),
                    reason: String::new(),
                });
                unit.reason = poll.reason.clone().unwrap_or_default();
                unit.backoff.failed(Instant::now());
            }
        }
    }
}

/// Puts a reading into the spool.
async fn keep(around: &Surroundings, id: MeterId, reading: &Reading, reason: Option<String>) {
    match around.spool.append(reading) {
        Ok(_) => around.state.written(Ok(())),
        Err(error) => {
            tracing::error!(
                meter = %reading.meter, %error,
                "failed to write a reading to the spool; it is lost"
            );
            around.state.written(Err(&error));
            // A disk that fails is not hammered, and the end is not held up by it.
            let _ = timeout(Duration::from_millis(100), around.shutdown.cancelled()).await;
        }
    }
    if reading.quality != Quality::Good {
        tracing::debug!(meter = %reading.meter, quality = reading.quality.as_str(), reason, "not all was read");
    }
    around.state.polled(id, reading, reason);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_healthy_come_first_and_the_silent_last() {
        use Standing::{Answering, LeftAlone, OnTrial};
        let choice = |list: &[(i64, Standing)]| {
            let candidates = list.iter().map(|&(due, standing)| Candidate {
                due: Timestamp(due),
                standing,
            });
            choose(candidates, Timestamp(100))
        };
        for (list, next) in [
            (&[][..], Next::Nothing),
            (&[(200, Answering), (150, OnTrial)], Next::Wait(Timestamp(150))),
            (
                &[(10, OnTrial), (90, Answering), (80, Answering)],
                Next::Poll(2, Answering),
            ),
            (&[(80, Answering), (80, Answering)], Next::Poll(0, Answering)),
            (&[(10, OnTrial), (101, Answering)], Next::Poll(0, OnTrial)),
            (&[(10, Answering), (100, LeftAlone)], Next::Poll(1, LeftAlone)),
        ] {
            assert_eq!(choice(list), next, "{list:?}");
        }
    }
}
