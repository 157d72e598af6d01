//! The Modbus core without IO: everything between a register map and the values of a poll that needs
//! neither a socket nor a clock.
//!
//! In the order of a meter's life:
//! 1. [`map`]: a register map is compiled once: checked, and brought into the form that reading needs.
//! 2. [`plan`]: the fewest, cheapest requests that read its values; [`cost`]: what requests were seen to cost.
//! 3. [`sunspec`]: where a map counts from a SunSpec model, the walk that finds the model.
//! 4. [`schedule`]: when a meter is due.
//! 5. [`mod@decode`]: an answer's registers become values.
//! 6. [`mod@encode`]: the inverse, for the simulator and for the tests of the former.
//!
//! [`decimal`] is the exact arithmetic under 5 and 6, and [`adu`] the frames that questions and answers
//! travel in, for the client and for the simulator.

pub mod adu;
mod compile;
pub mod cost;
pub mod decimal;
pub mod decode;
pub mod encode;
pub mod map;
pub mod plan;
mod range;
pub mod schedule;
pub mod sunspec;

pub use decode::{Answer, BadValue, decode};
pub use encode::{RegisterImage, encode};
pub use map::{Base, CompiledMap, CompiledValue, MapProblem, OutputType};
pub use plan::{Constraints, CostModel, ReadPlan, ReadRequest};
