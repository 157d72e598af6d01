//! What the targets share: a question from the first bytes of an input.

use corrente_crds::profile::Function;
use corrente_modbus::adu::Question;

/// A question, a unit and a transaction id from the first eight bytes, and the rest; `None` where they are too
/// few, or ask what cannot be asked.
pub fn question(data: &[u8]) -> Option<(Question, u8, u16, &[u8])> {
    let (&[function, unit, a, b, c, d, e, f], rest) = data.split_first_chunk()?;
    let function = match function % 4 {
        0 => Function::Coil,
        1 => Function::Discrete,
        2 => Function::Holding,
        _ => Function::Input,
    };
    let [address, count, transaction] = [[a, b], [c, d], [e, f]].map(u16::from_be_bytes);
    Some((
        Question::new(function, address, count).ok()?,
        unit,
        transaction,
        rest,
    ))
}
