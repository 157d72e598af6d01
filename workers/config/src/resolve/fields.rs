//! What is known of the fields of a pipeline's records: their types, units and counters, as the profiles behind the topics
//! declare them, and as each transform leaves them.

use std::collections::{BTreeMap, BTreeSet};

use corrente_crds::{
    MeterPollerSpec, MeterProfileSpec,
    pipeline::{Column, ColumnType},
    profile::{Kind, Register, ValueType},
};

use crate::{Problem, manifest::closest};

/// A metric or a label.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Field {
    /// The type of its column, where it is declared.
    pub column: Option<ColumnType>,
    /// The units that profiles declare for it.
    pub units: BTreeSet<String>,
    /// Whether a profile calls it a counter.
    pub counter: bool,
    /// Where it begins again at 0, by meter.
    pub rollover: BTreeMap<String, Option<f64>>,
}

/// The fields that records can have.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Fields {
    /// Those that are declared, by name.
    pub known: BTreeMap<String, Field>,
    /// Whether records may have others: where a topic has no MeterPoller behind it, anything may be in it.
    pub open: bool,
}

impl Fields {
    /// What MeterPollers (all that are behind the topics) and the pipeline's own columns declare. `columns` are the types
    /// that follow from the MeterPollers.
    pub fn gather(
        topics: &[String],
        pollers: &[&MeterPollerSpec],
        profiles: &BTreeMap<String, MeterProfileSpec>,
        columns: &BTreeMap<String, ColumnType>,
        own: &[Column],
    ) -> Self {
        let mut fields = Self {
            open: topics
                .iter()
                .any(|topic| pollers.iter().all(|poller| poller.output.kafka.topic != *topic)),
            ..Self::default()
        };
        for (name, column) in columns {
            fields.known.entry(name.clone()).or_default().column = Some(*column);
        }
        for column in own {
            fields.known.entry(column.name.clone()).or_default().column = Some(column.column_type);
        }
        for poller in pollers {
            for meter in poller.endpoints.iter().flat_map(|endpoint| &endpoint.meters) {
                let map = match (&meter.profile, &meter.register_map) {
                    (Some(name), _) => profiles.get(name).map(|profile| &profile.map),
                    (None, Some(name)) => poller
                        .register_maps
                        .iter()
                        .find(|m| m.name == *name)
                        .map(|m| &m.map),
                    (None, None) => None,
                };
                let registers = map.iter().flat_map(|map| &map.registers);
                for register in
                    registers.filter(|r| meter.metrics.is_empty() || meter.metrics.contains(&r.name))
                {
                    let field = fields.known.entry(register.name.clone()).or_default();
                    field.units.extend(register.unit.clone());
                    if register.kind == Kind::Counter {
                        field.counter = true;
                        field.rollover.insert(meter.name.clone(), rollover(register));
                    }
                }
            }
        }
        fields
    }

    /// Complains of a name that no record can have.
    pub fn check(&self, name: &str, path: &str, problems: &mut Vec<Problem>) -> bool {
        if self.open || self.known.contains_key(name) {
            return true;
        }
        let names: Vec<&str> = self.known.keys().map(String::as_str).collect();
        let hint = closest(name, &names).map_or_else(
            || "declare it under spec.columns if another producer writes it".to_owned(),
            |near| {
                format!(
                    "did you mean \"{near}\"? If another producer writes it, declare it under spec.columns"
                )
            },
        );
        let message = format!("no MeterPoller behind the topics has the metric \"{name}\" here: {hint}");
        problems.push(Problem::new(path, message));
        false
    }

    /// Complains of a name that no record can have, or that is text.
    pub fn check_number(&self, name: &str, path: &str, problems: &mut Vec<Problem>) -> bool {
        if !self.check(name, path, problems) {
            return false;
        }
        let text = self
            .known
            .get(name)
            .is_some_and(|field| field.column == Some(ColumnType::Text));
        if text {
            let message = format!("\"{name}\" is text, and this is for numbers: name another metric");
            problems.push(Problem::new(path, message));
        }
        !text
    }

    /// The types of the columns.
    pub fn columns(&self) -> BTreeMap<String, ColumnType> {
        self.known
            .iter()
            .filter_map(|(name, field)| Some((name.clone(), field.column?)))
            .collect()
    }
}

/// Where a counter begins again at 0: where it says so, or where an unsigned register is full. A signed one or a float is
/// not expected to be used up, and with a scale factor of its own it is not known.
fn rollover(register: &Register) -> Option<f64> {
    let full = match register.value_type {
        ValueType::U16 => 65_536.0,
        ValueType::U32 => 4_294_967_296.0,
        ValueType::U64 => 18_446_744_073_709_551_616.0,
        _ => return register.rollover,
    };
    let width = register
        .scale_from
        .is_none()
        .then(|| full * register.scale.unwrap_or(1.0).abs());
    register.rollover.or(width)
}
