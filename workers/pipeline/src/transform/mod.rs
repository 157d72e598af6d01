//! What is done to a record between the topic and the table.
//!
//! A [`Chain`] of steps sees each record once, in the pass that reads it: after records that the table has already
//! are left out, before the sink encodes it. A record may be changed in place, left out, or set aside. An empty
//! chain costs nothing.

use corrente_config::PipelineConfig;
use corrente_record::View;

use crate::batch::Refusal;

mod steps;

pub use steps::Configured;

/// What becomes of a record.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It is stored.
    Keep,
    /// It is not wanted; it is counted and forgotten.
    Drop,
    /// It is set aside as a dead letter.
    Refuse(Refusal),
}

/// One transformation. It must give the same for the same record, for a batch may be stored in several tries.
pub trait Step: Send + Sync {
    /// Changes the record, and says what becomes of it.
    fn apply<'a>(&'a self, record: &mut View<'a>) -> Verdict;
}

/// Transformations, one after the other.
#[derive(Default)]
pub struct Chain {
    steps: Vec<Box<dyn Step>>,
}

impl Chain {
    /// A chain of these steps.
    #[must_use]
    pub fn new(steps: Vec<Box<dyn Step>>) -> Self {
        Self { steps }
    }

    /// The chain of a pipeline.
    #[must_use]
    pub fn of(config: &PipelineConfig) -> Self {
        let steps = config.transforms.iter().cloned();
        Self::new(
            steps
                .map(|step| Box::new(Configured(step)) as Box<dyn Step>)
                .collect(),
        )
    }

    /// Applies the steps until one says that the record is not stored.
    pub fn apply<'a>(&'a self, record: &mut View<'a>) -> Verdict {
        for step in &self.steps {
            match step.apply(record) {
                Verdict::Keep => {}
                other => return other,
            }
        }
        Verdict::Keep
    }
}
