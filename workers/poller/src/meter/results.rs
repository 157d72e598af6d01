//! What a poll has read so far, value by value; and the reading it becomes.

use corrente_modbus::{BadValue, CompiledMap, ReadRequest, decode};
use corrente_record::{Name, Quality, Reading, Value};

use crate::{client::Registers, learned::Cause};

/// The longest reason in a record, in characters.
const REASON_LENGTH: usize = 120;

/// What came of one value.
#[derive(Clone, Debug, PartialEq)]
enum Outcome {
    /// Nothing yet.
    None,
    /// It is in its place.
    Value,
    /// It was read, and is none.
    Bad(BadValue),
    /// It was not read.
    Missing(Cause),
}

/// What came of all values, by their indices in the map.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Results {
    outcomes: Vec<Outcome>,
    /// A place for each value beside its name. A poll that reads all of them leaves them as they are.
    places: Vec<(Name, Value)>,
}

impl Results {
    /// Begins anew. `places` may be those of an earlier reading: from poll to poll the names are the same ones.
    pub fn reset(&mut self, map: &CompiledMap, places: Vec<(Name, Value)>) {
        self.outcomes.clear();
        self.outcomes.resize(map.values.len(), Outcome::None);
        self.places = places;
        let is_same = |((place, _), name): (&(Name, Value), &Name)| place.is(name);
        if self.places.len() != map.values.len() || !self.places.iter().zip(map.names()).all(is_same) {
            self.places.clear();
            self.places
                .extend(map.names().map(|name| (name.clone(), Value::Int(0))));
        }
    }

    pub fn take(&mut self, map: &CompiledMap, request: &ReadRequest, registers: &Registers) {
        decode(map, request, registers.answer(), &mut |index, value| {
            if let (Some(outcome), Some(place)) = (self.outcomes.get_mut(index), self.places.get_mut(index)) {
                *outcome = match value {
                    Ok(value) => {
                        place.1 = value;
                        Outcome::Value
                    }
                    Err(bad) => Outcome::Bad(bad),
                };
            }
        });
    }

    /// Those were asked for and refused. What another request read stays.
    pub fn refuse(&mut self, values: &[usize], cause: &Cause) {
        for &index in values {
            if let Some(outcome @ (Outcome::None | Outcome::Missing(_))) = self.outcomes.get_mut(index) {
                *outcome = Outcome::Missing(cause.clone());
            }
        }
    }

    /// The reason of a value that was not asked for.
    pub fn explain(&mut self, index: usize, cause: &Cause) {
        if let Some(outcome @ Outcome::None) = self.outcomes.get_mut(index) {
            *outcome = Outcome::Missing(cause.clone());
        }
    }

    /// Fills a reading. `rest` is the reason of what has no result.
    pub fn reading(&mut self, rest: &Cause, mut reading: Reading) -> Reading {
        reading.values = std::mem::take(&mut self.places);
        let mut outcomes = self.outcomes.iter();
        if !outcomes.all(|outcome| *outcome == Outcome::Value) {
            let mut outcomes = self.outcomes.iter();
            reading.values.retain(|(name, _)| {
                // The reason stands at every value, so that a record is bounded only if it is.
                let reason = match outcomes.next() {
                    Some(Outcome::Value) => return true,
                    Some(Outcome::Bad(bad)) => bad.to_string(),
                    Some(Outcome::Missing(cause)) => shortened(cause),
                    Some(Outcome::None) | None => shortened(rest),
                };
                reading.bad.push((name.clone(), reason));
                false
            });
        }
        reading.quality = match (reading.values.is_empty(), reading.bad.is_empty()) {
            (_, true) => Quality::Good,
            (false, false) => Quality::Partial,
            (true, false) => Quality::Failed,
        };
        reading
    }
}

fn shortened(reason: &str) -> String {
    reason.chars().take(REASON_LENGTH).collect()
}
