//! The scenarios: what Corrente promises, shown on the real stack. Each has a namespace, meters and a
//! table of its own, and ends with the same audit: nothing lost, nothing doubled, never two masters.

mod faults;
mod install;
mod isolation;
mod mistakes;
mod nodes;
mod scaling;
mod secure;
mod tables;
