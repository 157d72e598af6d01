//! Values become registers: the inverse of [`crate::decode()`], for the simulator and for tests.
//!
//! A value that lies between two raw values becomes the nearer one; one beyond its type becomes the type's
//! last, as a meter's display stops at 9999.

use std::collections::BTreeMap;

use corrente_crds::profile::{Function, Order, ValueType};
use corrente_record::Value;

use crate::{
    decimal::Decimal,
    decode::in_order,
    map::{CompiledMap, CompiledValue},
};

/// Why a value cannot be written into registers.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum EncodeError {
    /// The index is not one of the map's.
    #[error("the map has no value number {0}")]
    NoSuchValue(usize),
    /// Text for a number, a number for a bool, and the like.
    #[error("the value is not of the register's type")]
    WrongType,
    /// The scale-factor register was not set, so the raw value is not known.
    #[error("the scale factor at address {0} is not set")]
    NoScaleFactor(u16),
}

/// A window onto one of a device's tables: the registers (or bits) of one answer. What is written outside
/// of it is left out, so that one window is filled by encoding whatever may lie in it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RegisterImage {
    function: Function,
    address: u16,
    words: Vec<u16>,
    factors: BTreeMap<u16, i16>,
}

impl RegisterImage {
    /// A window of `count` registers (or bits) from `address`, all zero. Addresses count from the map's base.
    #[must_use]
    pub fn new(function: Function, address: u16, count: u16) -> Self {
        Self {
            function,
            address,
            words: vec![0; usize::from(count)],
            factors: BTreeMap::new(),
        }
    }

    /// The registers; for coils and discrete inputs one word, 0 or 1, for each.
    #[must_use]
    pub fn words(&self) -> &[u16] {
        &self.words
    }

    /// The coils or discrete inputs.
    #[must_use]
    pub fn bits(&self) -> Vec<bool> {
        self.words.iter().map(|word| *word != 0).collect()
    }

    /// Writes one register, where it lies in the window.
    pub fn set_word(&mut self, address: u16, word: u16) {
        if let Some(slot) = self.slot(address) {
            *slot = word;
        }
    }

    /// Sets the power of ten that values scaled by the register at `address` are encoded with, and writes
    /// it where it lies in the window. It comes before those values.
    pub fn set_scale_factor(&mut self, address: u16, byte_order: Order, factor: i16) {
        self.factors.insert(address, factor);
        self.set_word(address, in_order(factor.cast_unsigned(), byte_order));
    }

    fn slot(&mut self, address: u16) -> Option<&mut u16> {
        let at = address.checked_sub(self.address)?;
        self.words.get_mut(usize::from(at))
    }
}

/// Writes a value into the window, as far as it lies in it.
///
/// # Errors
/// Where the value is not of the register's type, or its scale factor was not set before.
pub fn encode(
    map: &CompiledMap,
    index: usize,
    value: &Value,
    registers: &mut RegisterImage,
) -> Result<(), EncodeError> {
    let target = map.values.get(index).ok_or(EncodeError::NoSuchValue(index))?;
    if target.function != registers.function {
        return Ok(());
    }
    match (target.value_type, value) {
        (ValueType::Bool, Value::Bool(bit)) => {
            // Several bits share a register, so the others stay as they are.
            let mask = in_order(1 << target.bit.unwrap_or(0), target.byte_order);
            if let Some(slot) = registers.slot(target.address) {
                *slot = if *bit { *slot | mask } else { *slot & !mask };
            }
            Ok(())
        }
        (ValueType::String, Value::Text(text)) => {
            let mut bytes = text.bytes();
            for address in addresses(target) {
                let pair = [bytes.next().unwrap_or(0), bytes.next().unwrap_or(0)];
                registers.set_word(address, in_order(u16::from_be_bytes(pair), target.byte_order));
            }
            Ok(())
        }
        (ValueType::Bool | ValueType::String, _) | (_, Value::Bool(_) | Value::Text(_)) => {
            Err(EncodeError::WrongType)
        }
        _ => {
            let raw = raw(target, value, registers)?;
            let words = (0..target.count).map(|i| (raw >> (16 * u32::from(i))) as u16);
            let mut addresses = addresses(target).collect::<Vec<_>>();
            // Words come least significant first.
            if target.word_order == Order::Big {
                addresses.reverse();
            }
            for (address, word) in addresses.into_iter().zip(words) {
                registers.set_word(address, in_order(word, target.byte_order));
            }
            Ok(())
        }
    }
}

fn addresses(value: &CompiledValue) -> impl Iterator<Item = u16> {
    // A compiled value ends at the last address, so nothing wraps.
    (0..value.count).map(|i| value.address.wrapping_add(i))
}

fn raw(target: &CompiledValue, value: &Value, registers: &RegisterImage) -> Result<u64, EncodeError> {
    let number = match value {
        Value::Int(v) => Some(Decimal::new(i128::from(*v), 0)),
        Value::UInt(v) => Some(Decimal::new(i128::from(*v), 0)),
        Value::Float(v) => Decimal::from_f64(*v),
        Value::Bool(_) | Value::Text(_) => return Err(EncodeError::WrongType),
    };
    let factor = match target.scale_from {
        None => 0,
        Some(address) => *registers
            .factors
            .get(&address)
            .ok_or(EncodeError::NoScaleFactor(address))?,
    };
    let Some(number) = number else {
        // NaN and the infinities: what a float says as it is, and an integer cannot.
        let special = value.as_f64().unwrap_or(f64::NAN);
        return match target.value_type {
            ValueType::F32 => Ok(u64::from((special as f32).to_bits())),
            ValueType::F64 => Ok(special.to_bits()),
            _ => Err(EncodeError::WrongType),
        };
    };
    let unit = Decimal::new(1, 0);
    let divisor = target.scale.unwrap_or(unit).shifted(i32::from(factor));
    let shifted = match target.offset {
        None => number,
        // As in decoding: where the exact difference needs too many digits, the offset is lost in it.
        Some(offset) => number.plus(offset.negated()).unwrap_or(number),
    };
    let (least, most): (i128, i128) = match target.value_type {
        ValueType::F32 => {
            let single = if divisor == unit {
                shifted.to_f32()
            } else {
                shifted.divided(divisor).and_then(Decimal::to_f32)
            };
            let end = if shifted.mantissa() < 0 {
                f32::MIN
            } else {
                f32::MAX
            };
            return Ok(u64::from(single.unwrap_or(end).to_bits()));
        }
        ValueType::F64 => {
            let double = if divisor == unit {
                shifted.to_f64()
            } else {
                shifted.divided(divisor).and_then(Decimal::to_f64)
            };
            let end = if shifted.mantissa() < 0 {
                f64::MIN
            } else {
                f64::MAX
            };
            return Ok(double.unwrap_or(end).to_bits());
        }
        ValueType::I16 => (i16::MIN.into(), i16::MAX.into()),
        ValueType::I32 => (i32::MIN.into(), i32::MAX.into()),
        ValueType::I64 => (i64::MIN.into(), i64::MAX.into()),
        ValueType::U16 => (0, u16::MAX.into()),
        ValueType::U32 => (0, u32::MAX.into()),
        ValueType::U64 | ValueType::Bool | ValueType::String => (0, u64::MAX.into()),
    };
    let end = if (shifted.mantissa() < 0) == (divisor.mantissa() < 0) {
        most
    } else {
        least
    };
    let raw = shifted
        .divided_to_integer(divisor)
        .unwrap_or(end)
        .clamp(least, most);
    // Two's complement of the type's width: the bits above are cut off when words are taken.
    Ok(raw as u64)
}
