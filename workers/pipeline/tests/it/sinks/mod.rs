//! Each further sink: records through the real broker into the real server, which the test starts itself.

mod cassandra;
mod contract;
mod encrypted;
mod fenced;
mod influx;
mod letters;
mod mongo;
mod panel;
mod server;
