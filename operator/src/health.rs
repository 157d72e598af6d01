//! What the operator says of itself at `/livez`, `/readyz` and `/status`.

use corrente_runtime::http::Probe;
use serde_json::{Value, json};

use crate::context::Shared;

/// Whether the operator does its work, and if not, what it waits for.
#[derive(Default)]
pub struct Health(Shared<Option<State>>);

#[derive(Clone, Debug, PartialEq, Eq)]
enum State {
    Waits(String),
    Ready,
}

impl Health {
    /// Notes what the operator waits for. `true` where that is another thing than before.
    pub fn waits_for(&self, what: &str) -> bool {
        metrics::gauge!("corrente_operator_ready").set(0.0);
        self.set(State::Waits(what.to_owned()))
    }

    /// Notes that the operator does its work.
    pub fn is_ready(&self) {
        metrics::gauge!("corrente_operator_ready").set(1.0);
        self.set(State::Ready);
    }

    fn set(&self, state: State) -> bool {
        let mut now = self.0.lock();
        let is_new = now.as_ref() != Some(&state);
        *now = Some(state);
        is_new
    }
}

impl Probe for Health {
    fn ready(&self) -> Result<(), String> {
        match &*self.0.lock() {
            Some(State::Ready) => Ok(()),
            Some(State::Waits(what)) => Err(what.clone()),
            None => Err("the operator starts".to_owned()),
        }
    }

    fn status(&self) -> Value {
        let ready = self.ready();
        json!({"ready": ready.is_ok(), "waitsFor": ready.err()})
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn says_what_it_waits_for() {
        let health = Health::default();
        assert_eq!(health.ready(), Err("the operator starts".into()));
        assert!(health.waits_for("x") && !health.waits_for("x"));
        assert_eq!(health.status(), json!({"ready": false, "waitsFor": "x"}));
        health.is_ready();
        assert_eq!(health.ready(), Ok(()));
    }
}
