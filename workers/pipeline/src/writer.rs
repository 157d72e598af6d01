//! The task that owns the sink's writers: it gives each a job at a time, and tries a job that failed again for ever.
//!
//! - Within a partition there is one job at a time, so order is kept whichever writer does it.
//! - A writer is made when a job finds none idle, up to the number that is allowed; the one that was used last is used
//!   next, so that there are no more connections than it takes.
//! - A job that fails waits by itself ([`crate::fault`]), so that one locked row does not hold up every partition. What
//!   is wrong with the whole database holds up all of them, for each would only meet it again.
//! - A job whose claim has ended is dropped.

use std::{collections::VecDeque, sync::Arc};

use corrente_runtime::broker::TopicPartition;
use tokio::{
    sync::mpsc,
    task::JoinSet,
    time::{Instant, sleep_until},
};
use tokio_util::sync::CancellationToken;

use crate::{
    batch::{Batch, Place},
    fault::{Backoff, Fault},
    sink::{Claimed, Sink, SinkError, Stored},
    state::PipelineState,
};

/// What the sink is to do.
pub enum Job {
    /// See that it is there.
    Open,
    /// Take a partition over.
    Claim {
        /// The claim.
        claim: u64,
        /// The partition.
        place: Place,
        /// Cancelled when the claim has ended.
        cancel: CancellationToken,
    },
    /// Drop what need not be known of a partition any more.
    Tidy {
        /// The partition.
        place: Place,
        /// The oldest offset of its log.
        low: i64,
        /// Cancelled when the claim has ended.
        cancel: CancellationToken,
    },
    /// Store a batch.
    Store {
        /// The claim.
        claim: u64,
        /// The batch.
        batch: Arc<Batch>,
        /// Cancelled when the claim has ended.
        cancel: CancellationToken,
    },
}

/// What came of it.
pub enum Done {
    /// A partition is taken over.
    Claimed(u64, Place, Claimed),
    /// A batch is stored, up to its next offset.
    Stored(u64, Arc<Batch>, Stored),
    /// The partition is another worker's; the sentence says so.
    Fenced(u64, Place, String),
}

impl Job {
    fn is_cancelled(&self) -> bool {
        match self {
            Self::Open => false,
            Self::Claim { cancel, .. } | Self::Tidy { cancel, .. } | Self::Store { cancel, .. } => {
                cancel.is_cancelled()
            }
        }
    }

    /// The partition that it is about.
    fn place(&self) -> Option<&TopicPartition> {
        match self {
            Self::Open => None,
            Self::Claim { place, .. } | Self::Tidy { place, .. } => Some(&place.partition),
            Self::Store { batch, .. } => Some(&batch.place.partition),
        }
    }
}

/// A job that is not done yet.
struct Pending {
    job: Job,
    /// Not before this; `None` at once.
    at: Option<Instant>,
    backoff: Backoff,
}

impl Pending {
    fn new(job: Job) -> Self {
        Self {
            job,
            at: None,
            backoff: Backoff::default(),
        }
    }
}

/// Does jobs, with `most` writers at most, until there are none and will be none.
pub async fn write<K: Sink>(
    sink: K,
    most: usize,
    mut jobs: mpsc::UnboundedReceiver<Job>,
    done: mpsc::UnboundedSender<Done>,
    state: Arc<PipelineState>,
) {
    let mut writers = Writers {
        idle: vec![sink],
        made: 1,
        most: most.max(1),
        queue: VecDeque::from([Pending::new(Job::Open)]),
        running: JoinSet::new(),
        hold: None,
        backoff: Backoff::default(),
        done,
        state,
    };
    let mut open = true;
    while open || !writers.queue.is_empty() || !writers.running.is_empty() {
        let next = writers.start();
        tokio::select! {
            job = jobs.recv(), if open => match job {
                Some(job) => writers.queue.push_back(Pending::new(job)),
                None => open = false,
            },
            Some(ended) = writers.running.join_next() => {
                // A panic is the end of the worker: this task's end is noticed.
                let Ok((sink, outcome)) = ended else { return };
                writers.ended(sink, outcome);
            }
            () = until(next) => {}
        }
    }
}

async fn until(at: Option<Instant>) {
    match at {
        Some(at) => sleep_until(at).await,
        None => std::future::pending().await,
    }
}

struct Writers<K> {
    /// Those that have nothing to do; the last was used last.
    idle: Vec<K>,
    made: usize,
    most: usize,
    queue: VecDeque<Pending>,
    running: JoinSet<(K, Outcome)>,
    /// Nothing is begun before this: the database as a whole was found wanting.
    hold: Option<Instant>,
    backoff: Backoff,
    done: mpsc::UnboundedSender<Done>,
    state: Arc<PipelineState>,
}

enum Outcome {
    /// The partition that it was about.
    Done(Option<TopicPartition>),
    Failed(Pending, Fault),
}

impl<K: Sink> Writers<K> {
    /// Begins what can be begun; gives when there may be more, where that is a matter of time.
    fn start(&mut self) -> Option<Instant> {
        let now = Instant::now();
        let state = &self.state;
        self.queue.retain(|pending| {
            let wanted = !pending.job.is_cancelled();
            if !wanted {
                state.sink_released(pending.job.place());
            }
            wanted
        });
        if let Some(hold) = self.hold.filter(|hold| *hold > now) {
            return Some(hold);
        }
        self.hold = None;
        loop {
            let due = |pending: &Pending| pending.at.is_none_or(|at| at <= now);
            let Some(next) = self.queue.iter().position(due) else {
                return self.queue.iter().filter_map(|pending| pending.at).min();
            };
            // Where no writer is idle, the end of a job is what comes next.
            let sink = self.writer()?;
            let Some(pending) = self.queue.remove(next) else {
                self.idle.push(sink);
                return None;
            };
            self.running
                .spawn(attempt(sink, pending, self.done.clone(), self.state.clone()));
        }
    }

    fn writer(&mut self) -> Option<K> {
        if self.made < self.most
            && let [only] = self.idle.as_slice()
            && let Some(another) = only.another()
        {
            // One is always kept to be copied.
            self.made += 1;
            self.idle.insert(0, another);
        }
        self.idle.pop()
    }

    fn ended(&mut self, sink: K, outcome: Outcome) {
        self.idle.push(sink);
        match outcome {
            Outcome::Done(place) => {
                self.backoff.reset();
                self.state.sink_answered(place.as_ref());
            }
            Outcome::Failed(mut pending, fault) => {
                self.state.sink_failed(pending.job.place(), &fault.reason);
                let jitter = rand::random();
                if fault.kind.is_of_all() {
                    let wait = self.backoff.next(fault.kind, jitter);
                    self.hold = Some(Instant::now() + wait);
                } else {
                    let wait = pending.backoff.next(fault.kind, jitter);
                    pending.at = Some(Instant::now() + wait);
                }
                self.queue.push_back(pending);
            }
        }
    }
}

/// Does a job; gives it back with the reason where it is to be tried again.
async fn attempt<K: Sink>(
    mut sink: K,
    pending: Pending,
    done: mpsc::UnboundedSender<Done>,
    state: Arc<PipelineState>,
) -> (K, Outcome) {
    let place = pending.job.place().cloned();
    // Nobody listens any more only while the worker ends, so what `send` says carries nothing.
    let error = match &pending.job {
        Job::Open => sink.open().await.err(),
        Job::Claim { claim, place, .. } => match sink.claim(place).await {
            Ok(claimed) => {
                let _ = done.send(Done::Claimed(*claim, place.clone(), claimed));
                None
            }
            Err(error) => Some(error),
        },
        Job::Tidy { place, low, .. } => sink.tidy(place, *low).await.err(),
        Job::Store { claim, batch, .. } => {
            let began = std::time::Instant::now();
            match sink.store(batch).await {
                Ok(stored) => {
                    state.stored(&stored, began.elapsed());
                    let _ = done.send(Done::Stored(*claim, batch.clone(), stored));
                    None
                }
                Err(SinkError::Fenced(reason)) => {
                    let _ = done.send(Done::Fenced(*claim, batch.place.clone(), reason));
                    None
                }
                Err(error) => Some(error),
            }
        }
    };
    let outcome = match error {
        None => Outcome::Done(place),
        Some(error) => Outcome::Failed(pending, error.into_fault()),
    };
    (sink, outcome)
}
