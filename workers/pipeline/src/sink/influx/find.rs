//! Which rows of a write are refused.
//!
//! The rest of a write with bad rows is stored, but the older versions do not say which rows were bad: a write
//! that is refused for the sake of rows is written again by halves. A row that is refused alone is the one.
//! Where the reason is not known to be about rows, and every row is refused, it is no row's fault: nothing is
//! given up then.

use std::ops::Range;

use super::{answer::Answer, client::Client};

/// What was found.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Found {
    /// The refused rows, by their place, with the reasons.
    pub refused: Vec<(usize, String)>,
}

/// Writes the rows that are `ranges` of `text`, which follow each other, at most about `most` bytes at a time.
///
/// # Errors
/// Where it is to be tried again, as a sentence.
pub fn write(
    text: &str,
    ranges: &[Range<usize>],
    most: usize,
    send: &mut impl FnMut(&str) -> Answer,
) -> Result<Found, String> {
    let mut search = Search {
        text,
        ranges,
        send,
        known: vec![],
        unknown: vec![],
        stored: 0,
    };
    let mut from = 0;
    while let Some(first) = ranges.get(from) {
        let fits = |range: &&Range<usize>| range.end - first.start <= most;
        let count = ranges.iter().skip(from).take_while(fits).count().max(1);
        search.write(from..from + count)?;
        from += count;
    }
    let Search {
        known,
        unknown,
        stored,
        ..
    } = search;
    match unknown.first() {
        Some((_, reason)) if stored == 0 => Err(reason.clone()),
        _ => {
            let mut refused = known;
            refused.extend(unknown);
            refused.sort();
            Ok(Found { refused })
        }
    }
}

struct Search<'a, S> {
    text: &'a str,
    ranges: &'a [Range<usize>],
    send: &'a mut S,
    known: Vec<(usize, String)>,
    unknown: Vec<(usize, String)>,
    stored: usize,
}

impl<S: FnMut(&str) -> Answer> Search<'_, S> {
    fn write(&mut self, rows: Range<usize>) -> Result<(), String> {
        let mut open = vec![rows];
        while let Some(rows) = open.pop() {
            let (Some(first), Some(last)) = (self.ranges.get(rows.start), self.ranges.get(rows.end - 1))
            else {
                continue;
            };
            let lines = self.text.get(first.start..last.end).unwrap_or_default();
            let answer = (self.send)(lines);
            let one = rows.len() == 1;
            match answer {
                Answer::Stored => self.stored += rows.len(),
                Answer::Lines(lines) => {
                    // Text may have line ends of its own, so that the server's count is turned into rows by them.
                    let lines: Vec<_> = lines
                        .into_iter()
                        .filter_map(|(line, reason)| Some((self.row_of(&rows, line)?, reason)))
                        .collect();
                    self.stored += rows.len() - lines.len().min(rows.len());
                    self.known.extend(lines);
                }
                Answer::Rows(reason) | Answer::TooLarge(reason) if one => {
                    self.known.push((rows.start, reason))
                }
                Answer::Unknown(reason) if one => self.unknown.push((rows.start, reason)),
                Answer::Rows(_) | Answer::TooLarge(_) | Answer::Unknown(_) => {
                    let middle = rows.start + rows.len() / 2;
                    open.push(middle..rows.end);
                    open.push(rows.start..middle);
                }
                Answer::Failed(reason) => return Err(reason),
            }
        }
        Ok(())
    }

    /// The row that holds a line of a write of these rows.
    fn row_of(&self, rows: &Range<usize>, line: usize) -> Option<usize> {
        let mut ends = 0;
        rows.clone().find(|row| {
            let range = self.ranges.get(*row).cloned().unwrap_or_default();
            ends += self.text.get(range).unwrap_or_default().matches('\n').count();
            line < ends
        })
    }
}

/// Writes nothing, to see whether a write could be.
///
/// # Errors
/// Why not, as a sentence.
pub fn nothing(client: &Client) -> Result<(), String> {
    match client.write("") {
        Answer::Failed(reason) => Err(reason),
        // Some versions call an empty write a mistake; the way to them is clear then.
        _ => Ok(()),
    }
}

/// The field that a type conflict names.
#[must_use]
pub fn field_of(reason: &str) -> Option<String> {
    let (_, after) = reason.split_once("input field \"")?;
    let (field, _) = after.split_once("\" on measurement")?;
    Some(field.to_owned())
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    /// Rows as lines, some of them over two lines.
    fn rows(count: usize) -> (String, Vec<Range<usize>>) {
        let mut text = String::new();
        let mut ranges = vec![];
        for row in 0..count {
            let begin = text.len();
            text += &format!("{row}{}\n", if row % 3 == 0 { "\n" } else { "" });
            ranges.push(begin..text.len());
        }
        (text, ranges)
    }

    fn bad_in(lines: &str, bad: &BTreeSet<usize>) -> Vec<usize> {
        let lines = lines.lines().enumerate();
        let numbers = lines.filter_map(|(at, line)| Some((at, line.parse::<usize>().ok()?)));
        numbers
            .filter(|(_, row)| bad.contains(row))
            .map(|(at, _)| at)
            .collect()
    }

    proptest! {
        #[test]
        fn every_refused_row_is_found_and_every_other_is_stored(
            count in 0usize..60,
            bad in prop::collection::btree_set(0usize..60, 0..20),
            most in 1usize..100,
            named: bool,
        ) {
            let (text, ranges) = rows(count);
            let mut stored = BTreeSet::new();
            let found = write(&text, &ranges, most, &mut |lines| {
                let refused = bad_in(lines, &bad);
                stored.extend(lines.lines().filter_map(|line| line.parse::<usize>().ok()).filter(|row| !bad.contains(row)));
                if refused.is_empty() {
                    Answer::Stored
                } else if named {
                    Answer::Lines(refused.into_iter().map(|at| (at, "bad".to_owned())).collect())
                } else {
                    Answer::Rows("bad".to_owned())
                }
            })
            .unwrap();
            let refused: BTreeSet<_> = found.refused.iter().map(|(row, _)| *row).collect();
            prop_assert_eq!(refused.len(), found.refused.len());
            prop_assert!(refused.iter().all(|row| bad.contains(row)));
            prop_assert_eq!((0..count).filter(|row| bad.contains(row)).collect::<BTreeSet<_>>(), refused);
            prop_assert_eq!((0..count).filter(|row| !bad.contains(row)).collect::<BTreeSet<_>>(), stored);
        }
    }

    #[test]
    fn what_concerns_no_row_gives_none_up() {
        let (text, ranges) = rows(5);
        let all = write(&text, &ranges, 1000, &mut |_| {
            Answer::Unknown("org is required".to_owned())
        });
        assert_eq!(all, Err("org is required".to_owned()));
        let one = write(
            &text,
            &ranges,
            1000,
            &mut |lines| match bad_in(lines, &[2].into()).len() {
                0 => Answer::Stored,
                _ => Answer::Unknown("odd".to_owned()),
            },
        );
        assert_eq!(one.unwrap().refused, [(2, "odd".to_owned())]);
        let away = write(&text, &ranges, 1000, &mut |_| Answer::Failed("away".to_owned()));
        assert_eq!(away, Err("away".to_owned()));
    }

    #[test]
    fn a_conflict_names_its_field() {
        let reason =
            r#"partial write: field type conflict: input field "v" on measurement "r" is type string"#;
        assert_eq!(field_of(reason).as_deref(), Some("v"));
        assert_eq!(field_of("points beyond retention policy"), None);
    }
}
