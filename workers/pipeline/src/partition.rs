//! One partition of ours, from its claim to its batches. No IO: [`mod@crate::run`] carries out what it says.
//!
//! 1. *Claiming*: the sink is asked for its row. Nothing is read.
//! 2. *Checking*: the last stored message is read again and compared.
//! 3. *Reading*: messages are gathered into batches; one batch is with the sink at a time.
//! 4. *Stopped*: reading would lose or mix up records. The reason is told, and the claim is tried again
//!    from time to time, so that what a person changes takes effect by itself.

use std::{sync::Arc, time::Instant};

use corrente_runtime::broker::{Messages, Start};
use tokio_util::sync::CancellationToken;

use crate::{
    assignment::{self, Check, Comparison, Resume},
    batch::{Batch, Place},
    batcher::{Batcher, Bounds},
    dedupe::Marks,
    sink::Claimed,
};

/// Where a partition is on its way.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Phase {
    /// The sink is asked for its row.
    Claiming,
    /// The last stored message is read again.
    Checking(Check),
    /// Messages are read and stored.
    Reading,
    /// Nothing is read, for this reason.
    Stopped(String),
}

impl Phase {
    /// The phase in a word, for the status.
    #[must_use]
    pub fn word(&self) -> &'static str {
        match self {
            Self::Claiming => "claiming",
            Self::Checking(_) => "checking",
            Self::Reading => "reading",
            Self::Stopped(_) => "stopped",
        }
    }
}

/// A partition of ours.
pub struct Partition {
    /// What it is.
    pub place: Place,
    /// Tells this claim from earlier and later ones of the same partition.
    pub claim: u64,
    /// Cancelled when the claim ends, so that nothing is tried for it any more.
    pub cancel: CancellationToken,
    /// Where it is on its way.
    pub phase: Phase,
    /// Why an earlier claim stopped, until reading is under way again.
    pub earlier: Option<String>,
    /// Whether a batch is with the sink.
    pub in_flight: bool,
    /// Whether the source was told to pause.
    pub paused: bool,
    epoch: i64,
    stored: Option<i64>,
    read: Option<i64>,
    marks: Arc<Marks>,
    batcher: Batcher,
    /// What the batch that is with the sink weighs.
    with_sink: usize,
}

impl Drop for Partition {
    fn drop(&mut self) {
        self.cancel.cancel();
    }
}

impl Partition {
    /// A partition that is to be claimed.
    #[must_use]
    pub fn new(place: Place, claim: u64) -> Self {
        Self {
            place,
            claim,
            cancel: CancellationToken::new(),
            phase: Phase::Claiming,
            earlier: None,
            in_flight: false,
            paused: false,
            epoch: 0,
            stored: None,
            read: None,
            marks: Arc::default(),
            batcher: Batcher::default(),
            with_sink: 0,
        }
    }

    /// The sink gave its row: where to start.
    pub fn claimed(&mut self, claimed: Claimed) -> Start {
        let (start, check) = assignment::begin(claimed.position.as_ref());
        self.epoch = claimed.epoch;
        self.stored = claimed.position.map(|p| p.next_offset);
        self.read = self.stored;
        self.marks = Arc::new(Marks::new(claimed.marks));
        self.phase = check.map_or(Phase::Reading, Phase::Checking);
        if self.phase == Phase::Reading {
            self.earlier = None;
        }
        start
    }

    /// Messages were read. They may come late, after the partition stopped; then they are dropped.
    pub fn messages(&mut self, messages: Messages, now: Instant) {
        let Some(first) = messages.get(0) else {
            return;
        };
        if let Phase::Checking(check) = &self.phase {
            match assignment::compare(check, &first) {
                Comparison::Other(reason) => self.phase = Phase::Stopped(reason),
                compared => {
                    if compared == Comparison::Gone {
                        tracing::warn!(
                            partition = %self.place.partition,
                            offset = check.at,
                            "the message that was stored last is no longer in the topic: it cannot be compared"
                        );
                    }
                    self.phase = Phase::Reading;
                    self.earlier = None;
                }
            }
        }
        if self.phase != Phase::Reading {
            return;
        }
        // What is below was read before, as after a pause, or is the one that was compared.
        let from = self.read.map_or(0, |read| messages.position(read));
        if let Some(last) = messages.last().filter(|_| from < messages.len()) {
            self.read = Some(last.offset + 1);
            self.batcher.push(messages, from, now);
        }
    }

    /// Whether the log from `low` up to `high` has what comes before the next message to read, although
    /// the start was said not to be in it. The log was shorter then: it may be another one, which has grown
    /// meanwhile. To go on would skip its first messages, so the claim is to be made anew, which compares.
    #[must_use]
    pub fn is_inside(&self, low: i64, high: i64) -> bool {
        matches!(self.phase, Phase::Checking(_) | Phase::Reading)
            && self.read.is_some_and(|next| low < next && next <= high)
    }

    /// The sink refused the batch that was with it, for `reason`, and is done with it.
    pub fn fenced(&mut self, reason: String) {
        (self.in_flight, self.with_sink) = (false, 0);
        self.phase = Phase::Stopped(reason);
    }

    /// The start, or where reading had come to, is not in the log from `low` up to `high`. Gives where to
    /// go on, and how many messages are lost; `None` where the partition stopped.
    pub fn out_of_range(&mut self, low: i64, high: i64) -> Option<(Start, u64)> {
        if !matches!(self.phase, Phase::Checking(_) | Phase::Reading) {
            return None;
        }
        let Some(next) = self.read else {
            return Some((Start::Beginning, 0));
        };
        match assignment::resume(next, low, high) {
            Resume::At { at, gap } => {
                // The message to compare is gone too.
                self.phase = Phase::Reading;
                self.read = Some(at);
                // A new start is never paused.
                self.paused = false;
                Some((Start::Offset(at), gap))
            }
            Resume::Stop(reason) => {
                self.phase = Phase::Stopped(reason);
                None
            }
        }
    }

    /// The next batch, if one is due and none is with the sink; with `flush`, however little there is.
    pub fn next_batch(&mut self, bounds: &Bounds, now: Instant, flush: bool) -> Option<Batch> {
        if self.in_flight || self.phase != Phase::Reading {
            return None;
        }
        if !(self.batcher.is_due(bounds, now) || flush && !self.batcher.is_empty()) {
            return None;
        }
        let runs = self.batcher.take(bounds);
        let batch = Batch::build(
            self.place.clone(),
            self.epoch,
            self.stored,
            runs,
            self.marks.clone(),
        )?;
        (self.in_flight, self.with_sink) = (true, batch.bytes());
        Some(batch)
    }

    /// The batch up to `next_offset` is stored, and raised `marks`.
    pub fn stored(&mut self, next_offset: i64, marks: Vec<(String, u64)>) {
        (self.in_flight, self.with_sink) = (false, 0);
        self.stored = Some(next_offset);
        // Copied only where the batch is still somewhere.
        Arc::make_mut(&mut self.marks).rise(marks);
    }

    /// When [`Partition::next_batch`] has something to give at the latest.
    #[must_use]
    pub fn due_at(&self, bounds: &Bounds) -> Option<Instant> {
        if self.in_flight || self.phase != Phase::Reading {
            return None;
        }
        self.batcher.due_at(bounds)
    }

    /// Whether so much waits that reading should pause; with half of a bound of slack, so that it does not
    /// flutter.
    #[must_use]
    pub fn should_pause(&self, bounds: &Bounds) -> bool {
        let bounds = if self.paused {
            Bounds {
                rows: bounds.rows.div_ceil(2),
                bytes: bounds.bytes.div_ceil(2),
                ..*bounds
            }
        } else {
            *bounds
        };
        self.batcher.is_full(&bounds)
    }

    /// Why nothing is stored, where that is so.
    #[must_use]
    pub fn reason(&self) -> Option<&str> {
        match &self.phase {
            Phase::Stopped(reason) => Some(reason),
            _ => self.earlier.as_deref(),
        }
    }

    /// The next offset to store, where it is known.
    #[must_use]
    pub fn next_offset(&self) -> Option<i64> {
        self.stored
    }

    /// What waits in memory or is with the sink, in bytes.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.batcher.bytes() + self.with_sink
    }

    /// Messages that wait in memory.
    #[must_use]
    pub fn waiting(&self) -> usize {
        self.batcher.len()
    }
}

#[cfg(test)]
mod tests {
    use std::{collections::HashMap, time::Duration};

    use corrente_runtime::broker::{Incoming, TopicPartition};

    use super::*;
    use crate::assignment::{Fingerprint, Position};

    const BOUNDS: Bounds = Bounds {
        rows: 2,
        bytes: 10_000,
        age: Duration::from_secs(1),
    };

    fn messages(offsets: std::ops::Range<i64>) -> Messages {
        let mut messages = Messages::default();
        for offset in offsets {
            let payload =
                format!(r#"{{"ts":"2026-11-20T22:20:00Z","meter":"m","stream":"s","seq":{offset}}}"#);
            messages.push(Incoming {
                offset,
                timestamp: Some(offset),
                key: None,
                payload: Some(payload.as_bytes()),
            });
        }
        messages
    }

    fn claimed(next_offset: i64, last: i64) -> (Partition, Start) {
        let last = messages(last..last + 1);
        let place = Place {
            cluster: "c".into(),
            partition: TopicPartition {
                topic: "t".into(),
                partition: 0,
            },
        };
        let mut partition = Partition::new(place, 1);
        let start = partition.claimed(Claimed {
            epoch: 7,
            position: Some(Position {
                next_offset,
                last: Some(Fingerprint::of(&last.get(0).unwrap())),
            }),
            marks: HashMap::new(),
        });
        (partition, start)
    }

    #[test]
    fn compares_the_first_message_and_stores_the_rest() {
        let now = Instant::now();
        let (mut partition, start) = claimed(5, 4);
        assert_eq!(start, Start::Offset(4));
        partition.messages(messages(4..9), now);
        assert_eq!(partition.phase, Phase::Reading);
        let batch = partition.next_batch(&BOUNDS, now, false).unwrap();
        assert_eq!((batch.epoch, batch.previous, batch.next_offset), (7, Some(5), 7));
        assert_eq!(
            partition.next_batch(&BOUNDS, now, true),
            None,
            "one batch at a time"
        );
        partition.stored(7, vec![]);
        // Read again, as after a pause: nothing comes twice.
        partition.messages(messages(4..9), now);
        assert_eq!(partition.next_batch(&BOUNDS, now, false).unwrap().next_offset, 9);
        partition.stored(9, vec![]);
        assert_eq!(partition.next_batch(&BOUNDS, now, true), None);
    }

    #[test]
    fn stops_where_another_message_is_there() {
        let (mut partition, _) = claimed(5, 3);
        partition.messages(messages(4..9), Instant::now());
        assert!(matches!(&partition.phase, Phase::Stopped(why) if why.contains("offset 4")));
        assert_eq!(partition.next_batch(&BOUNDS, Instant::now(), true), None);
        assert_eq!(partition.out_of_range(0, 100), None);
    }

    #[test]
    fn goes_on_after_a_gap_and_stops_beyond_the_end() {
        let (mut partition, _) = claimed(5, 4);
        assert_eq!(partition.out_of_range(8, 20), Some((Start::Offset(8), 3)));
        partition.messages(messages(8..9), Instant::now());
        let batch = partition.next_batch(&BOUNDS, Instant::now(), true).unwrap();
        assert_eq!((batch.previous, batch.next_offset), (Some(5), 9));
        let (mut partition, _) = claimed(5, 4);
        assert_eq!(partition.out_of_range(0, 2), None);
        assert!(matches!(partition.phase, Phase::Stopped(_)));
    }

    #[test]
    fn a_log_that_has_grown_to_the_start_is_compared_again() {
        let (mut partition, _) = claimed(5, 4);
        for (low, high, inside) in [
            (0, 4, false),
            (0, 5, true),
            (4, 9, true),
            (5, 9, false),
            (6, 9, false),
        ] {
            assert_eq!(partition.is_inside(low, high), inside, "{low}..{high}");
        }
        partition.messages(messages(4..7), Instant::now());
        assert!(!partition.is_inside(0, 6), "7 is next");
        assert!(partition.is_inside(0, 7));
        partition.phase = Phase::Stopped("because".into());
        assert!(!partition.is_inside(0, 7));
    }

    #[test]
    fn nothing_is_with_the_sink_after_a_refusal() {
        let (mut partition, _) = claimed(1, 0);
        partition.messages(messages(0..4), Instant::now());
        assert!(partition.next_batch(&BOUNDS, Instant::now(), false).is_some());
        partition.fenced("another's".into());
        assert!(!partition.in_flight);
        assert_eq!(partition.reason(), Some("another's"));
        assert_eq!(partition.next_batch(&BOUNDS, Instant::now(), true), None);
    }

    #[test]
    fn pauses_when_a_batch_waits_behind_another() {
        let (mut partition, _) = claimed(1, 0);
        let now = Instant::now();
        partition.messages(messages(0..4), now);
        assert!(partition.should_pause(&BOUNDS));
        partition.paused = true;
        assert!(partition.next_batch(&BOUNDS, now, false).is_some());
        assert!(partition.should_pause(&BOUNDS));
        partition.stored(3, vec![]);
        assert!(partition.next_batch(&BOUNDS, now, true).is_some());
        assert!(!partition.should_pause(&BOUNDS));
    }

    #[test]
    fn what_is_with_the_sink_takes_room_too() {
        let (mut partition, _) = claimed(1, 0);
        let now = Instant::now();
        partition.messages(messages(0..4), now);
        let all = partition.bytes();
        let batch = partition.next_batch(&BOUNDS, now, false).unwrap();
        assert!(batch.bytes() > 0 && batch.bytes() < all);
        assert_eq!(partition.bytes(), all);
        partition.stored(3, vec![]);
        assert_eq!(partition.bytes(), all - batch.bytes());
        assert!(partition.next_batch(&BOUNDS, now, true).is_some());
        partition.fenced("another's".into());
        assert_eq!(partition.bytes(), 0);
    }
}
