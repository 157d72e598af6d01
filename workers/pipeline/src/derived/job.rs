//! A stretch with what must be read for it, and the windows that are made of what was read: what every sink with
//! windows does alike.

use std::collections::BTreeMap;

use super::{
    Sample,
    plan::{Plan, WindowTable},
    touched::Stretch,
    window::{self, Window},
};

/// A stretch with what must be read for it.
#[derive(Clone, Debug)]
pub struct Job<'a> {
    /// The meter.
    pub meter: &'a str,
    /// How far the stretch reaches; see [`window::span`].
    pub span: (i64, i64),
    /// What must be read for that; see [`window::hull`].
    pub hull: (i64, i64),
}

/// Windows of a table, by meter, the metric's place in [`Plan::metrics`], and end.
pub type Made<'a> = BTreeMap<(&'a str, usize, i64), Window>;

/// What a window says, besides its key: the columns of its row, in the order in which it is written.
pub const SAYS: [&str; 14] = [
    "demand",
    "energy",
    "mean",
    "min",
    "max",
    "last",
    "readings",
    "expected",
    "completeness",
    "quality",
    "rollovers",
    "resets",
    "jumps",
    "swaps",
];

/// The same in SQL, of the row that goes by this name.
#[must_use]
pub fn said_by(row: &str) -> String {
    SAYS.map(|column| format!("{row}.{column}")).join(", ")
}

/// What an upsert sets of them, in SQL: all that the new row says.
#[must_use]
pub fn set() -> String {
    SAYS.map(|column| format!("{column} = excluded.{column}"))
        .join(", ")
}

impl<'a> Job<'a> {
    /// The job of a stretch. `before` and `after` are when the readings next to it were, where there are any that a
    /// counter goes by.
    #[must_use]
    pub fn new(
        plan: &Plan,
        meter: &'a str,
        stretch: &Stretch,
        before: Option<i64>,
        after: Option<i64>,
    ) -> Self {
        let span = window::span(stretch, before, after);
        Self {
            meter,
            span,
            hull: window::hull(plan, span),
        }
    }
}

/// The windows of a table that jobs have touched, from what was read for each of them.
#[must_use]
pub fn make<'a>(plan: &Plan, table: &WindowTable, jobs: &[Job<'a>], samples: &[Vec<Sample>]) -> Made<'a> {
    // Two stretches may reach into one window; what they make of it is the same.
    let mut windows = Made::new();
    for (job, samples) in jobs.iter().zip(samples) {
        let reach = window::reach(table.interval, job.span.0, job.span.1);
        for metric in &table.metrics {
            let made = window::windows(plan, table, *metric, job.meter, samples, reach);
            windows.extend(
                made.into_iter()
                    .map(|window| ((job.meter, *metric, window.end), window)),
            );
        }
    }
    windows
}
