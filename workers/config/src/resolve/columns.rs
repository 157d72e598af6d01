//! The types of columns, from declarations: never from a first value, which may be whole by chance.
//!
//! | declared | column |
//! |---|---|
//! | `f32`, `f64`, an integer with a fractional scale, an offset or a scale factor | `float8` |
//! | `u64`, unscaled or scaled by a whole number | `numeric` |
//! | any other integer, unscaled or scaled by a whole number | `bigint` |
//! | `bool` | `boolean` |
//! | `string`, and every label | `text` |
//!
//! Where two declarations of one name differ, the column takes the type that holds both: `bigint` and
//! `numeric` make `numeric`, either with `float8` makes `float8`, and whatever else differs makes `text`.

use std::collections::BTreeMap;

use corrente_crds::{
    MeterPollerSpec, MeterProfileSpec,
    pipeline::{Column, ColumnType},
    profile::RegisterMap,
};
use corrente_modbus::{CompiledMap, OutputType};

/// The columns that these MeterPollers declare, overridden by what the pipeline itself says.
pub(super) fn columns<'a>(
    pollers: impl Iterator<Item = &'a MeterPollerSpec>,
    profiles: &BTreeMap<String, MeterProfileSpec>,
    overrides: &[Column],
) -> BTreeMap<String, ColumnType> {
    let mut columns = BTreeMap::new();
    for spec in pollers {
        for meter in spec.endpoints.iter().flat_map(|endpoint| &endpoint.meters) {
            let map = match (&meter.profile, &meter.register_map) {
                (Some(name), _) => profiles.get(name).map(|profile| &profile.map),
                (None, Some(name)) => spec
                    .register_maps
                    .iter()
                    .find(|m| m.name == *name)
                    .map(|m| &m.map),
                (None, None) => None,
            };
            if let Some(map) = map {
                metrics(map, &meter.metrics, &mut columns);
            }
            for label in meter.labels.keys() {
                declare(&mut columns, label, ColumnType::Text);
            }
        }
    }
    for column in overrides {
        columns.insert(column.name.clone(), column.column_type);
    }
    columns
}

/// A map that does not compile is a problem of its MeterPoller, which is not polled: it declares nothing.
fn metrics(map: &RegisterMap, selected: &[String], columns: &mut BTreeMap<String, ColumnType>) {
    for value in CompiledMap::compile(map, selected)
        .into_iter()
        .flat_map(|map| map.values)
    {
        let column = match value.output() {
            OutputType::Bool => ColumnType::Boolean,
            OutputType::Int => ColumnType::Bigint,
            OutputType::UInt => ColumnType::Numeric,
            OutputType::Float => ColumnType::Float8,
            OutputType::Text => ColumnType::Text,
        };
        declare(columns, &value.name, column);
    }
}

fn declare(columns: &mut BTreeMap<String, ColumnType>, name: &str, column: ColumnType) {
    match columns.get_mut(name) {
        Some(before) => *before = wider(*before, column),
        None => {
            columns.insert(name.to_owned(), column);
        }
    }
}

/// The type that holds the values of both.
fn wider(a: ColumnType, b: ColumnType) -> ColumnType {
    use ColumnType::{Bigint, Float8, Numeric, Text};
    match (a, b) {
        _ if a == b => a,
        (Bigint, Numeric) | (Numeric, Bigint) => Numeric,
        (Float8, Bigint | Numeric) | (Bigint | Numeric, Float8) => Float8,
        _ => Text,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wider_is_commutative_associative_and_idempotent() {
        use ColumnType::{Bigint, Boolean, Float8, Numeric, Text};
        let all = [Bigint, Boolean, Float8, Numeric, Text];
        for a in all {
            assert_eq!(wider(a, a), a);
            assert_eq!(wider(a, Text), Text);
            for b in all {
                assert_eq!(wider(a, b), wider(b, a));
                for c in all {
                    assert_eq!(wider(wider(a, b), c), wider(a, wider(b, c)));
                }
            }
        }
        assert_eq!(wider(Bigint, Numeric), Numeric);
        assert_eq!(wider(Numeric, Float8), Float8);
        assert_eq!(wider(Boolean, Bigint), Text);
    }
}
