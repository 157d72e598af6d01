//! One meter: answers a read with registers, or refuses it as its profile says the meter would.
//!
//! 1. What the register map fixes is a [`Layout`], made once for all meters of a model: which addresses
//!    there are, what each metric measures, which scale factors its registers hold.
//! 2. A [`Device`] is a layout with a name and a load. It computes the values of a read when it is read.

use std::{collections::BTreeMap, ops::Range, sync::Arc};

use corrente_crds::profile::{Function, Kind, Order, RegisterMap, ValueType};
use corrente_modbus::{
    Base, CompiledMap, CompiledValue, MapProblem, RegisterImage,
    decimal::Decimal,
    encode,
    map::{MAX_BITS, is_bits},
};
use corrente_record::{Timestamp, Value};

use crate::{
    curve::{Curve, Grid, Load, Phases},
    faults::meter::{Changes, Register},
    history::History,
    quantity::{Quantity, per_unit, phase_of},
    sunspec::Chain,
};

/// Why a read is refused: the Modbus exception.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// Exception 02: an address outside of the map, or a gap in a meter that does not read gaps.
    IllegalDataAddress,
    /// Exception 03: more registers than the meter allows, an odd number where it wants an even one, or none.
    IllegalDataValue,
}

/// What a register map fixes for every meter of a model.
#[derive(Clone, Debug)]
pub struct Layout {
    map: CompiledMap,
    metrics: Vec<Metric>,
    /// The scale-factor registers: the byte order and the power of ten of each.
    factors: BTreeMap<u16, (Order, i16)>,
    /// The addresses of each table, from the first that is named to the last.
    tables: BTreeMap<Function, Range<u32>>,
    phases: Phases,
    chain: Option<Chain>,
}

#[derive(Clone, Copy, Debug)]
struct Metric {
    quantity: Quantity,
    phase: Option<usize>,
    per_unit: f64,
}

impl Layout {
    /// The layout of a register map; `model` is what a SunSpec meter calls itself.
    ///
    /// # Errors
    /// What is wrong with the map.
    pub fn new(map: &RegisterMap, model: &str) -> Result<Self, Vec<MapProblem>> {
        let map = CompiledMap::compile(map, &[])?;
        let metrics: Vec<Metric> = map
            .values
            .iter()
            .map(|value| Metric {
                quantity: Quantity::of(&value.name, value.unit.as_deref(), value.kind),
                phase: phase_of(&value.name),
                per_unit: per_unit(value.unit.as_deref()),
            })
            .collect();
        let mut factors = BTreeMap::new();
        for value in &map.values {
            if let Some(address) = value.scale_from {
                factors
                    .entry(address)
                    .or_insert((value.byte_order, power_of_ten(value.unit.as_deref())));
            }
        }
        let mut tables: BTreeMap<Function, Range<u32>> = BTreeMap::new();
        for named in &map.named {
            let table = tables.entry(named.function).or_insert(named.start..named.end);
            table.start = table.start.min(named.start);
            table.end = table.end.max(named.end);
        }
        if map.limits.even_count {
            // A read of an odd value takes one more register along, on either side.
            for (function, table) in &mut tables {
                if !is_bits(*function) {
                    *table = table.start.saturating_sub(1)..(table.end + 1).min(65536);
                }
            }
        }
        let second_phase = map.values.iter().any(|value| value.name.contains("l2"));
        let first_phase = map.values.iter().any(|value| value.name.contains("l1"));
        let phases = if first_phase && !second_phase {
            Phases::One
        } else {
            Phases::Three
        };
        let chain = match map.base {
            Base::Absolute => None,
            Base::SunspecModel(number) => Some(Chain::new(number, map.extent(), model)),
        };
        Ok(Self {
            map,
            metrics,
            factors,
            tables,
            phases,
            chain,
        })
    }

    /// The map behind it: every value, whatever a meter selects of them.
    #[must_use]
    pub fn map(&self) -> &CompiledMap {
        &self.map
    }

    /// The registers of a counter.
    fn register(&self, value: &CompiledValue) -> Register {
        let scale = value.scale.and_then(Decimal::to_f64).unwrap_or(1.0);
        let factor = value.scale_from.and_then(|address| self.factors.get(&address));
        Register {
            value_type: value.value_type,
            step: scale * 10_f64.powi(factor.map_or(0, |(_, power)| i32::from(*power))),
        }
    }

    /// Whether a read of this shape is answered at all.
    fn check(&self, function: Function, address: u16, count: u16) -> Result<(), Refusal> {
        let limits = &self.map.limits;
        let most = if is_bits(function) {
            MAX_BITS
        } else {
            limits.max_registers
        };
        if count == 0 || count > most || (limits.even_count && !is_bits(function) && count % 2 == 1) {
            return Err(Refusal::IllegalDataValue);
        }
        let read = u32::from(address)..u32::from(address) + u32::from(count);
        let inside = match &self.chain {
            Some(chain) => function == Function::Holding && chain.covers(&read),
            None => {
                let table = self.tables.get(&function);
                table.is_some_and(|table| table.start <= read.start && read.end <= table.end)
                    && (!limits.whole_values || self.is_whole(function, &read))
            }
        };
        inside.then_some(()).ok_or(Refusal::IllegalDataAddress)
    }

    /// Whether a read covers named values only, and none in part.
    fn is_whole(&self, function: Function, read: &Range<u32>) -> bool {
        let mut covered = read.start;
        for named in self.map.named.iter().filter(|named| named.function == function) {
            let cut = |at: u32| named.start < at && at < named.end;
            if cut(read.start) || cut(read.end) {
                return false;
            }
            if named.start <= covered {
                covered = covered.max(named.end);
            }
        }
        covered >= read.end
    }
}

/// The power of ten that a scale-factor register holds: fine enough to see, coarse enough that a 16-bit
/// value holds what a plant may draw.
fn power_of_ten(unit: Option<&str>) -> i16 {
    match unit {
        Some("V" | "%") => -1,
        Some("A" | "Hz") => -2,
        Some("1") => -3,
        Some("W" | "var" | "VA") => 1,
        _ => 0,
    }
}

/// One meter.
#[derive(Clone, Debug)]
pub struct Device {
    name: String,
    layout: Arc<Layout>,
    curve: Curve,
    history: Option<Arc<History>>,
    changes: Changes,
}

impl Device {
    /// A meter of this name. Where there is a history, what it says goes before the load curve.
    #[must_use]
    pub fn new(name: &str, layout: Arc<Layout>, grid: Grid, history: Option<Arc<History>>) -> Self {
        Self {
            name: name.to_owned(),
            curve: Curve::new(name, layout.phases, grid),
            layout,
            history,
            changes: Changes::default(),
        }
    }

    /// Its name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The map that it is read by.
    #[must_use]
    pub fn map(&self) -> &CompiledMap {
        self.layout.map()
    }

    /// Lets faults change what it measures.
    pub fn change(&mut self, changes: Changes) {
        self.changes = changes;
    }

    /// The registers (or bits, as 0 and 1) of a read at a time.
    ///
    /// # Errors
    /// Where the meter refuses the read.
    pub fn read(
        &self,
        function: Function,
        address: u16,
        count: u16,
        time: Timestamp,
    ) -> Result<Vec<u16>, Refusal> {
        self.layout.check(function, address, count)?;
        match &self.layout.chain {
            None => Ok(self.window(function, address, count, time)),
            Some(chain) => {
                let serial = self.serial(time);
                Ok(chain.read(address, count, &serial, |address, count| {
                    self.window(function, address, count, time)
                }))
            }
        }
    }

    /// The registers of a window, gaps being zero; addresses count from the map's base.
    fn window(&self, function: Function, address: u16, count: u16, time: Timestamp) -> Vec<u16> {
        let mut image = RegisterImage::new(function, address, count);
        for (factor, (byte_order, power)) in &self.layout.factors {
            image.set_scale_factor(*factor, *byte_order, *power);
        }
        let load = self.curve.at(time);
        let read = u32::from(address)..u32::from(address) + u32::from(count);
        for (index, value) in self.layout.map.values.iter().enumerate() {
            let start = u32::from(value.address);
            let end = start + u32::from(value.count);
            if value.function == function && start < read.end && read.start < end {
                let value = self.value(index, &load, time);
                // A history may hold text for a number; that register then stays 0.
                if encode(&self.layout.map, index, &value, &mut image).is_err() {
                    tracing::debug!(
                        meter = self.name,
                        index,
                        ?value,
                        "the value does not fit its register"
                    );
                }
            }
        }
        image.words().to_vec()
    }

    /// What a value of the map is at a time, faults included.
    fn value(&self, index: usize, load: &Load, time: Timestamp) -> Value {
        let value = self.plain(index, load, time);
        let Some(target) = self.layout.map.values.get(index) else {
            return value;
        };
        if self.changes.is_none() || target.kind != Kind::Counter {
            return value;
        }
        let Some(now) = value.as_f64() else { return value };
        let at = |then: Timestamp| {
            if then == time {
                return now;
            }
            let then = self.plain(index, &self.curve.at(then), then);
            then.as_f64().unwrap_or(now)
        };
        let register = self.layout.register(target);
        Value::Float(
            self.changes
                .counter(&target.name, register, self.curve.seed(), time, at),
        )
    }

    /// What a value of the map is at a time by itself.
    fn plain(&self, index: usize, load: &Load, time: Timestamp) -> Value {
        let (Some(target), Some(metric)) =
            (self.layout.map.values.get(index), self.layout.metrics.get(index))
        else {
            return Value::Int(0);
        };
        let recorded = self
            .history
            .as_ref()
            .and_then(|history| history.value(&self.name, &target.name, target.kind, time));
        match (target.value_type, recorded) {
            (ValueType::String, Some(Value::Text(text))) => Value::Text(text),
            (ValueType::String, Some(other)) => Value::Text(other.to_string()),
            (ValueType::String, None) => Value::Text(self.serial(time)),
            (ValueType::Bool, Some(value)) => match value.as_f64() {
                Some(number) => Value::Bool(number != 0.0),
                None => value,
            },
            (ValueType::Bool, None) => Value::Bool(true),
            (_, Some(value)) => value,
            (_, None) => Value::Float(metric.quantity.measure(load, time, metric.phase) * metric.per_unit),
        }
    }

    /// A serial number of eight digits, the meter's own; another one once the meter was swapped.
    #[must_use]
    pub fn serial(&self, time: Timestamp) -> String {
        format!(
            "{:08}",
            self.changes.identity(self.curve.seed(), time) % 100_000_000
        )
    }
}
