//! The transforms of a pipeline, checked against what is known of its records, and what they make of it.

use std::collections::BTreeSet;

use corrente_crds::{
    pipeline::ColumnType,
    transform::{Convert, Filter, Transform},
};

use super::fields::{Field, Fields};
use crate::{Problem, expression::Expression, transform::Step, units};

/// What the worker is told; `fields` is left as the last transform leaves the records.
pub(super) fn transforms(
    transforms: &[Transform],
    fields: &mut Fields,
    problems: &mut Vec<Problem>,
) -> Vec<Step> {
    let mut steps = vec![];
    for (at, transform) in transforms.iter().enumerate() {
        let path = format!("spec.transforms[{at}]");
        let step = match (
            &transform.rename,
            &transform.filter,
            &transform.convert,
            &transform.derive,
        ) {
            (Some(rename), None, None, None) => {
                fields.check(&rename.from, &format!("{path}.rename.from"), problems);
                if let Some(field) = fields.known.remove(&rename.from) {
                    fields.known.insert(rename.to.clone(), field);
                } else {
                    fields.known.entry(rename.to.clone()).or_default();
                }
                Some(Step::Rename {
                    from: rename.from.clone(),
                    to: rename.to.clone(),
                })
            }
            (None, Some(filter), None, None) => {
                self::filter(filter, fields, &format!("{path}.filter"), problems)
            }
            (None, None, Some(convert), None) => {
                self::convert(convert, fields, &format!("{path}.convert"), problems)
            }
            (None, None, None, Some(derive)) => {
                let path = format!("{path}.derive.expression");
                let expression = expression(&derive.expression, fields, &path, problems);
                let field = Field {
                    column: Some(ColumnType::Float8),
                    units: derive.unit.clone().into_iter().collect(),
                    ..Field::default()
                };
                fields.known.insert(derive.metric.clone(), field);
                expression.map(|expression| Step::Derive {
                    metric: derive.metric.clone(),
                    expression,
                })
            }
            _ => {
                let message =
                    "a transform does one thing: set exactly one of rename, filter, convert and derive";
                problems.push(Problem::new(path, message));
                None
            }
        };
        steps.extend(step);
    }
    steps
}

fn filter(filter: &Filter, fields: &mut Fields, path: &str, problems: &mut Vec<Problem>) -> Option<Step> {
    let check_all = |fields: &Fields, names: &[String], what: &str, problems: &mut Vec<Problem>| {
        for (at, name) in names.iter().enumerate() {
            fields.check(name, &format!("{path}.{what}[{at}]"), problems);
        }
    };
    match filter {
        Filter {
            meters,
            keep,
            remove,
            condition: None,
        } if !meters.is_empty() && keep.is_empty() && remove.is_empty() => Some(Step::Meters(meters.clone())),
        Filter {
            meters,
            keep,
            remove,
            condition: None,
        } if meters.is_empty() && !keep.is_empty() && remove.is_empty() => {
            check_all(fields, keep, "keep", problems);
            fields.known.retain(|name, _| keep.contains(name));
            if fields.open {
                for name in keep {
                    fields.known.entry(name.clone()).or_default();
                }
                fields.open = false;
            }
            Some(Step::Keep(keep.clone()))
        }
        Filter {
            meters,
            keep,
            remove,
            condition: None,
        } if meters.is_empty() && keep.is_empty() && !remove.is_empty() => {
            check_all(fields, remove, "remove", problems);
            fields.known.retain(|name, _| !remove.contains(name));
            Some(Step::Remove(remove.clone()))
        }
        Filter {
            meters,
            keep,
            remove,
            condition: Some(condition),
        } if meters.is_empty() && keep.is_empty() && remove.is_empty() => {
            expression(condition, fields, &format!("{path}.where"), problems).map(Step::Where)
        }
        _ => {
            let message = "a filter does one thing: set exactly one of meters, keep, remove and where";
            problems.push(Problem::new(path, message));
            None
        }
    }
}

fn convert(convert: &Convert, fields: &mut Fields, path: &str, problems: &mut Vec<Problem>) -> Option<Step> {
    let metric = &convert.metric;
    if !fields.check_number(metric, &format!("{path}.metric"), problems) {
        return None;
    }
    let field = fields.known.entry(metric.clone()).or_default();
    let declared: Vec<&str> = field.units.iter().map(String::as_str).collect();
    let from = match (&convert.from, declared.as_slice()) {
        (Some(from), []) => from.clone(),
        (Some(from), declared) if declared.iter().all(|unit| unit == from) => from.clone(),
        (None, [unit]) => (*unit).to_owned(),
        (None, []) => {
            let message = format!("no profile behind the topics says what unit \"{metric}\" has: write from");
            problems.push(Problem::new(path, message));
            return None;
        }
        (_, declared) => {
            let message = format!(
                "the profiles behind the topics declare \"{metric}\" in {}, which no record tells: let each meter's profile \
                 scale it to one unit, or make a pipeline for each",
                declared.join(" and ")
            );
            problems.push(Problem::new(path, message));
            return None;
        }
    };
    let conversion = match units::conversion(&from, &convert.to) {
        Ok(conversion) => conversion,
        Err(message) => {
            problems.push(Problem::new(path, message));
            return None;
        }
    };
    field.units = BTreeSet::from([convert.to.clone()]);
    field.column = Some(ColumnType::Float8);
    for rollover in field.rollover.values_mut().flatten() {
        *rollover *= conversion.factor;
    }
    Some(Step::Convert {
        metric: metric.clone(),
        factor: conversion.factor,
        offset: conversion.offset,
    })
}

fn expression(text: &str, fields: &Fields, path: &str, problems: &mut Vec<Problem>) -> Option<Expression> {
    let expression =
        Expression::parse(text).map_err(|error| problems.push(Problem::new(path, error.to_string())));
    let expression = expression.ok()?;
    for name in expression.names() {
        fields.check_number(name, path, problems);
    }
    Some(expression)
}
