//! An alert, as it is told to others.

use std::collections::BTreeMap;

use corrente_record::Timestamp;
use serde_json::{Value, json};

/// An alert that has begun, and may have ended.
#[derive(Clone, Debug, PartialEq)]
pub struct Alert {
    /// Its name for ever: the pipeline, the threshold, the meter, and when it began.
    pub id: String,
    /// The pipeline, as `namespace/name`.
    pub pipeline: String,
    /// The threshold's name.
    pub name: String,
    /// The meter.
    pub meter: String,
    /// The metric.
    pub metric: String,
    /// Labels of the threshold.
    pub labels: BTreeMap<String, String>,
    /// The threshold's sentence.
    pub summary: Option<String>,
    /// When the bound was first broken.
    pub started: Timestamp,
    /// The value that made it an alert.
    pub value: f64,
    /// When the value was back, and which it was.
    pub ended: Option<(Timestamp, Option<f64>)>,
}

/// The id of an alert.
#[must_use]
pub fn id(pipeline: &str, name: &str, meter: &str, started: Timestamp) -> String {
    format!("{pipeline}/{name}/{meter}/{started}")
}

impl Alert {
    /// The message for a topic: one when it begins, and one when it has ended.
    #[must_use]
    pub fn to_kafka(&self, ended: bool) -> String {
        let end = self.ended.filter(|_| ended);
        let mut message = json!({
            "id": self.id,
            "status": if end.is_some() { "resolved" } else { "firing" },
            "pipeline": self.pipeline,
            "alert": self.name,
            "meter": self.meter,
            "metric": self.metric,
            "labels": self.labels,
            "startsAt": self.started,
            "value": self.value,
        });
        if let Some(summary) = &self.summary {
            message["summary"] = summary.as_str().into();
        }
        if let Some((at, value)) = end {
            message["endsAt"] = json!(at);
            message["endValue"] = json!(value);
        }
        message.to_string()
    }

    /// The entry for Alertmanager's `POST /api/v2/alerts` (its OpenAPI definition, `postableAlert`). One that goes on is
    /// said to end at `until`, unless it is told again before that. An end that is not after the start is refused there,
    /// and a meter's clock may be ahead.
    #[must_use]
    pub fn to_alertmanager(&self, until: Timestamp) -> Value {
        let own = [
            ("alertname", &self.name),
            ("meter", &self.meter),
            ("metric", &self.metric),
            ("pipeline", &self.pipeline),
        ];
        let labels: BTreeMap<&str, &str> = own
            .into_iter()
            .map(|(name, value)| (name, value.as_str()))
            .chain(
                self.labels
                    .iter()
                    .map(|(name, value)| (name.as_str(), value.as_str())),
            )
            .collect();
        let mut annotations = BTreeMap::from([("id", self.id.clone()), ("value", self.value.to_string())]);
        if let Some(summary) = &self.summary {
            annotations.insert("summary", summary.clone());
        }
        json!({
            "labels": labels,
            "annotations": annotations,
            "startsAt": self.started,
            "endsAt": self.ended.map_or(until, |(at, _)| at).max(Timestamp(self.started.0.saturating_add(1))),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn alert() -> Alert {
        let started = Timestamp(1_795_213_200_000);
        Alert {
            id: id("site/alerts", "Overvoltage", "feeder-12", started),
            pipeline: "site/alerts".to_owned(),
            name: "Overvoltage".to_owned(),
            meter: "feeder-12".to_owned(),
            metric: "voltage_l1_n".to_owned(),
            labels: [("severity".to_owned(), "warning".to_owned())].into(),
            summary: Some("Too high".to_owned()),
            started,
            value: 253.5,
            ended: None,
        }
    }

    #[test]
    fn is_told_the_same_each_time() {
        let mut alert = alert();
        assert_eq!(
            alert.id,
            "site/alerts/Overvoltage/feeder-12/2026-11-20T22:20:00.000Z"
        );
        let begins = alert.to_kafka(false);
        alert.ended = Some((Timestamp(1_795_213_260_000), Some(249.0)));
        assert_eq!(
            alert.to_kafka(false),
            begins,
            "that it began is told as it was, though it has ended"
        );
        let ended: Value = serde_json::from_str(&alert.to_kafka(true)).unwrap();
        assert_eq!(
            ended,
            json!({
                "id": alert.id, "status": "resolved", "pipeline": "site/alerts", "alert": "Overvoltage",
                "meter": "feeder-12", "metric": "voltage_l1_n", "labels": {"severity": "warning"}, "summary": "Too high",
                "startsAt": "2026-11-20T22:20:00.000Z", "value": 253.5, "endsAt": "2026-11-20T22:21:00.000Z",
                "endValue": 249.0,
            })
        );
    }

    #[test]
    fn alertmanager_is_told_how_long_it_lasts() {
        let mut alert = alert();
        let until = Timestamp(1_795_213_500_000);
        let firing = alert.to_alertmanager(until);
        assert_eq!(firing["endsAt"], "2026-11-20T22:25:00.000Z");
        assert_eq!(
            firing["labels"],
            json!({"alertname": "Overvoltage", "meter": "feeder-12", "metric": "voltage_l1_n", "pipeline": "site/alerts",
                "severity": "warning"})
        );
        assert_eq!(firing["annotations"]["summary"], "Too high");
        alert.ended = Some((Timestamp(1_795_213_260_000), None));
        assert_eq!(alert.to_alertmanager(until)["endsAt"], "2026-11-20T22:21:00.000Z");
        assert_eq!(
            alert.to_alertmanager(until)["labels"],
            firing["labels"],
            "the same alert"
        );
    }
}
