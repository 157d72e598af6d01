//! The simulator from the wire: a Modbus client of its own reads simulated meters and decodes what it gets.

#[cfg(test)]
mod clients;
#[cfg(test)]
mod faults;
#[cfg(test)]
mod guide;
#[cfg(test)]
mod library;
#[cfg(test)]
mod support;
#[cfg(test)]
mod values;
