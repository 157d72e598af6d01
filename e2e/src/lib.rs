//! What the scenarios stand on. They run on the real stack of `stack.sh`: a Kubernetes cluster of two
//! nodes, an Apache Kafka broker, PostgreSQL with TimescaleDB, and meters served by pymodbus.
//!
//! 1. [`stack`]: the stack's addresses, and its switches: kill, start, cut off, put back.
//! 2. [`wait`]: waiting for a condition, with the last thing seen in the error.
//! 3. [`space`]: a namespace of a scenario's own; [`site`]: with a table, a topic, and resources in it.
//! 4. [`release`]: Corrente installed by its Helm charts, once for all scenarios.
//! 5. [`meters`]: pymodbus meters, and the trace of who asked them.
//!    [`certificates`]: those of meters with Modbus/TCP Security.
//! 6. [`plant`]: the usual site of a scenario: 20 meters on 3 endpoints, a pipeline, a table.
//! 7. [`topic`]: what is in a topic, and a record that is not ours, published by hand.
//! 8. [`influx`]: an InfluxDB of a scenario's own.
//! 9. [`audit`]: nothing lost, nothing doubled, never two masters.

pub mod audit;
pub mod certificates;
pub mod influx;
pub mod meters;
pub mod plant;
pub mod release;
pub mod site;
pub mod space;
pub mod stack;
pub mod topic;
pub mod wait;
