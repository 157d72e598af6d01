//! What records of a register map look like to a format with a schema: its fields, in a fixed order.
//!
//! There is one shape per register map, from its declaration, and not from the values that came: all its metrics
//! and the labels of its meters, each of them optional. So a subset of metrics, or a meter without a label, needs
//! no schema of its own, and an edited map makes a schema that old readers and new ones get along with.
//!
//! A record may wait in the spool while its meter or one of its metrics leaves the configuration. It then has a
//! shape of its own: the map's, where the meter is still known, and after it the fields that are not, typed by
//! their values, numbers as double precision.

use std::{
    collections::{BTreeSet, HashMap},
    fmt,
};

use corrente_config::{PollerConfig, poller::MapKey};
use corrente_modbus::{CompiledMap, OutputType};
use corrente_record::Value;

/// What every name begins with.
const NAMESPACE: &str = "dev.corrente";

/// The type of a field.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Kind {
    /// A bit.
    Bool,
    /// A signed whole number of 64 bits.
    Int,
    /// An unsigned whole number of 64 bits.
    UInt,
    /// A number with a fraction.
    Float,
    /// Text; every label is.
    Text,
}

impl Kind {
    fn declared(output: OutputType) -> Self {
        match output {
            OutputType::Bool => Self::Bool,
            OutputType::Int => Self::Int,
            OutputType::UInt => Self::UInt,
            OutputType::Float => Self::Float,
            OutputType::Text => Self::Text,
        }
    }

    /// What an undeclared value is taken for. A number that is whole may be so by chance.
    fn of(value: &Value) -> Self {
        match value {
            Value::Bool(_) => Self::Bool,
            Value::Int(_) | Value::UInt(_) | Value::Float(_) => Self::Float,
            Value::Text(_) => Self::Text,
        }
    }

    /// Whether a field of this type can hold the value as it is.
    fn holds(self, value: &Value) -> bool {
        match (self, value) {
            (Self::Bool, Value::Bool(_)) | (Self::Text, Value::Text(_)) | (Self::Int, Value::Int(_)) => true,
            (Self::UInt, Value::Int(number)) => *number >= 0,
            (Self::UInt, Value::UInt(_)) => true,
            (Self::Float, value) => value.as_f64().is_some(),
            _ => false,
        }
    }
}

/// The name of a record type: dots between its parts, each of letters, digits and underscores.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct RecordName {
    /// All but the last part.
    pub namespace: String,
    /// The last part.
    pub name: String,
}

impl RecordName {
    /// The name for the records of meters that the configuration does not have.
    fn unknown() -> Self {
        Self {
            namespace: NAMESPACE.to_owned(),
            name: "record".to_owned(),
        }
    }

    /// The name for a register map: a profile's is the same wherever it is used, an inline map is its
    /// MeterPoller's own.
    fn of(key: &str, config: &PollerConfig) -> Self {
        match key.split_once('/') {
            Some(("profile", profile)) => Self {
                namespace: NAMESPACE.to_owned(),
                name: legal(profile),
            },
            _ => Self {
                namespace: format!("{NAMESPACE}.{}.{}", legal(&config.namespace), legal(&config.name)),
                name: legal(key.rsplit('/').next().unwrap_or(key)),
            },
        }
    }
}

impl fmt::Display for RecordName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.namespace, self.name)
    }
}

/// A name as Avro and Protobuf allow it: everything else becomes an underscore, and none begins with a digit.
fn legal(name: &str) -> String {
    let mut legal: String = name
        .chars()
        .map(|c| if c.is_ascii_alphanumeric() { c } else { '_' })
        .collect();
    if legal.starts_with(|c: char| c.is_ascii_digit()) {
        legal.insert(0, '_');
    }
    legal
}

/// The fields of a record type, beside the record's own.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Shape {
    /// Its name.
    pub name: RecordName,
    fields: Vec<(String, Kind)>,
    index: HashMap<String, usize>,
}

impl Shape {
    /// A shape without fields.
    fn empty(name: RecordName) -> Self {
        Self {
            name,
            fields: Vec::new(),
            index: HashMap::new(),
        }
    }

    /// Labels and metrics, in the order of the schema.
    #[must_use]
    pub fn fields(&self) -> &[(String, Kind)] {
        &self.fields
    }

    /// Where a field is in [`Shape::fields`].
    #[must_use]
    pub fn position(&self, name: &str) -> Option<usize> {
        self.index.get(name).copied()
    }

    fn put(&mut self, name: &str, kind: Kind) {
        match self.position(name) {
            Some(at) => self.fields[at].1 = kind,
            None => {
                self.index.insert(name.to_owned(), self.fields.len());
                self.fields.push((name.to_owned(), kind));
            }
        }
    }

    /// What these values need that the shape does not have; empty where it holds them all.
    #[must_use]
    pub fn lacks(&self, values: &[(String, Value)]) -> Vec<(String, Kind)> {
        let holds = |name: &String, value: &Value| {
            self.position(name)
                .and_then(|at| self.fields.get(at))
                .is_some_and(|(_, kind)| kind.holds(value))
        };
        values
            .iter()
            .filter(|(name, value)| !holds(name, value))
            .map(|(name, value)| (name.clone(), Kind::of(value)))
            .collect()
    }

    /// The shape with these fields too.
    #[must_use]
    pub fn with(&self, fields: &[(String, Kind)]) -> Self {
        let mut shape = self.clone();
        for (name, kind) in fields {
            shape.put(name, *kind);
        }
        shape
    }
}

/// The shapes of a configuration: first the one for meters that it does not have, which has no fields, then one
/// per register map; and for each meter the number of its map's.
#[must_use]
pub fn shapes(config: &PollerConfig) -> (Vec<Shape>, HashMap<String, usize>) {
    let mut shapes = vec![Shape::empty(RecordName::unknown())];
    let mut meters = HashMap::new();
    for (key, map) in &config.maps {
        let of_this_map = || {
            config
                .endpoints
                .iter()
                .flat_map(|endpoint| &endpoint.meters)
                .filter(|meter| MapKey::of(meter).as_ref() == Some(key))
        };
        // A map that does not compile is not polled, and its meters say so.
        let Ok(compiled) = CompiledMap::compile(map, &[]) else {
            continue;
        };
        let mut shape = Shape::empty(RecordName::of(key, config));
        let labels: BTreeSet<&String> = of_this_map().flat_map(|meter| meter.labels.keys()).collect();
        for label in labels {
            shape.put(label, Kind::Text);
        }
        for value in &compiled.values {
            shape.put(&value.name, Kind::declared(value.output()));
        }
        meters.extend(of_this_map().map(|meter| (meter.name.clone(), shapes.len())));
        shapes.push(shape);
    }
    (shapes, meters)
}

#[cfg(test)]
pub(super) fn shape_of(name: &str, fields: &[(&str, Kind)]) -> Shape {
    let mut shape = Shape::empty(RecordName {
        namespace: NAMESPACE.to_owned(),
        name: name.to_owned(),
    });
    for (name, kind) in fields {
        shape.put(name, *kind);
    }
    shape
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_legal_everywhere() {
        for (name, legal_name) in [
            ("iskra-mc3", "iskra_mc3"),
            ("abb.b23", "abb_b23"),
            ("3phase", "_3phase"),
        ] {
            assert_eq!(legal(name), legal_name);
        }
    }

    #[test]
    fn a_type_holds_what_loses_nothing_in_it() {
        for (kind, value, holds) in [
            (Kind::Float, Value::Int(229), true),
            (Kind::Float, Value::Bool(true), false),
            (Kind::Int, Value::UInt(u64::MAX), false),
            (Kind::Int, Value::Float(1.5), false),
            (Kind::UInt, Value::Int(7), true),
            (Kind::UInt, Value::Int(-7), false),
            (Kind::Text, Value::Int(7), false),
        ] {
            assert_eq!(kind.holds(&value), holds, "{kind:?} {value}");
        }
    }

    #[test]
    fn what_a_shape_lacks_is_typed_by_its_value() {
        let shape = shape_of("m", &[("site", Kind::Text), ("closed", Kind::Bool)]);
        let values = [
            ("site".to_owned(), Value::Text("north".to_owned())),
            ("closed".to_owned(), Value::Int(1)),
            ("gone".to_owned(), Value::Int(3)),
        ];
        let lacks = shape.lacks(&values);
        assert_eq!(
            lacks,
            [
                ("closed".to_owned(), Kind::Float),
                ("gone".to_owned(), Kind::Float)
            ]
        );
        let wider = shape.with(&lacks);
        assert_eq!(wider.lacks(&values), []);
        assert_eq!(
            wider
                .fields()
                .iter()
                .map(|(name, _)| name.as_str())
                .collect::<Vec<_>>(),
            ["site", "closed", "gone"]
        );
    }
}
