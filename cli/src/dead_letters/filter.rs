//! Which letters are meant.

use anyhow::{Context as _, bail, ensure};
use clap::Args;
use corrente_pipeline::sink::postgres::letters::Filter;

/// The arguments that say which letters are meant; all of them must hold.
#[derive(Debug, Default, Args)]
pub struct Which {
    /// Of this pipeline, as NAMESPACE/NAME
    #[arg(long, value_name = "PIPELINE")]
    pipeline: Option<String>,
    /// From this topic
    #[arg(long, value_name = "TOPIC")]
    topic: Option<String>,
    /// From this partition
    #[arg(long, value_name = "NUMBER")]
    partition: Option<i32>,
    /// From this offset, or these: 17, 17-30, 17-
    #[arg(long, value_name = "OFFSETS")]
    offset: Option<String>,
    /// Refused by the database with this code, such as 23514
    #[arg(long, value_name = "CODE")]
    sqlstate: Option<String>,
    /// About this column
    #[arg(long, value_name = "COLUMN")]
    column: Option<String>,
    /// With this text in the reason
    #[arg(long, value_name = "TEXT")]
    reason: Option<String>,
    /// With this number, as `list` prints it; may be given several times
    #[arg(long, value_name = "NUMBER")]
    id: Vec<i64>,
    /// Set aside longer ago than this: 30m, 12h, 90d
    #[arg(long, value_name = "TIME")]
    older_than: Option<String>,
    /// Set aside not longer ago than this
    #[arg(long, value_name = "TIME")]
    younger_than: Option<String>,
}

impl Which {
    /// The filter.
    ///
    /// # Errors
    /// Which argument is not what it should be.
    pub fn filter(&self) -> anyhow::Result<Filter> {
        if let Some(pipeline) = &self.pipeline {
            ensure!(
                pipeline.contains('/'),
                "--pipeline {pipeline} has no namespace: write NAMESPACE/NAME, such as default/{pipeline}"
            );
        }
        let (from_offset, to_offset) = match &self.offset {
            Some(text) => offsets(text)?,
            None => (None, None),
        };
        let seconds = |name: &str, text: &Option<String>| {
            let time = text
                .as_ref()
                .map(|text| seconds(text).with_context(|| format!("{name} {text}")));
            time.transpose()
        };
        Ok(Filter {
            pipeline: self.pipeline.clone(),
            topic: self.topic.clone(),
            partition: self.partition,
            from_offset,
            to_offset,
            sqlstate: self.sqlstate.clone(),
            column: self.column.clone(),
            reason: self.reason.clone(),
            ids: self.id.clone(),
            older_than: seconds("--older-than", &self.older_than)?,
            younger_than: seconds("--younger-than", &self.younger_than)?,
            replayed: false,
        })
    }

    /// Sees that something says which letters are meant.
    ///
    /// # Errors
    /// What to write where nothing does.
    pub fn or_everything(&self, everything: bool, action: &str) -> anyhow::Result<()> {
        if !everything && self.filter()? == Filter::default() {
            bail!(
                "nothing says which letters: name a pipeline, a topic, a code or another mark of them (see \
                 corrente dead-letters {action} --help), or write --everything"
            );
        }
        Ok(())
    }
}

/// One offset, or a range whose ends are in it.
fn offsets(text: &str) -> anyhow::Result<(Option<i64>, Option<i64>)> {
    let number = |part: &str| {
        part.parse::<i64>()
            .ok()
            .filter(|number| *number >= 0)
            .with_context(|| {
                format!("--offset {text} is no offset: write one such as 17, or a range such as 17-30 or 17-")
            })
    };
    Ok(match text.split_once('-') {
        None => (Some(number(text)?), Some(number(text)?)),
        Some((from, "")) => (Some(number(from)?), None),
        Some((from, to)) => {
            let (from, to) = (number(from)?, number(to)?);
            ensure!(
                from <= to,
                "--offset {text} ends before it begins: write the lower one first"
            );
            (Some(from), Some(to))
        }
    })
}

/// A length of time in seconds.
fn seconds(text: &str) -> anyhow::Result<i64> {
    let retention: corrente_crds::Retention = text.parse()?;
    i64::try_from(retention.as_millis() / 1000).context("it is too long")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_offsets_and_times() {
        for (text, range) in [
            ("17", (Some(17), Some(17))),
            ("17-30", (Some(17), Some(30))),
            ("17-", (Some(17), None)),
        ] {
            assert_eq!(offsets(text).unwrap(), range);
        }
        for (text, says) in [
            ("x", "is no offset"),
            ("-3", "is no offset"),
            ("5-2", "ends before it begins"),
        ] {
            assert!(offsets(text).unwrap_err().to_string().contains(says), "{text}");
        }
        assert_eq!(seconds("90d").unwrap(), 90 * 86_400);
        assert!(
            seconds("soon")
                .unwrap_err()
                .to_string()
                .contains("write a whole number and a unit")
        );
    }

    #[test]
    fn nothing_is_not_taken_for_everything() {
        let nothing = Which::default();
        assert!(nothing.or_everything(true, "prune").is_ok());
        let says = nothing.or_everything(false, "prune").unwrap_err().to_string();
        assert!(says.contains("--everything"), "{says}");
        let some = Which {
            topic: Some("t".to_owned()),
            ..Which::default()
        };
        assert!(some.or_everything(false, "prune").is_ok());
        let no_namespace = Which {
            pipeline: Some("store".to_owned()),
            ..Which::default()
        };
        let says = no_namespace.filter().unwrap_err().to_string();
        assert!(says.contains("default/store"), "{says}");
    }
}
