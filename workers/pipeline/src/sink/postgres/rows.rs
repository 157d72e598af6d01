//! Rows to the bytes of a COPY, with what does not fit taken out.

use std::ops::Range;

use bytes::{BufMut, Bytes, BytesMut};
use corrente_record::Value;

use super::{
    encode,
    layout::{Layout, OWN},
};
use crate::{
    batch::{Refusal, Row},
    sink::columns::{MOST_COLUMNS, check_names},
};

/// Rows that are ready to be copied.
pub struct Encoded {
    /// The columns that the bytes have, in their order.
    pub columns: Vec<String>,
    /// The rows, one after the other, without header and trailer.
    pub bytes: Bytes,
    /// For each encoded row its place in the batch and its bytes.
    pub rows: Vec<(usize, Range<usize>)>,
    /// For each row that does not fit its place in the batch and the reason.
    pub refused: Vec<(usize, Refusal)>,
}

/// Encodes rows for a table.
#[must_use]
pub fn encode_rows(layout: &Layout, rows: &[Row]) -> Encoded {
    // Only columns that some row has are copied: a table may have many that this batch does not know.
    let mut used = vec![false; layout.columns.len()];
    for (name, _) in rows.iter().flat_map(|row| &row.record.fields) {
        if let Some(used) = layout.position(name).and_then(|at| used.get_mut(at)) {
            *used = true;
        }
    }
    let fields: Vec<usize> = (0..used.len()).filter(|at| used[*at]).collect();
    let mut slot_of = vec![usize::MAX; layout.columns.len()];
    for (slot, at) in fields.iter().enumerate() {
        slot_of[*at] = slot;
    }
    let mut encoder = Encoder {
        layout,
        fields,
        slot_of,
        out: BytesMut::new(),
    };
    let mut encoded = Encoded {
        columns: OWN
            .iter()
            .map(|(name, _)| (*name).to_owned())
            .chain(encoder.fields.iter().map(|at| layout.columns[*at].0.clone()))
            .collect(),
        bytes: Bytes::new(),
        rows: Vec::with_capacity(rows.len()),
        refused: vec![],
    };
    let mut values = vec![None; encoder.fields.len()];
    for (number, row) in rows.iter().enumerate() {
        let begin = encoder.out.len();
        values.fill(None);
        match encoder.row(row, &mut values) {
            Ok(()) => encoded.rows.push((number, begin..encoder.out.len())),
            Err(refusal) => {
                encoder.out.truncate(begin);
                encoded.refused.push((number, refusal));
            }
        }
    }
    encoded.bytes = encoder.out.freeze();
    encoded
}

struct Encoder<'a> {
    layout: &'a Layout,
    fields: Vec<usize>,
    slot_of: Vec<usize>,
    out: BytesMut,
}

impl Encoder<'_> {
    fn row<'r>(&mut self, row: &'r Row, values: &mut [Option<&'r Value>]) -> Result<(), Refusal> {
        let record = &row.record;
        check_names(record)?;
        let out = &mut self.out;
        out.put_i16((OWN.len() + self.fields.len()) as i16);
        encode::timestamp(out, record.ts);
        encode::text(out, &record.meter);
        match record.slot {
            Some(slot) => encode::timestamp(out, slot),
            None => encode::null(out),
        }
        match &record.stream {
            Some(stream) => encode::text(out, stream),
            None => encode::null(out),
        }
        match record.seq.and_then(|seq| i64::try_from(seq).ok()) {
            Some(seq) => encode::int8(out, seq),
            None => encode::null(out),
        }
        match record.quality {
            Some(quality) => encode::text(out, quality.as_str()),
            None => encode::null(out),
        }
        match &record.bad {
            Some(bad) => encode::jsonb(out, bad),
            None => encode::null(out),
        }
        match record.skipped.and_then(|skipped| i32::try_from(skipped).ok()) {
            Some(skipped) => encode::int4(out, skipped),
            None => encode::null(out),
        }
        for (name, value) in &record.fields {
            let slot = self
                .layout
                .position(name)
                .and_then(|at| self.slot_of.get(at).copied());
            match slot.and_then(|slot| values.get_mut(slot)) {
                // A name that comes twice: the last one counts, as in most readers of JSON.
                Some(place) => *place = Some(value),
                None => {
                    return Err(Refusal {
                        sqlstate: None,
                        column: Some(name.clone()),
                        reason: format!(
                            "the table has no such column, and no more than {MOST_COLUMNS} are made"
                        ),
                    });
                }
            }
        }
        for (value, at) in values.iter().zip(&self.fields) {
            let (name, kind) = &self.layout.columns[*at];
            match value {
                None => encode::null(out),
                Some(value) => encode::value(out, value, kind).map_err(|reason| Refusal {
                    sqlstate: None,
                    column: Some(name.clone()),
                    reason,
                })?,
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use corrente_record::Record;

    use super::*;
    use crate::{batch::Origin, sink::postgres::encode::PgType};

    fn row(json: &str) -> Row {
        Row {
            origin: Origin {
                offset: 0,
                key: None,
                payload: json.as_bytes().to_vec(),
            },
            record: Record::parse(json.as_bytes()).unwrap(),
        }
    }

    #[test]
    fn what_does_not_fit_is_taken_out_and_the_rest_is_whole() {
        let layout = Layout::of(&[
            ("ts", PgType::Timestamptz),
            ("v", PgType::Float8),
            ("unused", PgType::Text),
            ("n", PgType::Numeric(Some(0))),
        ]);
        let rows = [
            row(r#"{"ts":"2000-01-01T00:00:00Z","meter":"m","v":1.5}"#),
            row(r#"{"ts":"2000-01-01T00:00:00Z","meter":"m","v":"high"}"#),
            row(r#"{"ts":"2000-01-01T00:00:00Z","meter":"m","w":1}"#),
            row(r#"{"ts":"2000-01-01T00:00:00Z","meter":"m","n":7,"v":1,"v":2}"#),
        ];
        let encoded = encode_rows(&layout, &rows);
        assert_eq!(
            encoded.columns,
            [
                "ts", "meter", "slot", "stream", "seq", "quality", "bad", "skipped", "v", "n"
            ]
        );
        assert_eq!(encoded.rows.iter().map(|(at, _)| *at).collect::<Vec<_>>(), [0, 3]);
        let refused: Vec<_> = encoded
            .refused
            .iter()
            .map(|(at, refusal)| (*at, refusal.column.as_deref().unwrap(), refusal.reason.as_str()))
            .collect();
        assert_eq!(refused[0], (1, "v", "\"high\" is not a number"));
        assert!(refused[1].0 == 2 && refused[1].1 == "w" && refused[1].2.contains("no such column"));
        // Fields: 10; ts (8), meter (1), six nulls, v (8), null.
        let first = &encoded.bytes[encoded.rows[0].1.clone()];
        assert_eq!(first.len(), 2 + 12 + 5 + 6 * 4 + 12 + 4);
        assert_eq!(first[..2], 10i16.to_be_bytes());
        // The last of two values of one name counts.
        let second = &encoded.bytes[encoded.rows[1].1.clone()];
        assert_eq!(second[2 + 12 + 5 + 24 + 4..][..8], 2f64.to_be_bytes());
    }
}
