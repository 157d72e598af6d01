//! `MeterProfile`: the register map of a meter model.

use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{
    Duration,
    common::{FIELD_NAME, FIELD_NAME_LENGTH, NOT_RESERVED, NOT_RESERVED_MESSAGE},
    duration::AT_MOST_A_MINUTE,
};

/// A meter model's register map, written once and used by every MeterPoller that names it.
#[derive(CustomResource, Serialize, Deserialize, KubeSchema, Clone, Debug, PartialEq, Default)]
#[kube(
    group = "corrente.dev",
    version = "v1alpha1",
    kind = "MeterProfile",
    plural = "meterprofiles",
    shortname = "mprof",
    category = "corrente",
    derive = "PartialEq",
    doc = "A meter model's register map, written once and used by every MeterPoller that names it.",
    printcolumn(name = "Vendor", type_ = "string", json_path = ".spec.vendor"),
    printcolumn(name = "Model", type_ = "string", json_path = ".spec.model"),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp")
)]
#[serde(rename_all = "camelCase")]
pub struct MeterProfileSpec {
    /// Who makes the meter.
    #[schemars(length(min = 1, max = 128))]
    pub vendor: String,
    /// The models that the map holds for.
    #[schemars(length(min = 1, max = 256))]
    pub model: String,
    /// Where the facts of the map come from: a manual with its revision, or a published map.
    #[schemars(length(min = 1, max = 16), inner(length(min = 1, max = 512)))]
    pub source: Vec<String>,
    /// What a person should know about the map: what was checked, what the source leaves open.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 1024))]
    pub notes: Option<String>,
    /// The map itself.
    #[serde(flatten)]
    pub map: RegisterMap,
}

/// A register map: where each value of a meter is, and how its registers become a number.
#[derive(Serialize, Deserialize, KubeSchema, Clone, Debug, PartialEq, Default)]
#[serde(rename_all = "camelCase")]
pub struct RegisterMap {
    /// What addresses count from.
    #[serde(default)]
    pub base: Base,
    /// Order of the two bytes of a register; `big` is what the Modbus specification says.
    #[serde(default)]
    pub byte_order: Order,
    /// Order of the registers of a value: `big` puts the most significant register first.
    #[serde(default)]
    pub word_order: Order,
    /// What the meter allows in one read.
    #[serde(default)]
    pub limits: Limits,
    /// Raw values that mean "no value", per type.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16))]
    pub invalid: Vec<Invalid>,
    /// The values to read.
    #[schemars(length(min = 1, max = 512))]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["name".into()]))]
    pub registers: Vec<Register>,
}

/// What addresses count from.
#[derive(Serialize, Deserialize, KubeSchema, Clone, Debug, PartialEq, Eq, Default)]
#[serde(rename_all = "camelCase")]
pub struct Base {
    /// The number of a SunSpec model, such as 203. Addresses then count from the model's ID register,
    /// found by walking the chain of models. Without it addresses are absolute.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 65534))]
    pub sunspec_model: Option<i32>,
}

/// Byte or word order.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Copy, Debug, PartialEq, Eq, Default)]
#[serde(rename_all = "lowercase")]
pub enum Order {
    /// Most significant first.
    #[default]
    Big,
    /// Least significant first.
    Little,
}

/// What a meter allows in one read.
#[derive(Serialize, Deserialize, KubeSchema, Clone, Copy, Debug, PartialEq, Eq, Default)]
#[serde(rename_all = "camelCase")]
pub struct Limits {
    /// Most registers in one read; the protocol itself allows 125.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 125))]
    pub max_registers_per_read: Option<i32>,
    /// The meter refuses reads of an odd number of registers.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub even_register_count: bool,
    /// The meter refuses reads of registers that its map does not name: gaps are never read.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub whole_value_reads: bool,
    /// The pause the meter wants between an answer and the next request; at most a minute.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[x_kube(validation = Rule::new(AT_MOST_A_MINUTE).message("the pause is at most 1m: write a shorter one"))]
    pub inter_request_delay: Option<Duration>,
}

/// A raw value that means "no value". NaN and the infinities need none.
#[derive(Serialize, Deserialize, KubeSchema, Clone, Debug, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("!(self.type in ['bool', 'string'])")
    .message("invalid is for numbers: write the type of a number, or remove the entry"))]
#[x_kube(validation = Rule::new(FITS_ITS_TYPE)
    .message("value and mask have at most 4 hexadecimal digits for 16 bits, 8 for 32 bits, 16 for 64 bits"))]
pub struct Invalid {
    /// The type of the registers it holds for.
    #[serde(rename = "type")]
    pub value_type: ValueType,
    /// The raw value in hexadecimal, such as `0x8000`.
    #[schemars(length(max = 18), regex(pattern = r"^0x[0-9A-Fa-f]{1,16}$"))]
    pub value: String,
    /// The bits to compare, in hexadecimal; all of them by default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 18), regex(pattern = r"^0x[0-9A-Fa-f]{1,16}$"))]
    pub mask: Option<String>,
}

/// CEL: the value and the mask of an [`Invalid`] are no wider than its type.
const FITS_ITS_TYPE: &str = "self.type in ['u16', 'i16'] ? size(self.value) <= 6 && (!has(self.mask) || size(self.mask) <= 6) \
     : self.type in ['u32', 'i32', 'f32'] ? size(self.value) <= 10 && (!has(self.mask) || size(self.mask) <= 10) : true";

/// CEL: the last register of a [`Register`] is within the table.
const WITHIN_THE_TABLE: &str = "self.address + (self.type in ['u32', 'i32', 'f32'] ? 2 \
     : self.type in ['u64', 'i64', 'f64'] ? 4 : self.type == 'string' && has(self.length) ? self.length : 1) <= 65536";

// In the rules below, `__function__` is how CEL spells a field named `function`, which is a word of its own.

/// One value of a meter: raw x `scale` x 10^`scaleFrom` + `offset`.
#[derive(Serialize, Deserialize, KubeSchema, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("self.type == 'bool' || self.__function__ in ['holding', 'input']")
    .message("coils and discrete inputs are bits: write type bool, or function holding or input"))]
#[x_kube(validation = Rule::new("self.type != 'string' || has(self.length)")
    .message("a string needs length: the number of registers it takes, two characters each"))]
#[x_kube(validation = Rule::new("self.type == 'string' || !has(self.length)")
    .message("length is for type string alone: remove it"))]
#[x_kube(validation = Rule::new("self.type != 'bool' || !(self.__function__ in ['holding', 'input']) || has(self.bit)")
    .message("a bool in a holding or input register needs bit: 0 for the least significant to 15"))]
#[x_kube(validation = Rule::new("!has(self.bit) || (self.type == 'bool' && self.__function__ in ['holding', 'input'])")
    .message("bit is for type bool in a holding or input register alone: remove it"))]
#[x_kube(validation = Rule::new(WITHIN_THE_TABLE)
    .message("the value ends beyond address 65535, the last there is: correct address, type or length"))]
#[x_kube(validation = Rule::new("!(self.type in ['bool', 'string']) || !(has(self.scale) || has(self.offset) || has(self.scaleFrom) || has(self.wordOrder))")
    .message("scale, scaleFrom, offset and wordOrder are for numbers: remove them"))]
#[x_kube(validation = Rule::new("!has(self.scaleFrom) || !(self.type in ['f32', 'f64'])")
    .message("scaleFrom is for whole numbers: remove it, a float needs none"))]
#[x_kube(validation = Rule::new("self.kind != 'counter' || !(self.type in ['bool', 'string'])")
    .message("a counter is a number: write kind state or text"))]
#[x_kube(validation = Rule::new("!has(self.rollover) || self.kind == 'counter'")
    .message("rollover is for counters: write kind counter, or remove it"))]
#[x_kube(validation = Rule::new("self.kind != 'text' || self.type == 'string'")
    .message("kind text is for type string: write gauge, counter or state"))]
pub struct Register {
    /// The metric's name, such as `voltage_l1_n`: the field of the record and the column of the table.
    #[schemars(length(min = 1, max = FIELD_NAME_LENGTH), regex(pattern = FIELD_NAME))]
    #[x_kube(validation = Rule::new(NOT_RESERVED).message(NOT_RESERVED_MESSAGE))]
    pub name: String,
    /// The zero-based address in the request (PDU address), not the 40001 style number of some manuals.
    #[schemars(range(min = 0, max = 65535))]
    pub address: i32,
    /// The table it is in, which fixes the function code: coil 01, discrete 02, holding 03, input 04.
    pub function: Function,
    /// How its registers are to be read.
    #[serde(rename = "type")]
    pub value_type: ValueType,
    /// Registers a `string` takes, two characters each.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 125))]
    pub length: Option<i32>,
    /// The bit of the register, 0 being the least significant, for a `bool` in a holding or input register.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = 15))]
    pub bit: Option<i32>,
    /// Byte order of this register, where it differs from the map's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Order")]
    pub byte_order: Option<Order>,
    /// Word order of this register, where it differs from the map's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Order")]
    pub word_order: Option<Order>,
    /// What the raw value is multiplied by to be in `unit`; applied as the decimal that is written here.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = -1e12, max = 1e12))]
    #[x_kube(validation = Rule::new("self != 0.0").message("a scale of 0 makes every value 0: write another, or remove it"))]
    pub scale: Option<f64>,
    /// A register that holds a power of ten to multiply with.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub scale_from: Option<ScaleFrom>,
    /// What is added after scaling, in `unit`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = -1e12, max = 1e12))]
    pub offset: Option<f64>,
    /// The unit of the value after scaling, such as `V` or `Wh`; `1` for a ratio.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 16))]
    pub unit: Option<String>,
    /// What sort of value it is.
    #[serde(default)]
    pub kind: Kind,
    /// The value at which a counter begins again at 0, in `unit`, where that is not where its register is full, as for a
    /// display of eight digits.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1e-6, max = 1e18))]
    pub rollover: Option<f64>,
    /// Values with the same name of a group are always read in one request.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 63), regex(pattern = FIELD_NAME))]
    pub coherent: Option<String>,
}

/// A register that holds a signed 16-bit power of ten (SunSpec `sunssf`), in the same table as its value
/// and read in the same request.
#[derive(Serialize, Deserialize, KubeSchema, Clone, Copy, Debug, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct ScaleFrom {
    /// The zero-based address of the scale factor.
    #[schemars(range(min = 0, max = 65535))]
    pub address: i32,
}

/// The four tables of a Modbus device; none of them is ever written.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[serde(rename_all = "lowercase")]
pub enum Function {
    /// Coils, function code 01.
    Coil,
    /// Discrete inputs, function code 02.
    Discrete,
    /// Holding registers, function code 03.
    Holding,
    /// Input registers, function code 04.
    Input,
}

/// How registers are to be read.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[serde(rename_all = "lowercase")]
pub enum ValueType {
    /// A coil, a discrete input, or one bit of a register.
    Bool,
    /// Unsigned 16 bits, one register.
    U16,
    /// Signed 16 bits (two's complement), one register.
    I16,
    /// Unsigned 32 bits, two registers.
    U32,
    /// Signed 32 bits, two registers.
    I32,
    /// Unsigned 64 bits, four registers.
    U64,
    /// Signed 64 bits, four registers.
    I64,
    /// IEEE 754 single precision, two registers.
    F32,
    /// IEEE 754 double precision, four registers.
    F64,
    /// Text, `length` registers of two characters.
    String,
}

/// What sort of value it is.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Copy, Debug, PartialEq, Eq, Default)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// It goes up and down.
    #[default]
    Gauge,
    /// It only rises, until it rolls over or is reset.
    Counter,
    /// A state, such as a relay's.
    State,
    /// Text, such as a serial number.
    Text,
}
