//! Short ways to write register maps.

use corrente_crds::profile::{Function, Kind, Register, RegisterMap, ValueType};
use corrente_modbus::CompiledMap;

/// A holding register.
pub fn register(name: &str, address: i32, value_type: ValueType) -> Register {
    Register {
        name: name.to_owned(),
        address,
        function: Function::Holding,
        value_type,
        length: None,
        bit: None,
        byte_order: None,
        word_order: None,
        scale: None,
        scale_from: None,
        offset: None,
        unit: None,
        kind: Kind::Gauge,
        rollover: None,
        coherent: None,
    }
}

/// A map of these registers and nothing special.
pub fn map(registers: Vec<Register>) -> RegisterMap {
    RegisterMap {
        registers,
        ..RegisterMap::default()
    }
}

/// All of a map, compiled.
pub fn compiled(map: &RegisterMap) -> CompiledMap {
    CompiledMap::compile(map, &[]).unwrap()
}
