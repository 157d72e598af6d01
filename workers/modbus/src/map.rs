//! A register map in the form that reading needs: checked, with every default filled in.
//!
//! [`CompiledMap::compile`] is the one way to get one, so that what follows (plans, decoding, the
//! simulator) need not check again. Its checks are those that JSON Schema cannot make.

use std::{sync::Arc, time::Duration};

use corrente_crds::profile::{Function, Kind, Order, RegisterMap, ValueType};

use corrente_record::Name;

use crate::{compile, decimal::Decimal, decode::Brief};

/// The values of a meter that are to be read, in the order of the map.
#[derive(Clone, Debug, PartialEq)]
pub struct CompiledMap {
    /// The values.
    pub values: Vec<CompiledValue>,
    /// What addresses count from.
    pub base: Base,
    /// What the meter allows in one read.
    pub limits: Limits,
    /// Every range that the whole map names, selected or not, sorted: a meter that refuses to read gaps
    /// answers for these.
    pub named: Vec<NamedRange>,
    /// What decoding looks at of each value, side by side: the values themselves are hundreds of bytes apart.
    pub(crate) briefs: Vec<Brief>,
}

/// What addresses count from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Base {
    /// Addresses are absolute.
    Absolute,
    /// Addresses count from the ID register of this SunSpec model, which [`crate::sunspec::Walk`] finds.
    SunspecModel(u16),
}

/// What a meter allows in one read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Most registers in one read, 1 to 125.
    pub max_registers: u16,
    /// Reads of an odd number of registers are refused.
    pub even_count: bool,
    /// Reads of registers that the map does not name are refused.
    pub whole_values: bool,
    /// The pause between an answer and the next request.
    pub pause: Duration,
}

/// Most registers in one read. Source: Modbus Application Protocol V1.1b3, 6.3 and 6.4.
pub const MAX_REGISTERS: u16 = 125;
/// Most coils or discrete inputs in one read. Source: Modbus Application Protocol V1.1b3, 6.1 and 6.2.
pub const MAX_BITS: u16 = 2000;

/// A range of a table that the map names: one value, or one scale factor.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NamedRange {
    /// The table.
    pub function: Function,
    /// The first address.
    pub start: u32,
    /// The address after the last.
    pub end: u32,
}

/// One value: where it is, and how its registers become a number.
#[derive(Clone, Debug, PartialEq)]
pub struct CompiledValue {
    /// The metric's name.
    pub name: Name,
    /// The table it is in.
    pub function: Function,
    /// Its first register or bit, counted from the map's base.
    pub address: u16,
    /// How many registers (or bits, in coils and discrete inputs) it takes.
    pub count: u16,
    /// How they are to be read.
    pub value_type: ValueType,
    /// The bit of a register that a `bool` is, 0 being the least significant.
    pub bit: Option<u8>,
    /// The order of the bytes in a register.
    pub byte_order: Order,
    /// The order of the registers of a number.
    pub word_order: Order,
    /// What the raw value is multiplied by; `None` for 1.
    pub scale: Option<Decimal>,
    /// What is added after scaling; `None` for 0.
    pub offset: Option<Decimal>,
    /// The address of the register that holds a power of ten to multiply with.
    pub scale_from: Option<u16>,
    /// The unit after scaling.
    pub unit: Option<Arc<str>>,
    /// What sort of value it is.
    pub kind: Kind,
    /// Raw values that mean "no value".
    pub invalid: Vec<Sentinel>,
    /// The group of values that are always read in one request.
    pub coherent: Option<Arc<str>>,
}

/// A raw value that means "no value": the raw value, masked, equals `value`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sentinel {
    /// The bits to compare.
    pub mask: u64,
    /// What they must be.
    pub value: u64,
}

/// What [`crate::decode()`] makes of a value. It follows from the declaration alone, never from a value, so
/// that columns can be declared before the first poll.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum OutputType {
    /// [`corrente_record::Value::Bool`].
    Bool,
    /// [`corrente_record::Value::Int`]: any integer type but `u64`, unscaled or scaled by a whole number.
    Int,
    /// [`corrente_record::Value::UInt`]: `u64`, unscaled or scaled by a positive whole number.
    UInt,
    /// [`corrente_record::Value::Float`]: `f32`, `f64`, and integers with a fractional scale, an offset
    /// or a scale factor of their own.
    Float,
    /// [`corrente_record::Value::Text`].
    Text,
}

/// Something wrong with a map.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MapProblem {
    /// The name of the register, or of the metric that was asked for; empty where it is the map itself.
    pub register: String,
    /// What is wrong and what to change.
    pub message: String,
}

impl CompiledMap {
    /// Checks a map and brings it into the form that reading needs. `metrics` names the values to read,
    /// in any order; all of them where it is empty.
    ///
    /// # Errors
    /// Everything that is wrong with the map, or with the names in `metrics`; not only the first.
    pub fn compile(map: &RegisterMap, metrics: &[String]) -> Result<Self, Vec<MapProblem>> {
        compile::compile(map, metrics)
    }

    /// The index of a value by its name.
    #[must_use]
    pub fn index_of(&self, name: &str) -> Option<usize> {
        self.values.iter().position(|value| &*value.name == name)
    }

    /// The names of the values, in their order.
    pub fn names(&self) -> impl ExactSizeIterator<Item = &Name> {
        self.briefs.iter().map(Brief::name)
    }

    /// How far the values reach from the base: the address after the last one, scale factors included.
    #[must_use]
    pub fn extent(&self) -> u32 {
        self.values
            .iter()
            .map(|value| value.range().end)
            .max()
            .unwrap_or(0)
    }
}

impl NamedRange {
    /// Whether the other lies within it.
    #[must_use]
    pub fn contains(&self, other: &Self) -> bool {
        self.function == other.function && self.start <= other.start && other.end <= self.end
    }

    /// Whether the two share an address.
    #[must_use]
    pub fn overlaps(&self, other: &Self) -> bool {
        self.function == other.function && self.start < other.end && other.start < self.end
    }
}

impl CompiledValue {
    /// What decoding makes of it.
    #[must_use]
    pub fn output(&self) -> OutputType {
        let whole = match self.scale {
            None => Some(1),
            Some(scale) => scale.as_integer(),
        };
        match (self.value_type, whole) {
            (ValueType::Bool, _) => OutputType::Bool,
            (ValueType::String, _) => OutputType::Text,
            (ValueType::F32 | ValueType::F64, _) | (_, None) => OutputType::Float,
            _ if self.offset.is_some() || self.scale_from.is_some() => OutputType::Float,
            (ValueType::U64, Some(scale)) if scale > 0 => OutputType::UInt,
            _ => OutputType::Int,
        }
    }

    /// Whether the raw number is the value: none means "no value", and nothing is multiplied or added.
    pub(crate) fn is_plain(&self) -> bool {
        self.scale.is_none() && self.offset.is_none() && self.scale_from.is_none() && self.invalid.is_empty()
    }

    /// The range that must come from one request: the value and its scale factor.
    #[must_use]
    pub fn range(&self) -> NamedRange {
        let (start, end) = (
            u32::from(self.address),
            u32::from(self.address) + u32::from(self.count),
        );
        let factor = self.scale_from.map_or(start, u32::from);
        NamedRange {
            function: self.function,
            start: start.min(factor),
            end: if self.scale_from.is_some() {
                end.max(factor + 1)
            } else {
                end
            },
        }
    }
}

/// Whether a table holds bits rather than registers.
#[must_use]
pub fn is_bits(function: Function) -> bool {
    matches!(function, Function::Coil | Function::Discrete)
}

/// The name of a type as a manifest writes it.
pub(crate) fn type_name(value_type: ValueType) -> &'static str {
    match value_type {
        ValueType::Bool => "bool",
        ValueType::U16 => "u16",
        ValueType::I16 => "i16",
        ValueType::U32 => "u32",
        ValueType::I32 => "i32",
        ValueType::U64 => "u64",
        ValueType::I64 => "i64",
        ValueType::F32 => "f32",
        ValueType::F64 => "f64",
        ValueType::String => "string",
    }
}

/// The bits of a number of this type; `None` for `bool` and `string`.
pub(crate) fn type_bits(value_type: ValueType) -> Option<u32> {
    match value_type {
        ValueType::U16 | ValueType::I16 => Some(16),
        ValueType::U32 | ValueType::I32 | ValueType::F32 => Some(32),
        ValueType::U64 | ValueType::I64 | ValueType::F64 => Some(64),
        ValueType::Bool | ValueType::String => None,
    }
}
