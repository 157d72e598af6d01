//! What the schema check finds, as sentences that say what to change.

use jsonschema::{
    ValidationError,
    error::{TypeKind, ValidationErrorKind as Kind},
};
use serde_json::Value;

use crate::Problem;

/// What each pattern of the schemas asks for, in words.
const PATTERNS: &[(&str, &str)] = &[
    (
        "^[a-z][a-z0-9_]*$",
        "small letters, digits and underscores, beginning with a letter",
    ),
    (
        "^[a-z_][a-z0-9_]*$",
        "small letters, digits and underscores, not beginning with a digit",
    ),
    (
        "^[a-z0-9]([-a-z0-9]*[a-z0-9])?$",
        "small letters, digits and '-', beginning and ending with a letter or a digit",
    ),
    (
        "^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$",
        "small letters, digits, '-' and '.', beginning and ending with a letter or a digit",
    ),
    (
        "^[A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?$",
        "letters, digits, '-', '_' and '.', beginning and ending with a letter or a digit",
    ),
    (
        "^[a-z0-9]([a-z0-9_]*[a-z0-9])?$",
        "small letters, digits and underscores, beginning and ending with a letter or a digit",
    ),
    (
        "^[a-zA-Z]([-a-zA-Z0-9_]*[a-zA-Z0-9])?$",
        "letters, digits, '-' and '_', beginning with a letter and ending with a letter or a digit",
    ),
    ("^[a-zA-Z0-9._-]+$", "letters, digits, '.', '_' and '-'"),
    ("^[-._a-zA-Z0-9]+$", "letters, digits, '.', '_' and '-'"),
    (
        "^0x[0-9A-Fa-f]{1,16}$",
        "0x and up to 16 hexadecimal digits, such as 0x8000",
    ),
    (
        r"^[+-]?([0-9]+(\.[0-9]*)?|\.[0-9]+)([KMGTPE]i|[numkMGTPE]|[eE][+-]?[0-9]+)?$",
        "a quantity, such as 500m or 128Mi",
    ),
    (
        "^[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?$",
        "small letters, digits and '-', at most 63 of them",
    ),
    (
        r#"^[^"\\/\s][^"\\/]*$"#,
        "a name without quotation marks, slashes and backslashes, not beginning with a space",
    ),
    (
        r"^([^{}+#\s]|\{[a-z][a-z0-9_]*\})+$",
        "a name without spaces, '+' and '#', with fields of the record in braces, such as plant/{site}/{meter}",
    ),
];

/// What types are called elsewhere, and here.
const OTHER_NAMES: [(&str, &str); 14] = [
    ("uint16", "u16"),
    ("int16", "i16"),
    ("uint32", "u32"),
    ("int32", "i32"),
    ("uint64", "u64"),
    ("int64", "i64"),
    ("float", "f32"),
    ("float32", "f32"),
    ("float64", "f64"),
    ("double", "f64"),
    ("boolean", "bool"),
    ("bit", "bool"),
    ("text", "string"),
    ("ascii", "string"),
];

/// What one finding of the schema check says. `schema` is the whole schema it was checked against.
pub(super) fn problems(error: &ValidationError<'_>, schema: &Value) -> Vec<Problem> {
    let path = dotted(error.instance_path().as_str());
    let here = parent(schema, error.schema_path().as_str());
    let given = show(error.instance());
    let one = |message: String| vec![Problem::new(path.clone(), message)];
    match error.kind() {
        Kind::AdditionalProperties { unexpected } => unexpected
            .iter()
            .map(|field| Problem::new(join(&path, field), unknown_field(field, here)))
            .collect(),
        Kind::Required { property } => {
            let field = property.as_str().unwrap_or_default();
            vec![Problem::new(join(&path, field), missing(field, here))]
        }
        Kind::Type { kind } => one(wrong_type(error.instance(), kind, &given)),
        Kind::Enum { options } => one(none_of(error.instance(), options, &given)),
        Kind::Minimum { limit } => one(format!("{given} is less than {}: {}", show(limit), range(here))),
        Kind::Maximum { limit } => one(format!("{given} is more than {}: {}", show(limit), range(here))),
        Kind::MinLength { limit: 1 } => one("it is empty: write something".to_owned()),
        Kind::MinLength { limit } => one(format!("{given} is too short: write at least {limit} characters")),
        Kind::MaxLength { limit } => one(format!("{given} is too long: write at most {limit} characters")),
        Kind::MinItems { limit: 1 } | Kind::MinProperties { limit: 1 } => {
            one("the list is empty: write at least one entry".to_owned())
        }
        Kind::MinItems { limit } => one(format!("the list is too short: write at least {limit} entries")),
        Kind::MaxItems { limit } | Kind::MaxProperties { limit } => {
            one(format!("there are too many entries: write at most {limit}"))
        }
        Kind::Pattern { pattern } => one(format!(
            "{given} cannot be used here: write {}",
            in_words(pattern)
        )),
        // No schema of ours has another keyword; the library's own words are better than none.
        _ => one(error.to_string().lines().collect::<Vec<_>>().join(" ")),
    }
}

/// A pattern in words, or itself where there are none.
fn in_words(pattern: &str) -> String {
    PATTERNS.iter().find(|(known, _)| *known == pattern).map_or_else(
        || format!("what matches {pattern}"),
        |(_, words)| (*words).to_owned(),
    )
}

fn unknown_field(field: &str, here: Option<&Value>) -> String {
    let known: Vec<&str> = here
        .and_then(|schema| schema["properties"].as_object())
        .map(|fields| fields.keys().map(String::as_str).collect())
        .unwrap_or_default();
    match closest(field, &known) {
        Some(meant) => format!("unknown field `{field}`; did you mean `{meant}`?"),
        None if known.len() <= 20 => {
            format!(
                "unknown field `{field}`: remove it; there are {}",
                known.join(", ")
            )
        }
        None => format!("unknown field `{field}`: remove it"),
    }
}

fn missing(field: &str, here: Option<&Value>) -> String {
    let about = here
        .and_then(|schema| schema["properties"][field]["description"].as_str())
        .and_then(|text| text.split(['.', '\n', ':', '(']).next())
        .map(|sentence| format!(" ({})", sentence.trim_end()))
        .unwrap_or_default();
    format!("`{field}`{about} is missing: write it")
}

fn wrong_type(instance: &Value, kind: &TypeKind, given: &str) -> String {
    let wanted = match kind {
        TypeKind::Single(one) => one.to_string(),
        TypeKind::Multiple(_) => "integer or string".to_owned(),
    };
    let found = match instance {
        Value::Null => "nothing",
        Value::Bool(_) => "true or false",
        Value::Number(_) => "a number",
        Value::String(_) => "a text",
        Value::Array(_) => "a list",
        Value::Object(_) => "a map",
    };
    let what = if matches!(instance, Value::Array(_) | Value::Object(_) | Value::Null) {
        found.to_owned()
    } else {
        format!("{given} is {found}")
    };
    match wanted.as_str() {
        "string" if matches!(instance, Value::Bool(_) | Value::Number(_)) => {
            format!("{what}: write a text, in quotes: \"{given}\"")
        }
        "string" => format!("{what}: write a text"),
        "integer" if instance.as_str().is_some_and(|text| text.parse::<i64>().is_ok()) => {
            format!("{what}: write the number without quotes")
        }
        "integer" => format!("{what}: write a whole number"),
        "number" => format!("{what}: write a number"),
        "boolean" => format!("{what}: write true or false"),
        "array" => format!("{what}: write a list, each entry after a dash"),
        "object" => format!("{what}: write a map of fields"),
        _ => format!("{what}: write a number or a text"),
    }
}

fn none_of(instance: &Value, options: &Value, given: &str) -> String {
    let options: Vec<&str> = options
        .as_array()
        .map(|all| all.iter().filter_map(Value::as_str).collect())
        .unwrap_or_default();
    let all = options.join(", ");
    let word = instance.as_str().unwrap_or_default();
    let here = OTHER_NAMES
        .iter()
        .find(|(other, name)| other.eq_ignore_ascii_case(word) && options.contains(name))
        .map(|(_, name)| *name);
    match here.or_else(|| closest(word, &options)) {
        Some(meant) => format!("{given} is none of {all}; did you mean {meant}?"),
        None => format!("{given} is none of {all}: write one of them"),
    }
}

fn range(here: Option<&Value>) -> String {
    let bound = |name: &str| here.and_then(|schema| schema.get(name)).map(show);
    match (bound("minimum"), bound("maximum")) {
        (Some(min), Some(max)) => format!("write a number from {min} to {max}"),
        (Some(min), None) => format!("write at least {min}"),
        (None, Some(max)) => format!("write at most {max}"),
        (None, None) => "write another number".to_owned(),
    }
}

/// The known word that was probably meant.
#[must_use]
pub fn closest<'a>(word: &str, known: &[&'a str]) -> Option<&'a str> {
    known
        .iter()
        .map(|k| {
            (
                strsim::damerau_levenshtein(&word.to_lowercase(), &k.to_lowercase()),
                *k,
            )
        })
        .filter(|(distance, k)| *distance <= 1 + k.len() / 5)
        .min()
        .map(|(_, k)| k)
}

/// A value as it is shown in a sentence.
fn show(value: &Value) -> String {
    const LONGEST: usize = 60;
    let text = match value {
        // Bounds are doubles in a CRD.
        Value::Number(n) => match n.as_f64() {
            Some(f) if f.fract() == 0.0 && f.abs() < 9e15 => (f as i64).to_string(),
            _ => n.to_string(),
        },
        other => other.to_string(),
    };
    if text.chars().count() <= LONGEST {
        return text;
    }
    let cut: String = text.chars().take(LONGEST).collect();
    format!("{cut}...")
}

/// `/spec/endpoints/0/name` as `spec.endpoints[0].name`.
fn dotted(pointer: &str) -> String {
    let mut path = String::new();
    for step in pointer.split('/').skip(1) {
        let step = step.replace("~1", "/").replace("~0", "~");
        // A map's key that is all digits looks like an index; that costs nothing but its looks.
        if !step.is_empty() && step.bytes().all(|b| b.is_ascii_digit()) {
            path.push_str(&format!("[{step}]"));
        } else {
            path = join(&path, &step);
        }
    }
    path
}

pub(super) fn join(path: &str, field: &str) -> String {
    if path.is_empty() {
        field.to_owned()
    } else {
        format!("{path}.{field}")
    }
}

/// The schema that holds the keyword at a pointer.
fn parent<'a>(schema: &'a Value, pointer: &str) -> Option<&'a Value> {
    schema.pointer(pointer.rsplit_once('/')?.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_pattern_has_words() {
        fn walk(schema: &Value) {
            if let Some(pattern) = schema.get("pattern").and_then(Value::as_str) {
                assert!(PATTERNS.iter().any(|(p, _)| *p == pattern), "{pattern}");
            }
            match schema {
                Value::Object(fields) => fields.values().for_each(walk),
                Value::Array(items) => items.iter().for_each(walk),
                _ => {}
            }
        }
        for crd in corrente_crds::all() {
            walk(&serde_json::to_value(crd).unwrap());
        }
    }

    #[test]
    fn guesses_what_was_meant_and_does_not_when_it_is_far_off() {
        let known = ["interval", "timeout", "endpoints", "output"];
        assert_eq!(closest("intervall", &known), Some("interval"));
        assert_eq!(closest("Timeout", &known), Some("timeout"));
        assert_eq!(closest("endpoint", &known), Some("endpoints"));
        assert_eq!(closest("frequency", &known), None);
    }
}
