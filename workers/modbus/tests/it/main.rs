//! Tests of the Modbus core through its public interface.

#[cfg(test)]
mod adu;
#[cfg(test)]
mod compile;
#[cfg(test)]
mod plan;
#[cfg(test)]
mod support;
#[cfg(test)]
mod values;
