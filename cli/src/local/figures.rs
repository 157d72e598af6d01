//! The figures of `corrente local`, from what the workers report.
//!
//! A record is in its poller's spool until every pipeline of its topic has stored it. So what is not stored
//! yet is what the spools hold, and there is nothing to conclude from rows: a topic that two pipelines read
//! gives two rows per record, and what an earlier run left gives rows without a record of this one.

use corrente_config::report::{PipelineReport, PollerReport};

/// The figures of the chain, since it was started.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Figures {
    /// Polls done, failed ones included.
    pub polls: u64,
    /// Polls that read nothing.
    pub failed: u64,
    /// Slots that were due and could not be polled in time.
    pub skipped: u64,
    /// Records written to the spools.
    pub records: u64,
    /// Rows stored.
    pub rows: u64,
    /// Records set aside, with the reason, in the dead-letter table.
    pub dead_lettered: u64,
    /// Records in the spools that are not stored yet, those of earlier runs included.
    pub waiting: u64,
    /// Records that are neither stored nor set aside, and that no run can bring any more.
    pub lost: u64,
}

/// What became of a spool's records besides being sent, over the spool's life.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Gone {
    /// Dropped by the spool's bound.
    pub evicted: u64,
    /// Refused by the broker for good.
    pub refused: u64,
    /// Not to be read back.
    pub damaged: u64,
}

impl Gone {
    /// How many of them are new since `before`.
    #[must_use]
    pub fn since(self, before: Self) -> u64 {
        // A spool that is not open yet reports nothing.
        self.evicted.saturating_sub(before.evicted)
            + self.refused.saturating_sub(before.refused)
            + self.damaged.saturating_sub(before.damaged)
    }
}

impl Figures {
    /// Adds a poller and what it lost.
    pub fn add_poller(&mut self, report: &PollerReport, lost: u64) {
        self.polls += report.polls;
        self.skipped += report.skipped;
        self.records += report.spool.records;
        self.waiting += report.spool.pending;
        self.lost += lost;
    }

    /// Adds a pipeline.
    pub fn add_pipeline(&mut self, report: &PipelineReport) {
        self.rows += report.rows;
        self.dead_lettered += report.dead_lettered;
        self.lost += report.gaps;
    }
}

#[cfg(test)]
mod tests {
    use corrente_config::report::SpoolReport;

    use super::*;

    fn poller(records: u64, pending: u64) -> PollerReport {
        PollerReport {
            polls: records,
            spool: SpoolReport {
                records,
                pending,
                ..SpoolReport::default()
            },
            ..PollerReport::default()
        }
    }

    fn pipeline(rows: u64, gaps: u64) -> PipelineReport {
        PipelineReport {
            rows,
            gaps,
            ..PipelineReport::default()
        }
    }

    #[test]
    fn rows_neither_hide_a_loss_nor_make_one() {
        // Two pipelines read the topic of ten records; one record could not be written to the spool.
        let mut figures = Figures::default();
        figures.add_poller(&poller(10, 0), 1);
        figures.add_pipeline(&pipeline(10, 0));
        figures.add_pipeline(&pipeline(10, 2));
        assert_eq!((figures.rows, figures.lost, figures.waiting), (20, 3, 0));
        // An earlier run left forty; four of these ten are still to be stored.
        let mut figures = Figures::default();
        figures.add_poller(&poller(10, 4), 0);
        figures.add_pipeline(&pipeline(46, 0));
        assert_eq!((figures.rows, figures.lost, figures.waiting), (46, 0, 4));
    }

    #[test]
    fn only_what_is_gone_since_the_start_counts() {
        let before = Gone {
            evicted: 75,
            refused: 2,
            damaged: 1,
        };
        assert_eq!(Gone::default().since(before), 0);
        assert_eq!(before.since(before), 0);
        let now = Gone {
            evicted: 80,
            refused: 4,
            damaged: 2,
        };
        assert_eq!(now.since(before), 8);
    }
}
