//! The task that owns the sink: it does one job at a time, and tries a job that failed again for ever.
//!
//! A job that fails goes behind the others, so that one locked row does not hold up every partition; within
//! a partition there is one job at a time, so order is kept. A job whose claim has ended is dropped.

use std::{collections::VecDeque, sync::Arc, time::Instant};

use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use crate::{
    backoff::Backoff,
    batch::{Batch, Place},
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
    /// Store a batch.
    Store {
        /// The claim.
        claim: u64,
        /// The batch.
        batch: Box<Batch>,
        /// Cancelled when the claim has ended.
        cancel: CancellationToken,
    },
}

/// What came of it.
pub enum Done {
    /// A partition is taken over.
    Claimed(u64, Place, Claimed),
    /// A batch is stored, up to its next offset.
    Stored(u64, Box<Batch>, Stored),
    /// The partition is another worker's; the sentence says so.
    Fenced(u64, Place, String),
}

impl Job {
    fn is_cancelled(&self) -> bool {
        match self {
            Self::Open => false,
            Self::Claim { cancel, .. } | Self::Store { cancel, .. } => cancel.is_cancelled(),
        }
    }
}

/// Does jobs until there are none and will be none.
pub async fn write<K: Sink>(
    mut sink: K,
    mut jobs: mpsc::UnboundedReceiver<Job>,
    done: mpsc::UnboundedSender<Done>,
    state: Arc<PipelineState>,
) {
    let mut queue = VecDeque::from([Job::Open]);
    let mut backoff = Backoff::default();
    loop {
        while let Ok(job) = jobs.try_recv() {
            queue.push_back(job);
        }
        let Some(job) = queue.pop_front() else {
            match jobs.recv().await {
                Some(job) => queue.push_back(job),
                None => return,
            }
            continue;
        };
        if job.is_cancelled() {
            continue;
        }
        match attempt(&mut sink, job, &done, &state).await {
            Ok(()) => {
                backoff.reset();
                state.sink_answered();
            }
            Err((job, reason)) => {
                state.sink_failed(&reason);
                queue.push_back(job);
                tokio::time::sleep(backoff.next(rand::random())).await;
            }
        }
    }
}

/// Does a job; gives it back with the reason where it is to be tried again.
async fn attempt<K: Sink>(
    sink: &mut K,
    job: Job,
    done: &mpsc::UnboundedSender<Done>,
    state: &PipelineState,
) -> Result<(), (Job, String)> {
    // Nobody listens any more only while the worker ends, so what `send` says carries nothing.
    match job {
        Job::Open => match sink.open().await {
            Ok(()) => Ok(()),
            Err(error) => Err((Job::Open, error.to_string())),
        },
        Job::Claim { claim, place, cancel } => match sink.claim(&place).await {
            Ok(claimed) => {
                let _ = done.send(Done::Claimed(claim, place, claimed));
                Ok(())
            }
            Err(error) => Err((Job::Claim { claim, place, cancel }, error.to_string())),
        },
        Job::Store { claim, batch, cancel } => {
            let began = Instant::now();
            match sink.store(&batch).await {
                Ok(stored) => {
                    state.stored(&batch, stored, began.elapsed());
                    let _ = done.send(Done::Stored(claim, batch, stored));
                    Ok(())
                }
                Err(SinkError::Fenced(reason)) => {
                    let _ = done.send(Done::Fenced(claim, batch.place, reason));
                    Ok(())
                }
                Err(SinkError::Retry(reason)) => Err((Job::Store { claim, batch, cancel }, reason)),
            }
        }
    }
}
