//! What is done, and when: a sequence that a seed determines.

use std::time::Duration;

use rand::{Rng as _, RngExt as _, SeedableRng as _, rngs::StdRng};

/// Workers there are at most.
pub const WORKERS: usize = 3;
/// Pollers there are.
pub const POLLERS: usize = 2;
/// The most partitions that the topic is grown to.
pub const MOST_PARTITIONS: i32 = 8;

/// Something that happens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Disturbance {
    /// A worker is killed with -9; where it does not run, it is started.
    KillWorker(usize),
    /// A worker is told to end; where it does not run, it is started.
    StopWorker(usize),
    /// A worker stands still for longer than its session with the broker lasts, and then goes on.
    FreezeWorker(usize),
    /// A poller is killed with -9 and started again on its spool.
    KillPoller(usize),
    /// The feeder loses its producer, and a new one sends again what was not acknowledged.
    RestartFeeder,
    /// The broker is killed with -9, and is back after so long.
    KillBroker(Duration),
    /// The broker is told to end, and is back after so long.
    StopBroker(Duration),
    /// The database is killed with -9, and is back after so long.
    KillDatabase(Duration),
    /// The database is told to end at once, and is back after so long.
    StopDatabase(Duration),
    /// All connections to the database are ended by it.
    CutConnections,
    /// The topic gets one more partition.
    AddPartition,
}

/// The sequence.
pub struct Plan {
    random: StdRng,
}

impl Plan {
    pub fn new(seed: u64) -> Self {
        Self {
            random: StdRng::seed_from_u64(seed),
        }
    }

    fn up_to(&mut self, count: usize) -> usize {
        usize::try_from(self.random.next_u64() % count as u64).unwrap()
    }

    fn down(&mut self) -> Duration {
        Duration::from_millis(self.random.random_range(0..2500))
    }
}

impl Iterator for Plan {
    type Item = (Disturbance, Duration);

    /// The next disturbance, and how long is left to it alone.
    fn next(&mut self) -> Option<Self::Item> {
        let disturbance = match self.up_to(20) {
            0..=4 => Disturbance::KillWorker(self.up_to(WORKERS)),
            5..=7 => Disturbance::StopWorker(self.up_to(WORKERS)),
            8 => Disturbance::FreezeWorker(self.up_to(WORKERS)),
            9..=11 => Disturbance::KillPoller(self.up_to(POLLERS)),
            12 | 13 => Disturbance::RestartFeeder,
            14 => Disturbance::KillBroker(self.down()),
            15 => Disturbance::StopBroker(self.down()),
            16 => Disturbance::KillDatabase(self.down()),
            17 => Disturbance::StopDatabase(self.down()),
            18 => Disturbance::CutConnections,
            _ => Disturbance::AddPartition,
        };
        // Some are followed by a rest in which a dead worker's session ends and another one gets somewhere.
        let pause = match self.up_to(5) {
            0 => 6000..11_000,
            _ => 50..2500,
        };
        Some((
            disturbance,
            Duration::from_millis(self.random.random_range(pause)),
        ))
    }
}

#[test]
fn a_seed_is_a_plan() {
    let plan = |seed| Plan::new(seed).take(300).collect::<Vec<_>>();
    assert_eq!(plan(7), plan(7));
    assert_ne!(plan(7), plan(8));
    let kinds: std::collections::HashSet<_> = plan(7)
        .into_iter()
        .map(|(d, _)| std::mem::discriminant(&d))
        .collect();
    assert_eq!(kinds.len(), 11, "each kind comes up");
}
