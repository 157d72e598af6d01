//! What a poll has read so far, value by value; and the reading it becomes.

use std::sync::Arc;

use corrente_modbus::{BadValue, CompiledMap, ReadRequest, decode};
use corrente_record::{Quality, Reading, Value};

use crate::{client::Registers, learned::Cause};

/// The longest reason in a record, in characters.
const REASON_LENGTH: usize = 120;

/// What came of one value.
#[derive(Clone, Debug, PartialEq)]
enum Outcome {
    /// Nothing yet.
    None,
    Value(Value),
    /// It was read, and is none.
    Bad(BadValue),
    /// It was not read.
    Missing(Cause),
}

/// What came of all values, by their indices in the map.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Results(Vec<Outcome>);

impl Results {
    pub fn reset(&mut self, values: usize) {
        self.0.clear();
        self.0.resize(values, Outcome::None);
    }

    pub fn take(&mut self, map: &CompiledMap, request: &ReadRequest, registers: &Registers) {
        decode(map, request, registers.answer(), &mut |index, value| {
            if let Some(result) = self.0.get_mut(index) {
                *result = match value {
                    Ok(value) => Outcome::Value(value),
                    Err(bad) => Outcome::Bad(bad),
                };
            }
        });
    }

    /// Those were asked for and refused. What another request read stays.
    pub fn refuse(&mut self, values: &[usize], cause: &Cause) {
        for &index in values {
            if let Some(result @ (Outcome::None | Outcome::Missing(_))) = self.0.get_mut(index) {
                *result = Outcome::Missing(cause.clone());
            }
        }
    }

    /// The reason of a value that was not asked for.
    pub fn explain(&mut self, index: usize, cause: &Cause) {
        if let Some(result @ Outcome::None) = self.0.get_mut(index) {
            *result = Outcome::Missing(cause.clone());
        }
    }

    /// Fills a reading, whose values may be those of an earlier one: from poll to poll the names are the same ones,
    /// and need not be counted anew. `rest` is the reason of what has no result.
    pub fn reading(&mut self, map: &CompiledMap, rest: &Cause, mut reading: Reading) -> Reading {
        let mut values = 0;
        reading
            .values
            .reserve_exact(map.values.len().saturating_sub(reading.values.len()));
        for (value, result) in map.values.iter().zip(&mut self.0) {
            // The reason stands at every value, so that a record is bounded only if it is.
            let reason = match std::mem::replace(result, Outcome::None) {
                Outcome::Value(number) => {
                    match reading.values.get_mut(values) {
                        Some(place) if Arc::ptr_eq(&place.0, &value.name) => place.1 = number,
                        Some(place) => *place = (value.name.clone(), number),
                        None => reading.values.push((value.name.clone(), number)),
                    }
                    values += 1;
                    continue;
                }
                Outcome::Bad(bad) => bad.to_string(),
                Outcome::Missing(cause) => shortened(&cause),
                Outcome::None => shortened(rest),
            };
            reading.bad.push((value.name.clone(), reason));
        }
        reading.values.truncate(values);
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
