//! What goes wrong in the field, on purpose.
//!
//! A [`Fault`] is an [`Effect`], the [`Place`] where it is, and [`When`] it comes. Several that meet in one
//! request all do their work, whatever their order: silence goes before everything, then what is answered,
//! then how it is framed, then when it arrives.
//!
//! 1. This module: what faults there are.
//! 2. [`file`](mod@file): the same as YAML.
//! 3. [`check`]: whether they can come about in these meters.
//! 4. [`engine`]: which of them a request meets. Deterministic: what is left to chance follows from the seed,
//!    the endpoint's name and how many requests came before.
//! 5. [`script`](mod@script): what they make of an answer: bytes and pauses, which the sockets then play.
//! 6. [`meter`](mod@meter): those that change what a meter measures instead.

use std::{collections::BTreeSet, ops::RangeInclusive, time::Duration};

use corrente_crds::profile::Function;

pub mod check;
pub mod engine;
pub mod file;
pub mod meter;
pub mod script;
mod show;

/// Faults, and the seed of their chances.
#[derive(Clone, Debug, PartialEq, Default)]
pub struct Faults {
    /// What chance follows from: with the same seed and the same requests the same happens.
    pub seed: u64,
    /// The faults.
    pub list: Vec<Fault>,
}

/// A fault.
#[derive(Clone, Debug, PartialEq)]
pub struct Fault {
    /// What happens.
    pub effect: Effect,
    /// Where.
    pub place: Place,
    /// When.
    pub when: When,
}

/// What happens.
#[derive(Clone, Debug, PartialEq)]
pub enum Effect {
    /// There is no answer.
    Silence,
    /// The answer comes later, by a time between these. What is asked meanwhile on the connection waits.
    Delay(Duration, Duration),
    /// The answer comes in drops.
    Drip {
        /// How many bytes a drop has; at least 1.
        bytes: usize,
        /// How long it is from one to the next.
        pause: Duration,
    },
    /// The answer ends before it is complete.
    Torn {
        /// After how many bytes; `None` for half of them.
        after: Option<usize>,
        /// What happens then.
        then: Then,
    },
    /// The transaction id is another one, by so much. RTU frames have none.
    WrongTransaction(u16),
    /// The answer claims to be from another unit, by so much.
    WrongUnit(u8),
    /// The answer is to another function: this one; `None` for the one that is most easily mixed up.
    WrongFunction(Option<u8>),
    /// So many registers more, or fewer, than were asked for, in a frame that is right in itself.
    WrongCount(i16),
    /// A byte count that differs by so much from what follows.
    WrongByteCount(i16),
    /// The checksum is wrong. Modbus TCP has none.
    BadCrc,
    /// An exception of this code.
    Exception(u8),
    /// Random bytes, so many, in place of the answer or in front of it.
    Garbage {
        /// How many.
        bytes: usize,
        /// Whether the answer follows.
        then_answer: bool,
    },
    /// The answer comes too late, while others are answered in time.
    Late {
        /// How late; `None` for right before the next answer.
        after: Option<Duration>,
        /// To whom.
        to: Recipient,
    },
    /// A gateway with one serial line: while it waits for a unit, everyone else waits too.
    Gateway {
        /// How long it waits for a unit that is silent.
        timeout: Duration,
        /// The exception that it then gives; `None` for silence.
        exception: Option<u8>,
    },
    /// No more connections than this are served at a time.
    Connections {
        /// How many; 0 for none at all.
        limit: usize,
        /// What becomes of one more.
        beyond: Beyond,
    },
    /// Counters begin again at 0 beyond their width.
    RollOver {
        /// Where they do.
        at: Rim,
        /// How long after the start that first happens; `None` for when the counter gets there by itself.
        after: Option<Duration>,
    },
    /// Counters begin again at 0.
    CounterReset {
        /// How long after the start.
        after: Duration,
    },
    /// Another meter takes the place of this one: another serial number, and counters that are almost new.
    MeterSwap {
        /// How long after the start.
        after: Duration,
    },
}

/// What happens after a part of an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default, serde::Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Then {
    /// Nothing: the connection goes on with the next answer.
    #[default]
    Nothing,
    /// The connection is closed.
    Close,
    /// The connection is reset.
    Reset,
}

/// Who gets a late answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default, serde::Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Recipient {
    /// The connection that it was asked on, if it is still there.
    #[default]
    Same,
    /// Whoever is connected to the endpoint by then, as serial servers have it.
    Newest,
}

/// What becomes of a connection beyond the limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default, serde::Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Beyond {
    /// It is reset at once.
    #[default]
    Refuse,
    /// It is taken, and never served.
    Ignore,
    /// It is served, and the oldest closed for it.
    CloseOldest,
}

/// Where a counter begins again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rim {
    /// At the end of its register type.
    Type,
    /// At 2 to the power of this, of the raw value.
    Bits(u8),
    /// At this raw value: 1000000 for six digits.
    Value(u64),
}

/// Where a fault is: everywhere that nothing here excludes.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Place {
    /// Endpoints by name; all where there is none.
    pub endpoints: Vec<String>,
    /// Meters by name; all, and units that are not there, where there is none.
    pub meters: Vec<String>,
    /// Unit ids; all where there is none.
    pub units: BTreeSet<u8>,
    /// Addresses: a request that touches one of them.
    pub registers: Option<RangeInclusive<u16>>,
    /// The table; any where it is `None`.
    pub function: Option<Function>,
    /// Requests of more registers (or bits) than this.
    pub longer_than: Option<u16>,
    /// Metrics, for the effects on counters; all counters where there is none.
    pub metrics: Vec<String>,
}

/// When a fault comes. Times count from when the simulator was made.
#[derive(Clone, Copy, Debug, PartialEq, Default)]
pub struct When {
    /// Not before this.
    pub from: Option<Duration>,
    /// Not from this on.
    pub until: Option<Duration>,
    /// Only with every so many-th request that it could meet.
    pub every: Option<u64>,
    /// Only so many times.
    pub times: Option<u64>,
    /// Only with this probability, 0 to 1.
    pub chance: Option<f64>,
}

impl When {
    /// Whether this time is within the window.
    #[must_use]
    pub fn covers(&self, now: Duration) -> bool {
        self.from.is_none_or(|from| from <= now) && self.until.is_none_or(|until| now < until)
    }
}

impl Effect {
    /// Whether it changes what a meter measures, rather than how it answers.
    #[must_use]
    pub fn is_of_meters(&self) -> bool {
        matches!(
            self,
            Self::RollOver { .. } | Self::CounterReset { .. } | Self::MeterSwap { .. }
        )
    }

    /// Whether it is of an endpoint as a whole.
    #[must_use]
    pub fn is_of_endpoints(&self) -> bool {
        matches!(self, Self::Gateway { .. } | Self::Connections { .. })
    }
}

impl Faults {
    /// None, yet.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        Self {
            seed,
            list: Vec::new(),
        }
    }

    /// The same and one more.
    #[must_use]
    pub fn with(mut self, fault: Fault) -> Self {
        self.list.push(fault);
        self
    }
}

impl Fault {
    /// This effect, everywhere and always.
    #[must_use]
    pub fn new(effect: Effect) -> Self {
        Self {
            effect,
            place: Place::default(),
            when: When::default(),
        }
    }

    /// At this endpoint, and at those named before.
    #[must_use]
    pub fn endpoint(mut self, name: &str) -> Self {
        self.place.endpoints.push(name.to_owned());
        self
    }

    /// At this meter, and at those named before.
    #[must_use]
    pub fn meter(mut self, name: &str) -> Self {
        self.place.meters.push(name.to_owned());
        self
    }

    /// At these units, and at those named before.
    #[must_use]
    pub fn units(mut self, units: impl IntoIterator<Item = u8>) -> Self {
        self.place.units.extend(units);
        self
    }

    /// At requests that touch one of these addresses.
    #[must_use]
    pub fn registers(mut self, addresses: RangeInclusive<u16>) -> Self {
        self.place.registers = Some(addresses);
        self
    }

    /// At requests of more registers than this.
    #[must_use]
    pub fn longer_than(mut self, registers: u16) -> Self {
        self.place.longer_than = Some(registers);
        self
    }

    /// Not before this long after the start.
    #[must_use]
    pub fn from(mut self, from: Duration) -> Self {
        self.when.from = Some(from);
        self
    }

    /// Not from this long after the start on.
    #[must_use]
    pub fn until(mut self, until: Duration) -> Self {
        self.when.until = Some(until);
        self
    }

    /// Only with every `n`-th request that it could meet.
    #[must_use]
    pub fn every(mut self, n: u64) -> Self {
        self.when.every = Some(n);
        self
    }

    /// Only so many times.
    #[must_use]
    pub fn times(mut self, times: u64) -> Self {
        self.when.times = Some(times);
        self
    }

    /// Only with this probability.
    #[must_use]
    pub fn chance(mut self, chance: f64) -> Self {
        self.when.chance = Some(chance);
        self
    }
}
