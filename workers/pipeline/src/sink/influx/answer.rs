//! What InfluxDB's answer to a write means.
//!
//! - A write is answered 204 (or 200 in version 3) when all of it is stored.
//! - Some rows are refused: their field has another type already, they are older than the retention, they cannot
//!   be parsed. The rest of the write **is stored**, and the answer is 400 (422 in version 2). Version 3 names
//!   the lines; the others say only the reason, so that the rows are found by halving. That repeats rows, which
//!   is the same point each time.
//! - Everything else is no fault of a row (the database is not there, the token is wrong, the server is busy):
//!   the same is tried again.
//!
//! Sources: <https://docs.influxdata.com/influxdb/v1/tools/api/#write-http-endpoint>,
//! <https://docs.influxdata.com/influxdb/v2/api/>, <https://docs.influxdata.com/influxdb3/core/api/v3/>.

use serde::Deserialize;

/// The longest message of a server that is passed on, in characters.
const LONGEST: usize = 400;

/// What became of a write.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// All of it is stored.
    Stored,
    /// These lines, counted from 0, are refused, for these reasons; the others are stored.
    Lines(Vec<(usize, String)>),
    /// Some row or other is refused, for this reason; others may be stored.
    Rows(String),
    /// The write as a whole is refused, or a row is in a way that we do not know. The sentence says what the server
    /// said.
    Unknown(String),
    /// It is more than the server takes at a time.
    TooLarge(String),
    /// It was not stored for a reason that passes, or that a person must put right.
    Failed(String),
}

/// An error, in the words of the three versions.
#[derive(Default, Deserialize)]
#[serde(default)]
struct Said {
    error: Option<String>,
    message: Option<String>,
    data: serde_json::Value,
}

#[derive(Deserialize)]
struct BadLine {
    line_number: usize,
    error_message: String,
}

/// What the older versions say of rows.
const OF_ROWS: [&str; 6] = [
    "partial write",
    "unable to parse",
    "field type conflict",
    "points beyond retention policy",
    "outside retention policy",
    "failed to parse",
];

/// What the answer with this status and body means.
#[must_use]
pub fn read(status: u16, body: &str) -> Answer {
    if (200..300).contains(&status) {
        return Answer::Stored;
    }
    let said: Said = serde_json::from_str(body).unwrap_or_default();
    let message = said
        .error
        .or(said.message)
        .unwrap_or_else(|| body.trim().to_owned());
    let message: String = message.chars().take(LONGEST).collect();
    match status {
        400 | 422 => {
            // One bad line is an object in some releases, and a list of one in others.
            let lines = serde_json::from_value::<Vec<BadLine>>(said.data.clone())
                .or_else(|_| serde_json::from_value::<BadLine>(said.data).map(|line| vec![line]));
            match lines {
                Ok(lines) if !lines.is_empty() && lines.iter().all(|line| line.line_number > 0) => {
                    let lines = lines.into_iter();
                    Answer::Lines(
                        lines
                            .map(|line| (line.line_number - 1, line.error_message))
                            .collect(),
                    )
                }
                _ if OF_ROWS.iter().any(|words| message.contains(words)) => Answer::Rows(message),
                _ => Answer::Unknown(format!("InfluxDB answers {status}: {message}")),
            }
        }
        413 => Answer::TooLarge(message),
        _ => Answer::Failed(format!("InfluxDB answers {status}: {message}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_answer_has_its_meaning() {
        let conflict = r#"partial write: field type conflict: input field "v" on measurement "r" is type string, already exists as type float dropped=1"#;
        let rows = |text: &str| Answer::Rows(text.to_owned());
        let failed = |text: &str| Answer::Failed(text.to_owned());
        for (status, body, answer) in [
            (204, String::new(), Answer::Stored),
            (200, "{}".to_owned(), Answer::Stored),
            (400, serde_json::json!({"error": conflict}).to_string(), rows(conflict)),
            (
                422,
                r#"{"code":"unprocessable entity","message":"failure writing points to database: partial write: points beyond retention policy dropped=1"}"#.to_owned(),
                rows("failure writing points to database: partial write: points beyond retention policy dropped=1"),
            ),
            (
                400,
                r#"{"error":"partial write of line protocol occurred","data":[{"original_line":"r v=","line_number":2,"error_message":"No fields"}]}"#.to_owned(),
                Answer::Lines(vec![(1, "No fields".to_owned())]),
            ),
            (
                400,
                r#"{"error":"parsing failed for write_lp endpoint","data":{"original_line":"r v=","line_number":1,"error_message":"No fields"}}"#.to_owned(),
                Answer::Lines(vec![(0, "No fields".to_owned())]),
            ),
            (
                400,
                r#"{"code":"invalid","message":"bucket is required"}"#.to_owned(),
                Answer::Unknown("InfluxDB answers 400: bucket is required".to_owned()),
            ),
            (
                404,
                r#"{"error":"database not found: \"d\""}"#.to_owned(),
                failed("InfluxDB answers 404: database not found: \"d\""),
            ),
            (401, "who?\n".to_owned(), failed("InfluxDB answers 401: who?")),
            (503, r#"{"error":"timeout"}"#.to_owned(), failed("InfluxDB answers 503: timeout")),
            (413, String::new(), Answer::TooLarge(String::new())),
        ] {
            assert_eq!(read(status, &body), answer, "{status} {body}");
        }
    }
}
