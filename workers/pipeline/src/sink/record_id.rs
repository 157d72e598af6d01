//! The name of a record, by which a repeat of it is known in every sink that has a place for one: `stream/seq` as its
//! poller numbered it, whichever offset it stands at; or where it stands and when it was read, for records of producers
//! that number none. (Where alone would not do: a topic that is deleted and made anew has the same offsets again.)

use corrente_record::View;

use crate::batch::{Origin, Place};

/// The name of a record.
#[must_use]
pub fn record_id(place: &Place, origin: &Origin<'_>, record: &View<'_>) -> String {
    match (&record.stream, record.seq) {
        (Some(stream), Some(seq)) => format!("{stream}/{seq}"),
        _ => {
            let Place { cluster, partition } = place;
            format!("{cluster}/{partition}/{}@{}", origin.offset, record.ts.0)
        }
    }
}

#[cfg(test)]
mod tests {
    use corrente_runtime::broker::TopicPartition;

    use super::*;

    #[test]
    fn a_record_keeps_its_name_wherever_it_stands() {
        let place = Place {
            cluster: "c".into(),
            partition: TopicPartition {
                topic: "t".into(),
                partition: 3,
            },
        };
        let origin = Origin {
            offset: 7,
            key: None,
            payload: b"",
        };
        let named = |stream: Option<&'static str>, seq| {
            let record = View {
                ts: corrente_record::Timestamp(99),
                stream: stream.map(Into::into),
                seq,
                ..View::default()
            };
            record_id(&place, &origin, &record)
        };
        assert_eq!(named(Some("k7"), Some(8)), "k7/8");
        assert_eq!(named(Some("k7"), None), "c/t/3/7@99");
        assert_eq!(named(None, None), "c/t/3/7@99");
    }
}
