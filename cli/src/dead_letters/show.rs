//! Letters, and what came of a replay, for people.

use std::{fmt::Write as _, time::Duration};

use corrente_pipeline::sink::postgres::letters::{Letter, Outcome};
use corrente_record::Timestamp;

/// So many letters.
pub fn count(letters: u64) -> String {
    match letters {
        1 => "1 letter".to_owned(),
        more => format!("{more} letters"),
    }
}

/// One line for each letter, with its record on a line of its own where that is wanted. `all` is how many there are.
pub fn letters(letters: &[Letter], all: u64, payload: bool) -> String {
    let mut out = String::new();
    for letter in letters {
        let at = Timestamp(letter.at);
        let mut marks = vec![];
        marks.extend(letter.sqlstate.as_ref().map(|code| format!("[{code}]")));
        marks.extend(letter.column.as_ref().map(|column| format!("{column}:")));
        marks.push(letter.reason.clone());
        if letter.replayed {
            marks.push("(replayed)".to_owned());
        } else if letter.asked {
            marks.push("(replay asked for)".to_owned());
        }
        // Writing to a string does not fail.
        let _ = writeln!(
            out,
            "{}  {at}  {}  {}/{} {}  {}",
            letter.id,
            letter.pipeline,
            letter.topic,
            letter.partition,
            letter.offset,
            marks.join(" ").replace(['\n', '\r'], " ")
        );
        if payload {
            let _ = writeln!(
                out,
                "    {}",
                String::from_utf8_lossy(&letter.payload).escape_debug()
            );
        }
    }
    let more = all.saturating_sub(letters.len() as u64);
    let _ = match (all, more) {
        (0, _) => writeln!(out, "no letters"),
        (all, 0) => writeln!(out, "{}", count(all)),
        (all, _) => writeln!(
            out,
            "{}, of which the oldest {} are shown: see --limit",
            count(all),
            letters.len()
        ),
    };
    out
}

/// What came of a replay for which `patience` was had.
pub fn outcome(outcome: &Outcome, patience: Duration) -> String {
    let mut out = format!("{} stored\n", count(outcome.replayed));
    for (reason, id, letters) in &outcome.refused {
        let _ = writeln!(out, "{} refused again, such as {id}: {reason}", count(*letters));
    }
    if outcome.waiting > 0 {
        let _ = writeln!(
            out,
            "{} not looked at within {} s: they are replayed when a worker of their pipeline runs",
            count(outcome.waiting),
            patience.as_secs()
        );
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_letter_is_a_line() {
        let letter = Letter {
            id: 7,
            at: 1_795_213_200_000,
            pipeline: "default/store".to_owned(),
            cluster: "c".to_owned(),
            topic: "meters".to_owned(),
            partition: 2,
            offset: 17,
            key: None,
            payload: b"{\"a\":\n1}".to_vec(),
            sqlstate: Some("23514".to_owned()),
            column: Some("voltage".to_owned()),
            reason: "violates a check".to_owned(),
            asked: false,
            replayed: false,
        };
        let shown = letters(&[letter], 3, true);
        let lines: Vec<_> = shown.lines().collect();
        assert!(lines[0].starts_with("7  2026-"), "{shown}");
        assert!(lines[0].ends_with("default/store  meters/2 17  [23514] voltage: violates a check"));
        assert_eq!(lines[1], r#"    {\"a\":\n1}"#);
        assert_eq!(
            lines[2],
            "3 letters, of which the oldest 1 are shown: see --limit"
        );
        assert_eq!(letters(&[], 0, false), "no letters\n");
    }

    #[test]
    fn an_outcome_says_what_was_stored_refused_and_not_looked_at() {
        let shown = outcome(
            &Outcome {
                replayed: 1,
                waiting: 2,
                refused: vec![("no".to_owned(), 5, 3)],
            },
            Duration::from_secs(30),
        );
        assert_eq!(
            shown,
            "1 letter stored\n3 letters refused again, such as 5: no\n2 letters not looked at within 30 s: they are \
             replayed when a worker of their pipeline runs\n"
        );
    }
}
