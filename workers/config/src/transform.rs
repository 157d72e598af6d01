//! The transforms of a pipeline, as its worker is told them.

use serde::{Deserialize, Serialize};

use crate::expression::Expression;

/// One step, on the fields of a record as the step before left them.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Step {
    /// Gives a field another name.
    Rename {
        /// The name it has.
        from: String,
        /// The name it gets.
        to: String,
    },
    /// Records of other meters are dropped.
    Meters(Vec<String>),
    /// Other fields are left out.
    Keep(Vec<String>),
    /// These fields are left out.
    Remove(Vec<String>),
    /// Records for which the expression is 0 are dropped.
    Where(Expression),
    /// A metric becomes `value * factor + offset`.
    Convert {
        /// The metric.
        metric: String,
        /// What it is multiplied with.
        factor: f64,
        /// What is added after that.
        offset: f64,
    },
    /// A new metric.
    Derive {
        /// Its name.
        metric: String,
        /// How it is calculated.
        expression: Expression,
    },
}

/// Whether a meter's name is of a pattern, in which `*` stands for any characters.
#[must_use]
pub fn matches(pattern: &str, name: &str) -> bool {
    let Some((head, rest)) = pattern.split_once('*') else {
        return pattern == name;
    };
    let Some(mut name) = name.strip_prefix(head) else {
        return false;
    };
    let Some((middle, tail)) = rest.rsplit_once('*') else {
        return name.ends_with(rest);
    };
    // The first place of each piece is as good as any later one.
    for piece in middle.split('*') {
        let Some(at) = name.find(piece) else {
            return false;
        };
        name = name.get(at + piece.len()..).unwrap_or_default();
    }
    name.ends_with(tail)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_star_stands_for_any_characters() {
        for (pattern, name, expected) in [
            ("feeder-1", "feeder-1", true),
            ("feeder-1", "feeder-12", false),
            ("feeder-*", "feeder-12", true),
            ("feeder-*", "feeder-", true),
            ("*-main", "hall-3-main", true),
            ("*", "", true),
            ("a*a", "a", false),
            ("a*b*c", "aXbYbZc", true),
            ("a*b*c", "acb", false),
            ("*b*b*", "ab", false),
            ("*b*b*", "abcb", true),
            ("a**c", "ac", true),
        ] {
            assert_eq!(matches(pattern, name), expected, "{pattern} {name}");
        }
    }
}
