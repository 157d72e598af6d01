//! What a poll has read so far, value by value; and the reading it becomes.

use std::collections::BTreeMap;

use corrente_modbus::{BadValue, CompiledMap, ReadRequest, decode};
use corrente_record::{Name, Quality, Reading, Value};

use crate::{client::Registers, learned::Cause};

/// The longest reason in a record, in characters.
const REASON_LENGTH: usize = 120;

/// What came of one value. A byte each: in nearly every poll all of them are in their places.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Outcome {
    /// Nothing yet.
    None,
    /// It is in its place.
    Value,
    /// It is not, and why is written down.
    Not,
}

/// Why a value is not in its place.
#[derive(Clone, Debug, PartialEq)]
enum Why {
    /// It was read, and is none.
    Bad(BadValue),
    /// It was not read.
    Missing(Cause),
}

/// What came of all values, by their indices in the map.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Results {
    outcomes: Vec<Outcome>,
    why: BTreeMap<usize, Why>,
    /// A place for each value beside its name. A poll that reads all of them leaves them as they are.
    places: Vec<(Name, Value)>,
}

impl Results {
    /// Begins anew. `places` may be those of an earlier reading: from poll to poll the names are the same ones.
    pub fn reset(&mut self, map: &CompiledMap, places: Vec<(Name, Value)>) {
        self.outcomes.clear();
        self.outcomes.resize(map.values.len(), Outcome::None);
        self.why.clear();
        self.places = places;
        let is_same = |((place, _), name): (&(Name, Value), &Name)| place.is(name);
        if self.places.len() != map.values.len() || !self.places.iter().zip(map.names()).all(is_same) {
            self.places.clear();
            self.places
                .extend(map.names().map(|name| (name.clone(), Value::Int(0))));
        }
    }

    pub fn take(&mut self, map: &CompiledMap, request: &ReadRequest, registers: &Registers) {
        let Self {
            outcomes,
            why,
            places,
        } = self;
        decode(map, request, registers.answer(), &mut |index, value| {
            if let (Some(outcome), Some(place)) = (outcomes.get_mut(index), places.get_mut(index)) {
                *outcome = match value {
                    Ok(value) => {
                        place.1 = value;
                        Outcome::Value
                    }
                    Err(bad) => {
                        why.insert(index, Why::Bad(bad));
                        Outcome::Not
                    }
                };
            }
        });
    }

    /// Those were asked for and refused. What another request read stays.
    pub fn refuse(&mut self, values: &[usize], cause: &Cause) {
        for &index in values {
            let is_open = match self.outcomes.get(index) {
                Some(Outcome::None) => true,
                Some(Outcome::Not) => matches!(self.why.get(&index), Some(Why::Missing(_))),
                Some(Outcome::Value) | None => false,
            };
            if is_open {
                self.missing(index, cause);
            }
        }
    }

    /// The reason of a value that was not asked for.
    pub fn explain(&mut self, index: usize, cause: &Cause) {
        if self.outcomes.get(index) == Some(&Outcome::None) {
            self.missing(index, cause);
        }
    }

    fn missing(&mut self, index: usize, cause: &Cause) {
        if let Some(outcome) = self.outcomes.get_mut(index) {
            *outcome = Outcome::Not;
            self.why.insert(index, Why::Missing(cause.clone()));
        }
    }

    /// Fills a reading. `rest` is the reason of what has no result.
    pub fn reading(&mut self, rest: &Cause, mut reading: Reading) -> Reading {
        reading.values = std::mem::take(&mut self.places);
        if self.outcomes.iter().any(|outcome| *outcome != Outcome::Value) {
            let mut outcomes = self.outcomes.iter().enumerate();
            reading.values.retain(|(name, _)| {
                // The reason stands at every value, so that a record is bounded only if it is.
                let reason = match outcomes.next() {
                    Some((_, Outcome::Value)) => return true,
                    Some((index, Outcome::Not)) => match self.why.get(&index) {
                        Some(Why::Bad(bad)) => bad.to_string(),
                        Some(Why::Missing(cause)) => shortened(cause),
                        None => shortened(rest),
                    },
                    Some((_, Outcome::None)) | None => shortened(rest),
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
