//! What to derive: the configuration, with names found once.

use corrente_config::derived::{CounterConfig, DerivedConfig, PerMeter, SwapConfig};

/// What to derive.
#[derive(Clone, Debug)]
pub struct Plan {
    /// Every metric of any window, each once.
    pub metrics: Vec<Metric>,
    /// Every field with serial numbers, each once.
    pub serials: Vec<String>,
    /// The tables.
    pub tables: Vec<WindowTable>,
    /// Meters that were replaced, by time.
    pub swaps: Vec<SwapConfig>,
    /// How often meters are read, in milliseconds.
    pub every: PerMeter<u64>,
}

/// A metric of windows.
#[derive(Clone, Debug)]
pub struct Metric {
    /// Its name.
    pub name: String,
    /// What is known of it as a counter; `None` for any other metric.
    pub counter: Option<Counter>,
}

/// A counter.
#[derive(Clone, Debug)]
pub struct Counter {
    /// What the configuration says of it.
    pub config: CounterConfig,
    /// Its serial number's place in [`Plan::serials`].
    pub serial: Option<usize>,
}

/// A table of windows.
#[derive(Clone, Debug)]
pub struct WindowTable {
    /// Its name.
    pub name: String,
    /// How long a window is, in milliseconds; at least 1.
    pub interval: i64,
    /// The metrics' places in [`Plan::metrics`].
    pub metrics: Vec<usize>,
    /// How often every meter is expected to be read, in milliseconds, where the table says so.
    pub every: Option<u64>,
}

impl Plan {
    /// The plan of a configuration.
    #[must_use]
    pub fn new(config: &DerivedConfig) -> Self {
        let mut plan = Self {
            metrics: vec![],
            serials: vec![],
            tables: vec![],
            swaps: config.swaps.clone(),
            every: config.every.clone(),
        };
        plan.swaps.sort_by_key(|swap| swap.at);
        for window in &config.windows {
            let metrics = window
                .metrics
                .iter()
                .map(|name| plan.metric(name, config))
                .collect();
            plan.tables.push(WindowTable {
                name: window.table.clone(),
                interval: i64::try_from(window.interval_millis).unwrap_or(i64::MAX).max(1),
                metrics,
                every: window.expected_every_millis,
            });
        }
        plan
    }

    fn metric(&mut self, name: &str, config: &DerivedConfig) -> usize {
        if let Some(at) = self.metrics.iter().position(|metric| metric.name == name) {
            return at;
        }
        let counter = config.counters.iter().find(|counter| counter.metric == name);
        let counter = counter.map(|counter| Counter {
            serial: counter.serial.as_ref().map(|serial| self.serial(serial)),
            config: counter.clone(),
        });
        self.metrics.push(Metric {
            name: name.to_owned(),
            counter,
        });
        self.metrics.len() - 1
    }

    fn serial(&mut self, name: &str) -> usize {
        self.serials
            .iter()
            .position(|known| known == name)
            .unwrap_or_else(|| {
                self.serials.push(name.to_owned());
                self.serials.len() - 1
            })
    }

    /// The longest window, in milliseconds.
    #[must_use]
    pub fn longest(&self) -> i64 {
        self.tables.iter().map(|table| table.interval).max().unwrap_or(1)
    }

    /// The counters, with their places in [`Plan::metrics`].
    pub fn counters(&self) -> impl Iterator<Item = (usize, &Counter)> {
        self.metrics
            .iter()
            .enumerate()
            .filter_map(|(at, metric)| Some((at, metric.counter.as_ref()?)))
    }

    /// How many readings a window of a meter should have, where that is known.
    #[must_use]
    pub fn expected(&self, table: &WindowTable, meter: &str) -> Option<i32> {
        let every = table.every.or_else(|| self.every.get(meter))?;
        let readings = table.interval / i64::try_from(every).ok().filter(|every| *every > 0)?;
        i32::try_from(readings).ok().filter(|readings| *readings > 0)
    }
}
