//! Simulated meters: any number of them, served from their register maps over Modbus TCP and RTU over TCP.
//!
//! From the sun to the socket:
//! 1. [`curve`]: the load of one meter as a function of time, with its energy in closed form.
//! 2. [`quantity`]: which part of that load a metric's name and unit speak of.
//! 3. [`history`]: a CSV of measured values instead, repeated end to end.
//! 4. [`device`]: one meter: answers a read with registers or refuses it, as its profile would have it.
//! 5. [`sunspec`]: the chain of models around a SunSpec map.
//! 6. [`wire`]: frames as a server sees them.
//! 7. [`faults`]: what goes wrong, on purpose: of a request and its answer they make bytes, pauses and ends.
//! 8. [`line`](mod@line): the meters behind one endpoint, by unit id, and their faults.
//! 9. [`simulation`]: a poller's configuration as meters.
//! 10. [`mod@serve`]: the meters on the network, with [`tls`], [`hub`] and [`connection`] beneath it.
//! 11. [`options`]: the command line of the binary, `corrente-simulator`.
//!
//! Nothing is stored and nothing runs in the background: every value is a pure function of the meter's name
//! and the time, computed when it is read. So a thousand meters cost no more than their requests, and
//! counters go on where they were after a restart.

pub mod connection;
pub mod curve;
pub mod device;
pub mod faults;
pub mod history;
pub mod hub;
pub mod line;
pub mod options;
pub mod quantity;
pub mod serve;
pub mod simulation;
pub mod sunspec;
pub mod tls;
pub mod wire;

pub use curve::Grid;
pub use faults::{Effect, Fault, Faults};
pub use history::History;
pub use line::UnknownUnit;
pub use serve::{Ports, ServeError, Served, simulate_config};
pub use simulation::{Clock, LoadSource, Simulation, SimulationError, system_clock};
