//! The chain of models of a SunSpec meter, around the model that a register map describes.
//!
//! "SunS" at 40000, the common model (1), the meter's model, and the end marker; addresses and lengths as
//! devices have them. Source: SunSpec Information Model Specification, 6; model 1 and models 201 to 214 of
//! the published models (sunspec/models, json/).

use std::ops::Range;

use corrente_modbus::sunspec::{END, MARK};

/// The address of the mark.
const START: u16 = 40_000;
/// The registers of the common model behind its length register.
const COMMON_LENGTH: u16 = 66;
/// The address of the meter's model: behind the mark and the common model.
const MODEL: u16 = START + 2 + 2 + COMMON_LENGTH;

/// A chain with one model of interest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Chain {
    number: u16,
    length: u16,
    model: String,
}

impl Chain {
    /// The chain of a meter with this model, of which the map reads `extent` registers, ID and length
    /// included.
    #[must_use]
    pub fn new(number: u16, extent: u32, model: &str) -> Self {
        let known = match number {
            201..=204 => 105,
            211..=214 => 124,
            _ => 0,
        };
        let needed = u16::try_from(extent.saturating_sub(2)).unwrap_or(u16::MAX);
        Self {
            number,
            // A chain that would run past the last address is cut there; the walk then says so.
            length: needed.max(known).min(u16::MAX - MODEL - 4),
            model: model.to_owned(),
        }
    }

    /// The addresses of the chain, the end marker and its length register included.
    fn addresses(&self) -> Range<u32> {
        let end = u32::from(MODEL) + 2 + u32::from(self.length) + 2;
        u32::from(START)..end
    }

    /// Whether a read lies within the chain.
    #[must_use]
    pub fn covers(&self, read: &Range<u32>) -> bool {
        let chain = self.addresses();
        chain.start <= read.start && read.end <= chain.end
    }

    /// The registers of a read within the chain. `window` gives those of the meter's model, at addresses
    /// counted from its ID register.
    pub fn read(
        &self,
        address: u16,
        count: u16,
        serial: &str,
        window: impl FnOnce(u16, u16) -> Vec<u16>,
    ) -> Vec<u16> {
        let model = MODEL..MODEL + 2 + self.length;
        let (start, end) = (address, address.saturating_add(count));
        let (from, to) = (start.max(model.start), end.min(model.end));
        let values = if from < to {
            window(from - model.start, to - from)
        } else {
            Vec::new()
        };
        (start..end)
            .map(|at| match at {
                at if at < START + 2 => MARK[usize::from(at - START)],
                at if at < model.start => self.common(at - START - 2, serial),
                at if at == model.start => self.number,
                at if at == model.start + 1 => self.length,
                at if at < model.end => values.get(usize::from(at - from)).copied().unwrap_or(0),
                at if at == model.end => END,
                _ => 0,
            })
            .collect()
    }

    /// A register of the common model, counted from its ID register.
    fn common(&self, at: u16, serial: &str) -> u16 {
        let text = |text: &str, at: u16| {
            let byte = |i: usize| u16::from(text.as_bytes().get(i).copied().unwrap_or(0));
            let i = usize::from(at) * 2;
            byte(i) << 8 | byte(i + 1)
        };
        match at {
            0 => 1,
            1 => COMMON_LENGTH,
            // Manufacturer, model, options and version, 16, 16, 8 and 8 registers of text.
            2..18 => text("Corrente", at - 2),
            18..34 => text(&self.model, at - 18),
            34..42 => text("simulated", at - 34),
            42..50 => text(env!("CARGO_PKG_VERSION"), at - 42),
            50..66 => text(serial, at - 50),
            // The device address and the pad, which is "not implemented".
            66 => 1,
            _ => 0x8000,
        }
    }
}

#[cfg(test)]
mod tests {
    use corrente_modbus::sunspec::{Step, Walk};

    use super::*;

    #[test]
    fn the_walk_finds_the_model() {
        let chain = Chain::new(203, 60, "meter");
        let mut walk = Walk::new(203, 60);
        let found = loop {
            match walk.step() {
                Step::Read { address, count } => {
                    let read = u32::from(address)..u32::from(address) + u32::from(count);
                    if chain.covers(&read) {
                        walk.words(&chain.read(address, count, "1", |_, n| vec![7; n.into()]));
                    } else {
                        walk.refused();
                    }
                }
                step => break step,
            }
        };
        assert_eq!(found, Step::Found(40_070));
    }

    #[test]
    fn the_chain_is_what_devices_have() {
        let chain = Chain::new(213, 70, "meter");
        let all = chain.addresses();
        assert_eq!(all, 40_000..40_198);
        let words = chain.read(40_000, 198, "12345678", |at, count| {
            assert_eq!((at, count), (0, 126));
            vec![9; 126]
        });
        assert_eq!(words[..4], [0x5375, 0x6e53, 1, 66]);
        assert_eq!(words[4], u16::from_be_bytes(*b"Co"));
        assert_eq!(words[20], u16::from_be_bytes(*b"me"));
        assert_eq!(words[52], u16::from_be_bytes(*b"12"));
        assert_eq!(words[70..73], [213, 124, 9]);
        assert_eq!(words[195..], [9, 0xffff, 0]);
        // A window that ends within the model, and one that begins there.
        assert_eq!(
            chain.read(40_068, 6, "1", |at, n| (at..at + n).collect()),
            [1, 0x8000, 213, 124, 2, 3]
        );
        assert_eq!(
            chain.read(40_194, 4, "1", |at, n| (at..at + n).collect()),
            [124, 125, 0xffff, 0]
        );
        assert!(!chain.covers(&(40_197..40_199)) && !chain.covers(&(39_999..40_001)));
    }
}
