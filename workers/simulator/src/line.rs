//! The meters behind one endpoint, by unit id: what they answer, and what faults make of it. Without IO.
//!
//! Only the four reads are served, function codes 01 to 04; all others are refused as a device would that
//! does not know them.

use std::{
    collections::BTreeMap,
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use corrente_crds::poller::Transport;
use corrente_record::Timestamp;

use crate::{
    device::{Device, Refusal},
    faults::{
        engine::{Admission, ConnectionId, Engine},
        script::{Later, Step},
    },
    simulation::Clock,
    wire::{Answer, Asked, Framing},
};

/// What happens to a request for a unit that is not there.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum UnknownUnit {
    /// What the transport's devices do: over TCP a gateway says that the unit did not answer (exception
    /// 0x0B); over RTU nobody says anything.
    #[default]
    AsTransport,
    /// Silence over either, as some gateways have it.
    Silent,
}

/// The meters behind one endpoint.
pub struct Line {
    units: BTreeMap<u8, Device>,
    silent: bool,
    framing: Framing,
    clock: Clock,
    /// `None` where there are no faults, so that nothing is locked for them.
    faults: Option<Mutex<Engine>>,
}

/// What is done for a request.
#[derive(Debug, PartialEq, Eq)]
pub enum Done {
    /// The answer has been written where answers go, if there is one.
    Written,
    /// These, one after the other.
    Steps(Vec<Step>, Option<Later>),
}

impl Line {
    /// A line of these meters.
    #[must_use]
    pub fn new(
        units: BTreeMap<u8, Device>,
        transport: Transport,
        unknown: UnknownUnit,
        clock: Clock,
        faults: Engine,
    ) -> Self {
        let framing = Framing::from(transport);
        Self {
            units,
            silent: framing == Framing::Rtu || unknown == UnknownUnit::Silent,
            framing,
            clock,
            faults: (!faults.is_idle()).then(|| Mutex::new(faults)),
        }
    }

    /// How many meters there are.
    #[must_use]
    pub fn meters(&self) -> usize {
        self.units.len()
    }

    /// How requests and answers are framed.
    #[must_use]
    pub fn framing(&self) -> Framing {
        self.framing
    }

    /// Answers a request: at the end of `out` where there is no more to it than that.
    pub fn serve(&self, now: Duration, connection: ConnectionId, asked: &Asked, out: &mut Vec<u8>) -> Done {
        let answer = self.answer(asked, (self.clock)());
        let Some(mut faults) = self.faults() else {
            if let Some(answer) = answer {
                self.framing.put(asked.transaction, &answer, out);
            }
            return Done::Written;
        };
        let script = faults.respond(now, connection, asked, answer);
        Done::Steps(script.steps, script.later)
    }

    /// What becomes of a new connection where so many are served.
    #[must_use]
    pub fn admit(&self, now: Duration, served: usize) -> Admission {
        self.faults()
            .map_or(Admission::Serve, |faults| faults.admit(now, served))
    }

    /// A connection is gone.
    pub fn forget(&self, connection: ConnectionId) {
        if let Some(mut faults) = self.faults() {
            faults.forget(connection);
        }
    }

    fn faults(&self) -> Option<MutexGuard<'_, Engine>> {
        // The engine is whole between any two of its calls.
        let faults = self.faults.as_ref()?;
        Some(faults.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// The answer to a request; `None` is silence.
    fn answer(&self, asked: &Asked, time: Timestamp) -> Option<Answer> {
        let Some(device) = self.units.get(&asked.unit) else {
            return (!self.silent).then(|| Answer::exception(asked, 0x0b));
        };
        let read = match asked.read {
            Ok(read) => read,
            Err(exception) => return Some(Answer::exception(asked, exception)),
        };
        let function = read.function();
        Some(match device.read(function, read.address(), read.count(), time) {
            Ok(words) => Answer::values(asked, function, &words),
            Err(Refusal::IllegalDataAddress) => Answer::exception(asked, 0x02),
            Err(Refusal::IllegalDataValue) => Answer::exception(asked, 0x03),
        })
    }
}
