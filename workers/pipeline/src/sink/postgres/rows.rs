//! Rows to the bytes of a COPY.
//!
//! A COPY names its columns before the first row, and a table may have many that a topic does not know. So there is a
//! [`Plan`]: the columns that the rows had so far. A row with another one ends the COPY, and the next one has it; a
//! column that no row has had for a while is left out again.
//!
//! Records of one meter have their fields in one order, and so have most records of a topic: the column of a field is
//! looked for behind that of the field before, and only where it is not there, by its name.

use std::{collections::HashMap, sync::Arc};

use corrente_record::{View, reader::same};

use super::{
    encode::{self, PgType},
    layout::{Layout, NARROW, OWN},
    narrow::Narrow,
};
use crate::{
    batch::Refusal,
    sink::columns::{MOST_COLUMNS, check_name, quote},
};

/// A column that no row of so many batches had is left out.
const IDLE: u32 = 20;

/// The columns of a COPY.
#[derive(Default)]
pub struct Plan {
    columns: Vec<Column>,
    index: HashMap<String, usize>,
    /// For each column, the number of the row's field, from 1; 0 where it has none.
    fields: Vec<usize>,
    /// Set where the table is narrow: the columns are those of labels then.
    narrow: Option<Arc<Narrow>>,
    /// The bytes of a narrow row's labels.
    labels: Vec<u8>,
    /// How many rows of the table the last record came to.
    lines: usize,
}

struct Column {
    name: String,
    kind: PgType,
    /// Whether a row of this batch has it.
    used: bool,
    /// How many batches before had no such row.
    idle: u32,
}

/// What a plan does about a row whose columns it does not have.
pub enum Widened {
    /// It has them now.
    Known,
    /// The table does not have them, and has room for them.
    Missing,
    /// There can be no such column.
    Refused(Refusal),
}

impl Plan {
    /// A plan for a narrow table, or else for a wide one.
    #[must_use]
    pub fn of(narrow: Option<Arc<Narrow>>) -> Self {
        Self {
            narrow,
            ..Self::default()
        }
    }

    /// How many rows of the table the record that was appended last came to.
    #[must_use]
    pub fn lines(&self) -> usize {
        self.lines
    }

    /// The columns in SQL, the record's own first.
    #[must_use]
    pub fn columns(&self) -> String {
        let own: &[(&str, &str)] = if self.narrow.is_some() { &NARROW } else { &OWN };
        let own = own.iter().map(|(name, _)| *name);
        let columns: Vec<String> = own
            .chain(self.columns.iter().map(|column| column.name.as_str()))
            .map(quote)
            .collect();
        columns.join(", ")
    }

    /// Adds the row's columns that it lacks.
    pub fn widen(&mut self, layout: &Layout, record: &View<'_>) -> Widened {
        for (name, _) in &record.fields {
            if self.index.contains_key(&**name) || !self.is_column(name) {
                continue;
            }
            if let Err(refusal) = check_name(name) {
                return Widened::Refused(refusal);
            }
            let Some((name, kind)) = layout.position(name).and_then(|at| layout.columns.get(at)) else {
                if layout.columns.len() < MOST_COLUMNS {
                    return Widened::Missing;
                }
                return Widened::Refused(Refusal {
                    sqlstate: None,
                    column: Some(name.clone().into_owned()),
                    reason: format!("the table has no such column, and no more than {MOST_COLUMNS} are made"),
                });
            };
            self.index.insert(name.clone(), self.columns.len());
            self.columns.push(Column {
                name: name.clone(),
                kind: kind.clone(),
                used: false,
                idle: 0,
            });
            self.fields.push(0);
        }
        Widened::Known
    }

    /// Whether a field is a column: in a narrow table labels are, and metrics are rows.
    fn is_column(&self, name: &str) -> bool {
        self.narrow.as_ref().is_none_or(|narrow| narrow.is_label(name))
    }

    /// A batch is stored: leaves out what was not used for long.
    pub fn settle(&mut self) {
        for column in &mut self.columns {
            column.idle = if column.used { 0 } else { column.idle + 1 };
            column.used = false;
        }
        if self.columns.iter().any(|column| column.idle > IDLE) {
            self.columns.retain(|column| column.idle <= IDLE);
            self.fields.truncate(self.columns.len());
            let names = self.columns.iter().enumerate();
            self.index = names.map(|(at, column)| (column.name.clone(), at)).collect();
        }
    }

    /// Appends a row; false where it has columns that the plan lacks. Nothing is appended then.
    ///
    /// # Errors
    /// What does not fit. Nothing is appended then.
    pub fn encode(&mut self, record: &View<'_>, out: &mut Vec<u8>) -> Result<bool, Refusal> {
        self.fields.fill(0);
        let mut next = 0;
        for (number, (name, _)) in record.fields.iter().enumerate() {
            let at = match self.columns.get(next) {
                Some(column) if same(column.name.as_bytes(), name.as_bytes()) => next,
                _ => match self.index.get(&**name) {
                    Some(at) => *at,
                    None if !self.is_column(name) => continue,
                    None => return Ok(false),
                },
            };
            // A name that comes twice: the last one counts, as in most readers of JSON.
            if let Some(field) = self.fields.get_mut(at) {
                *field = number + 1;
            }
            next = at + 1;
        }
        let begin = out.len();
        let appended = match self.narrow.clone() {
            Some(narrow) => self.append_narrow(&narrow, record, out),
            None => self.append(record, out).map(|()| 1),
        };
        self.lines = appended.inspect_err(|_| out.truncate(begin))?;
        Ok(true)
    }

    fn append_narrow(
        &mut self,
        narrow: &Narrow,
        record: &View<'_>,
        out: &mut Vec<u8>,
    ) -> Result<usize, Refusal> {
        let mut labels = std::mem::take(&mut self.labels);
        labels.clear();
        let appended = self.append_fields(record, &mut labels).and_then(|()| {
            let columns = NARROW.len() + self.columns.len();
            narrow.append(record, columns, &labels, out)
        });
        self.labels = labels;
        appended
    }

    fn append(&mut self, record: &View<'_>, out: &mut Vec<u8>) -> Result<(), Refusal> {
        encode::head(out, OWN.len() + self.columns.len(), record);
        match &record.bad {
            Some(bad) => encode::jsonb(out, bad),
            None => encode::null(out),
        }
        match record.skipped.and_then(|skipped| i32::try_from(skipped).ok()) {
            Some(skipped) => encode::int4(out, skipped),
            None => encode::null(out),
        }
        self.append_fields(record, out)
    }

    /// Appends the columns that are not the record's own.
    fn append_fields(&mut self, record: &View<'_>, out: &mut Vec<u8>) -> Result<(), Refusal> {
        for (column, field) in self.columns.iter_mut().zip(&self.fields) {
            let field = field.checked_sub(1).and_then(|number| record.fields.get(number));
            let Some((_, value)) = field else {
                encode::null(out);
                continue;
            };
            column.used = true;
            encode::value(out, value, &column.kind).map_err(|reason| Refusal {
                sqlstate: None,
                column: Some(column.name.clone()),
                reason,
            })?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sink::postgres::encode::PgType;

    fn layout() -> Layout {
        Layout::of(&[
            ("ts", PgType::Timestamptz),
            ("v", PgType::Float8),
            ("unused", PgType::Text),
            ("n", PgType::Numeric(Some(0))),
        ])
    }

    fn json(fields: &str) -> String {
        format!(r#"{{"ts":"2000-01-01T00:00:00Z","meter":"m",{fields}}}"#)
    }

    /// The row's bytes, none where the table lacks a column, or what does not fit.
    fn encoded(plan: &mut Plan, fields: &str) -> Result<Option<Vec<u8>>, Refusal> {
        let json = json(fields);
        let record = View::parse(json.as_bytes());
        assert!(record.is_ok());
        let record = record.unwrap_or_default();
        let mut out = vec![];
        let done = plan.encode(&record, &mut out);
        assert!(
            out.is_empty() || done == Ok(true),
            "nothing is left of what did not fit"
        );
        if done? {
            return Ok(Some(out));
        }
        match plan.widen(&layout(), &record) {
            Widened::Known => {
                assert!(plan.encode(&record, &mut out)?);
                Ok(Some(out))
            }
            Widened::Missing => Ok(None),
            Widened::Refused(refusal) => Err(refusal),
        }
    }

    #[test]
    fn what_does_not_fit_is_refused_and_the_rest_is_whole() {
        let mut plan = Plan::default();
        let first = encoded(&mut plan, r#""v":1.5"#).unwrap().unwrap();
        // Fields: 9; ts (8), meter (1), six nulls, v (8).
        assert_eq!(first.len(), 2 + 12 + 5 + 6 * 4 + 12);
        assert_eq!(first[..2], 9i16.to_be_bytes());
        let refused = encoded(&mut plan, r#""v":"high""#).unwrap_err();
        assert_eq!(
            (refused.column.as_deref(), refused.reason.as_str()),
            (Some("v"), "\"high\" is not a number")
        );
        assert_eq!(
            encoded(&mut plan, r#""w":1"#),
            Ok(None),
            "the table has no such column yet"
        );
        assert!(
            encoded(&mut plan, r#""xmin":1"#)
                .unwrap_err()
                .reason
                .contains("of its own")
        );
        // The last of two values of one name counts, wherever it stands.
        let second = encoded(&mut plan, r#""n":7,"v":1,"v":2"#).unwrap().unwrap();
        assert_eq!(second[..2], 10i16.to_be_bytes());
        assert_eq!(second[2 + 12 + 5 + 24 + 4..][..8], 2f64.to_be_bytes());
        assert_eq!(
            plan.columns(),
            r#""ts", "meter", "slot", "stream", "seq", "quality", "bad", "skipped", "v", "n""#
        );
    }

    #[test]
    fn columns_that_no_row_has_any_more_are_left_out() {
        let mut plan = Plan::default();
        encoded(&mut plan, r#""v":1,"n":2"#).unwrap().unwrap();
        for _ in 0..=IDLE {
            plan.settle();
            encoded(&mut plan, r#""n":2"#).unwrap().unwrap();
        }
        assert!(plan.columns().contains("\"v\""));
        plan.settle();
        assert!(!plan.columns().contains("\"v\""));
        let row = encoded(&mut plan, r#""n":2"#).unwrap().unwrap();
        assert_eq!(row[..2], 9i16.to_be_bytes());
    }

    #[test]
    fn a_table_that_is_full_takes_no_more_columns() {
        let names: Vec<String> = (0..MOST_COLUMNS).map(|n| format!("c{n}")).collect();
        let columns: Vec<_> = names.iter().map(|name| (name.as_str(), PgType::Float8)).collect();
        let json = json(r#""one_more":1"#);
        let record = View::parse(json.as_bytes()).unwrap();
        assert!(matches!(
            Plan::default().widen(&Layout::of(&columns), &record),
            Widened::Refused(refusal) if refusal.reason.contains("no such column")
        ));
    }
}
