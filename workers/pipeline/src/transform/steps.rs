//! The transformations of a TelemetryPipeline: rename, filter, convert, derive.
//!
//! Each looks at one record, as the one before left it, and at nothing else, so that it does not matter when and in which
//! company a record comes. No record is set aside here: what is no number is left as it is, for its column to refuse, and a
//! result that is no finite number is left out and named in `bad`.

use std::borrow::Cow;

use corrente_config::{
    expression::Expression,
    transform::{self, matches},
};
use corrente_record::{ValueRef, View};

use super::{Step, Verdict};

/// Most metrics of an expression whose values need no allocation.
const FEW: usize = 16;

/// A step of the configuration.
#[derive(Clone, Debug)]
pub struct Configured(pub transform::Step);

impl Step for Configured {
    fn apply<'a>(&'a self, view: &mut View<'a>) -> Verdict {
        match &self.0 {
            transform::Step::Rename { from, to } => rename(view, from, to),
            transform::Step::Meters(patterns) => {
                if !patterns.iter().any(|pattern| matches(pattern, &view.meter)) {
                    return Verdict::Drop;
                }
            }
            transform::Step::Keep(names) => {
                view.fields
                    .retain(|(name, _)| names.iter().any(|keep| keep == name));
            }
            transform::Step::Remove(names) => {
                view.fields
                    .retain(|(name, _)| !names.iter().any(|remove| remove == name));
            }
            // What cannot be told of a record is not held against it.
            transform::Step::Where(expression) => {
                if eval(expression, view) == Some(Some(0.0)) {
                    return Verdict::Drop;
                }
            }
            transform::Step::Convert {
                metric,
                factor,
                offset,
            } => {
                for (_, value) in view.fields.iter_mut().filter(|(name, _)| name == metric) {
                    if let Some(number) = value.as_f64() {
                        *value = ValueRef::Float(number * factor + offset);
                    }
                }
            }
            transform::Step::Derive { metric, expression } => {
                let result = eval(expression, view);
                view.fields.retain(|(name, _)| name != metric);
                match result {
                    Some(Some(value)) => {
                        view.fields.push((Cow::Borrowed(metric), ValueRef::Float(value)));
                    }
                    Some(None) => note(view, metric, "no finite number"),
                    None => {}
                }
            }
        }
        Verdict::Keep
    }
}

/// The value of an expression; `None` where the record lacks one of its metrics, `Some(None)` where it is no finite number.
fn eval(expression: &Expression, view: &View<'_>) -> Option<Option<f64>> {
    let names = expression.names();
    let number = |name: &String| match view.field(name)? {
        ValueRef::Bool(bit) => Some(f64::from(u8::from(*bit))),
        value => value.as_f64(),
    };
    if names.len() > FEW {
        let values: Option<Vec<f64>> = names.iter().map(number).collect();
        return Some(expression.eval(&values?));
    }
    let mut values = [0.0; FEW];
    for (place, name) in values.iter_mut().zip(names) {
        *place = number(name)?;
    }
    Some(expression.eval(values.get(..names.len())?))
}

fn rename<'a>(view: &mut View<'a>, from: &str, to: &'a str) {
    if view.fields.iter().any(|(name, _)| name == from) {
        view.fields.retain(|(name, _)| name != to);
        for (name, _) in &mut view.fields {
            if name == from {
                *name = Cow::Borrowed(to);
            }
        }
    }
    // Why a metric is missing is said under its new name too. Few records say such a thing.
    if let Some(mut object) = bad(view)
        && let Some(reason) = object.remove(from)
    {
        object.insert(to.to_owned(), reason);
        view.bad = Some(Cow::Owned(serde_json::Value::Object(object).to_string()));
    }
}

/// Why metrics are missing, where the record says so.
fn bad(view: &View<'_>) -> Option<serde_json::Map<String, serde_json::Value>> {
    serde_json::from_str(view.bad.as_deref()?).ok()
}

/// Adds why a metric is missing.
fn note(view: &mut View<'_>, metric: &str, reason: &str) {
    let mut object = bad(view).unwrap_or_default();
    object.insert(metric.to_owned(), reason.into());
    view.bad = Some(Cow::Owned(serde_json::Value::Object(object).to_string()));
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::transform::Chain;

    /// What becomes of a record's fields, as JSON, in the order of their names.
    fn apply(steps: &[&str], fields: &str) -> Option<String> {
        let steps = steps
            .iter()
            .map(|json| Box::new(Configured(serde_json::from_str(json).unwrap())) as Box<dyn Step>);
        let chain = Chain::new(steps.collect());
        let json = format!(r#"{{"ts":"2026-11-20T22:20:00Z","meter":"feeder-12",{fields}}}"#);
        let mut view = View::parse(json.as_bytes()).unwrap();
        (chain.apply(&mut view) == Verdict::Keep).then(|| {
            let mut shown: Vec<String> = view
                .fields
                .iter()
                .map(|(name, value)| format!("{name}={value}"))
                .collect();
            shown.sort();
            shown.extend(view.bad.map(|bad| format!("bad={bad}")));
            shown.join(" ")
        })
    }

    #[test]
    fn each_step_does_what_it_says() {
        let record = r#""p":1500,"q":-2.5,"on":true,"name":"x""#;
        for (steps, expected) in [
            (&[][..], Some("name=\"x\" on=true p=1500 q=-2.5")),
            (
                &[r#"{"rename":{"from":"p","to":"power"}}"#],
                Some("name=\"x\" on=true power=1500 q=-2.5"),
            ),
            (
                &[r#"{"rename":{"from":"p","to":"q"}}"#],
                Some("name=\"x\" on=true q=1500"),
            ),
            (
                &[r#"{"rename":{"from":"other","to":"q"}}"#],
                Some("name=\"x\" on=true p=1500 q=-2.5"),
            ),
            (
                &[r#"{"meters":["x","feeder-*"]}"#],
                Some("name=\"x\" on=true p=1500 q=-2.5"),
            ),
            (&[r#"{"meters":["feeder-1"]}"#], None),
            (&[r#"{"keep":["p","other"]}"#], Some("p=1500")),
            (&[r#"{"remove":["p","name"]}"#], Some("on=true q=-2.5")),
            (
                &[r#"{"where":"p > 1000 && on"}"#, r#"{"keep":["p"]}"#],
                Some("p=1500"),
            ),
            (&[r#"{"where":"p < 1000"}"#], None),
            (
                &[r#"{"where":"missing < 1000"}"#, r#"{"keep":["p"]}"#],
                Some("p=1500"),
            ),
            (
                &[
                    r#"{"convert":{"metric":"p","factor":0.001,"offset":1.0}}"#,
                    r#"{"keep":["p"]}"#,
                ],
                Some("p=2.5"),
            ),
            (
                &[
                    r#"{"convert":{"metric":"name","factor":2.0,"offset":0.0}}"#,
                    r#"{"keep":["name"]}"#,
                ],
                Some("name=\"x\""),
            ),
            (
                &[
                    r#"{"derive":{"metric":"s","expression":"sqrt(p*p + q*q)"}}"#,
                    r#"{"derive":{"metric":"p","expression":"p / 1000 * on"}}"#,
                    r#"{"keep":["p"]}"#,
                ],
                Some("p=1.5"),
            ),
            (
                &[
                    r#"{"derive":{"metric":"z","expression":"p + missing"}}"#,
                    r#"{"keep":["z"]}"#,
                ],
                Some(""),
            ),
            (
                &[
                    r#"{"derive":{"metric":"z","expression":"p + name"}}"#,
                    r#"{"keep":["z"]}"#,
                ],
                Some(""),
            ),
        ] {
            assert_eq!(apply(steps, record).as_deref(), expected, "{steps:?}");
        }
    }

    #[test]
    fn why_a_metric_is_missing_is_kept_and_added_to() {
        let steps = [
            r#"{"rename":{"from":"p","to":"power"}}"#,
            r#"{"derive":{"metric":"ratio","expression":"q / zero"}}"#,
            r#"{"keep":["ratio"]}"#,
        ];
        assert_eq!(
            apply(&steps, r#""q":1,"zero":0,"bad":{"p":"NaN"}"#).as_deref(),
            Some(r#"bad={"power":"NaN","ratio":"no finite number"}"#)
        );
        assert_eq!(
            apply(&steps[1..], r#""q":1,"zero":0"#).as_deref(),
            Some(r#"bad={"ratio":"no finite number"}"#)
        );
    }

    #[test]
    fn many_metrics_in_one_expression() {
        let names: Vec<String> = (0..40).map(|n| format!("m{n}")).collect();
        let fields: Vec<String> = names.iter().map(|name| format!(r#""{name}":2"#)).collect();
        let derive = format!(
            r#"{{"derive":{{"metric":"sum","expression":"{}"}}}}"#,
            names.join(" + ")
        );
        let shown = apply(&[&derive, r#"{"keep":["sum"]}"#], &fields.join(","));
        assert_eq!(shown.as_deref(), Some("sum=80"));
    }

    #[test]
    fn a_configuration_with_no_expression_is_not_read() {
        let error = serde_json::from_str::<transform::Step>(r#"{"where":"a +"}"#).unwrap_err();
        assert!(
            error.to_string().contains("\"a +\" is not an expression"),
            "{error}"
        );
    }
}
