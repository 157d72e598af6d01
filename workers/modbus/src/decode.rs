//! An answer's registers become values.
//!
//! 1. The registers of a value are put in order: bytes within each, then the registers themselves.
//! 2. The raw value is compared with the sentinels that mean "no value".
//! 3. It is scaled as decimals are, exactly, and rounded once; see [`crate::decimal`].
//!
//! What cannot be a value is a [`BadValue`] with a reason, and costs that value alone.

use corrente_crds::profile::{Order, ValueType};
use corrente_record::{Name, Value};

use crate::{
    decimal::Decimal,
    map::{CompiledMap, CompiledValue, OutputType},
    plan::ReadRequest,
};

/// Why a value could not be had from registers that were read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadValue {
    /// A NaN.
    #[error("not a number")]
    NotANumber,
    /// An infinity.
    #[error("infinite")]
    Infinite,
    /// A raw value that the map declares invalid.
    #[error("the meter says: no value")]
    NoValue,
    /// A scale factor of 0x8000, which is SunSpec's "not implemented".
    #[error("scale factor is not available")]
    NoScaleFactor,
    /// A scale factor beyond -10 to 10.
    #[error("scale factor {0} is out of range")]
    ScaleFactorRange(i16),
    /// The scaled value is beyond 64 bits, or beyond the doubles.
    #[error("does not fit")]
    DoesNotFit,
    /// Bytes that are not printable UTF-8.
    #[error("not text")]
    NotText,
    /// The answer holds fewer registers than were asked for.
    #[error("the answer is too short")]
    ShortAnswer,
}

/// What a request was answered with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer<'a> {
    /// Holding or input registers.
    Words(&'a [u16]),
    /// Coils or discrete inputs; more of them than were asked for is fine.
    Bits(&'a [bool]),
}

impl<'a> From<&'a [u16]> for Answer<'a> {
    fn from(words: &'a [u16]) -> Self {
        Self::Words(words)
    }
}

impl<'a> From<&'a Vec<u16>> for Answer<'a> {
    fn from(words: &'a Vec<u16>) -> Self {
        Self::Words(words)
    }
}

impl<'a> From<&'a [bool]> for Answer<'a> {
    fn from(bits: &'a [bool]) -> Self {
        Self::Bits(bits)
    }
}

impl<'a> From<&'a Vec<bool>> for Answer<'a> {
    fn from(bits: &'a Vec<bool>) -> Self {
        Self::Bits(bits)
    }
}

/// Decodes the values of one request: calls `out` once for each of `request.values`, with its index in the
/// map. `map` must be the one that the request was planned for.
pub fn decode<'a>(
    map: &CompiledMap,
    request: &ReadRequest,
    answer: impl Into<Answer<'a>>,
    out: &mut impl FnMut(usize, Result<Value, BadValue>),
) {
    let answer = answer.into();
    let start = request.address.wrapping_sub(request.base);
    let briefs = request
        .values
        .iter()
        .filter_map(|&index| Some((index, map.briefs.get(index)?)));
    let at = |brief: &Brief| usize::from(brief.address.wrapping_sub(start));
    match answer {
        Answer::Bits(bits) => {
            for (index, brief) in briefs {
                let bit = bits.get(at(brief)).copied().map(Value::Bool);
                out(index, bit.ok_or(BadValue::ShortAnswer));
            }
        }
        Answer::Words(words) => {
            for (index, brief) in briefs {
                let at = at(brief);
                if let Some(whole) = brief.plain(words, at) {
                    out(index, Ok(Value::Int(whole)));
                } else if let Some(value) = map.values.get(index) {
                    out(index, one(value, words, at, start));
                }
            }
        }
    }
}

/// What is needed of most values.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Brief {
    name: Name,
    address: u16,
    plain: Plain,
}

/// A whole number that is the value as it stands: nothing to compare, to scale or to add. The first register is
/// the most significant, unless it is `Swapped`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Plain {
    /// It is not.
    No,
    U16,
    I16,
    U32,
    U32Swapped,
    I32,
    I32Swapped,
}

impl Brief {
    pub fn of(value: &CompiledValue) -> Self {
        let plain = match (value.value_type, value.word_order) {
            _ if !value.is_plain() || value.byte_order == Order::Little => Plain::No,
            (ValueType::U16, _) => Plain::U16,
            (ValueType::I16, _) => Plain::I16,
            (ValueType::U32, Order::Big) => Plain::U32,
            (ValueType::U32, Order::Little) => Plain::U32Swapped,
            (ValueType::I32, Order::Big) => Plain::I32,
            (ValueType::I32, Order::Little) => Plain::I32Swapped,
            _ => Plain::No,
        };
        Self {
            name: value.name.clone(),
            address: value.address,
            plain,
        }
    }

    pub fn name(&self) -> &Name {
        &self.name
    }

    /// The value whose registers begin at `at`, where it is a plain one and they are there.
    fn plain(&self, words: &[u16], at: usize) -> Option<i64> {
        let first = *words.get(at)?;
        let both = |swapped: bool| {
            let second = *words.get(at + 1)?;
            let (high, low) = if swapped { (second, first) } else { (first, second) };
            Some(u32::from(high) << 16 | u32::from(low))
        };
        match self.plain {
            Plain::No => None,
            Plain::U16 => Some(i64::from(first)),
            Plain::I16 => Some(i64::from(first.cast_signed())),
            Plain::U32 => both(false).map(i64::from),
            Plain::U32Swapped => both(true).map(i64::from),
            Plain::I32 => both(false).map(|raw| i64::from(raw.cast_signed())),
            Plain::I32Swapped => both(true).map(|raw| i64::from(raw.cast_signed())),
        }
    }
}

/// Decodes one value whose registers begin at `at` in `words`, which begin at address `start`.
fn one(value: &CompiledValue, words: &[u16], at: usize, start: u16) -> Result<Value, BadValue> {
    let own = at
        .checked_add(usize::from(value.count))
        .and_then(|end| words.get(at..end))
        .ok_or(BadValue::ShortAnswer)?;
    match value.value_type {
        ValueType::String => return text(value, own),
        ValueType::Bool => {
            let word = own.first().ok_or(BadValue::ShortAnswer)?;
            let bit = value.bit.unwrap_or(0);
            return Ok(Value::Bool(in_order(*word, value.byte_order) >> bit & 1 == 1));
        }
        _ => {}
    }
    let raw = raw(value, own);
    if value
        .invalid
        .iter()
        .any(|sentinel| raw & sentinel.mask == sentinel.value)
    {
        return Err(BadValue::NoValue);
    }
    let number = number(value.value_type, raw)?;
    let scaled = match value.scale {
        Some(scale) => number.times(scale).ok_or(BadValue::DoesNotFit)?,
        None => number,
    };
    match value.output() {
        OutputType::UInt => {
            let whole = scaled.as_integer().ok_or(BadValue::DoesNotFit)?;
            u64::try_from(whole)
                .map(Value::UInt)
                .map_err(|_| BadValue::DoesNotFit)
        }
        OutputType::Int => {
            let whole = scaled.as_integer().ok_or(BadValue::DoesNotFit)?;
            i64::try_from(whole)
                .map(Value::Int)
                .map_err(|_| BadValue::DoesNotFit)
        }
        _ => {
            let factor = match value.scale_from {
                None => 0,
                Some(address) => scale_factor(value, words, address.wrapping_sub(start))?,
            };
            float(scaled.shifted(factor), value.offset).map(Value::Float)
        }
    }
}

/// The exact sum where 38 digits hold it. Where they do not, the two differ by so many orders of magnitude
/// that the nearest doubles are added instead.
fn float(scaled: Decimal, offset: Option<Decimal>) -> Result<f64, BadValue> {
    let Some(offset) = offset else {
        return scaled.to_f64().ok_or(BadValue::DoesNotFit);
    };
    match scaled.plus(offset) {
        Some(sum) => sum.to_f64().ok_or(BadValue::DoesNotFit),
        None => scaled
            .to_f64()
            .zip(offset.to_f64())
            .map(|(scaled, offset)| scaled + offset)
            .filter(|sum| sum.is_finite())
            .ok_or(BadValue::DoesNotFit),
    }
}

/// The power of ten in a scale-factor register, -10 to 10.
/// Source: SunSpec Information Model Specification, `sunssf`: 0x8000 is "not implemented".
fn scale_factor(value: &CompiledValue, words: &[u16], at: u16) -> Result<i32, BadValue> {
    let word = words.get(usize::from(at)).ok_or(BadValue::ShortAnswer)?;
    match in_order(*word, value.byte_order).cast_signed() {
        i16::MIN => Err(BadValue::NoScaleFactor),
        factor @ -10..=10 => Ok(i32::from(factor)),
        factor => Err(BadValue::ScaleFactorRange(factor)),
    }
}

/// A register's bytes, most significant first.
pub(crate) fn in_order(word: u16, order: Order) -> u16 {
    match order {
        Order::Big => word,
        Order::Little => word.swap_bytes(),
    }
}

fn raw(value: &CompiledValue, words: &[u16]) -> u64 {
    let join = |raw: u64, word: &u16| raw << 16 | u64::from(in_order(*word, value.byte_order));
    match value.word_order {
        Order::Big => words.iter().fold(0, join),
        Order::Little => words.iter().rev().fold(0, join),
    }
}

fn number(value_type: ValueType, raw: u64) -> Result<Decimal, BadValue> {
    let whole = |number: i128| Ok(Decimal::new(number, 0));
    match value_type {
        ValueType::I16 => whole(i128::from((raw as u16).cast_signed())),
        ValueType::I32 => whole(i128::from((raw as u32).cast_signed())),
        ValueType::I64 => whole(i128::from(raw.cast_signed())),
        ValueType::F32 => {
            let number = f32::from_bits(raw as u32);
            Decimal::from_f32(number).ok_or(not_finite(number.is_nan()))
        }
        ValueType::F64 => {
            let number = f64::from_bits(raw);
            Decimal::from_f64(number).ok_or(not_finite(number.is_nan()))
        }
        ValueType::U16 | ValueType::U32 | ValueType::U64 | ValueType::Bool | ValueType::String => {
            whole(i128::from(raw))
        }
    }
}

fn not_finite(nan: bool) -> BadValue {
    if nan {
        BadValue::NotANumber
    } else {
        BadValue::Infinite
    }
}

/// Text without its padding: NULs and spaces at the end, spaces before. Registers are in their own order,
/// since word order is a matter of numbers. What is not printable, a NUL in the middle included, is bad
/// rather than cut, since it mostly shows that the map is wrong.
fn text(value: &CompiledValue, words: &[u16]) -> Result<Value, BadValue> {
    let bytes: Vec<u8> = words
        .iter()
        .flat_map(|word| in_order(*word, value.byte_order).to_be_bytes())
        .collect();
    let text = std::str::from_utf8(&bytes).map_err(|_| BadValue::NotText)?;
    let text = text.trim_end_matches(['\0', ' ']).trim_start_matches(' ');
    if text.chars().any(char::is_control) {
        return Err(BadValue::NotText);
    }
    Ok(Value::Text(text.to_owned()))
}
