//! The window, without IO: what is outstanding on a connection, the bytes that have come, and which answer
//! belongs to which question.
//!
//! 1. [`Window::ask`] makes a frame and remembers the question, as long as there is room.
//! 2. Bytes are read into [`Window::spare`].
//! 3. [`Window::take`] gives out the answers that are whole. Over TCP they are told apart by their transaction
//!    ids; RTU frames have none, so that their window has room for one.
//!
//! An answer to nothing that is outstanding breaks the window: on a connection that is dropped at every
//! timeout, no honest server sends one.

use corrente_modbus::adu::{Block, FrameError, NotAQuestion, Question, Reply, mbap, rtu};
use tokio::time::Instant;

use super::{Exception, OnRead, ReadBlock, ReadError, Registers};

/// How frames are told apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Framing {
    /// As in Modbus TCP: by transaction id and length.
    Mbap,
    /// As on a serial line: by checksum.
    Rtu,
}

/// A question that was asked.
#[derive(Clone, Copy, Debug)]
struct Outstanding {
    index: usize,
    transaction: u16,
    unit: u8,
    question: Question,
    deadline: Instant,
}

/// What broke a window: which question it befell, and how.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Broken {
    pub index: usize,
    pub error: FrameError,
}

/// See the module.
#[derive(Debug)]
pub(super) struct Window {
    framing: Framing,
    width: usize,
    /// In the order of asking, which with one timeout for all is that of their deadlines.
    outstanding: Vec<Outstanding>,
    buffer: Box<[u8]>,
    filled: usize,
}

impl Window {
    /// A window of `width` questions, of one where the framing knows no transaction ids.
    pub fn new(framing: Framing, width: usize) -> Self {
        let width = match framing {
            Framing::Mbap => width.max(1),
            Framing::Rtu => 1,
        };
        Self {
            framing,
            width,
            outstanding: Vec::with_capacity(width),
            // One more than can be outstanding: a read that does not fill the buffer tells the runtime that
            // the socket is empty, and spares it the call that would find nothing.
            buffer: vec![0; (width + 1) * mbap::MAX_FRAME].into_boxed_slice(),
            filled: 0,
        }
    }

    /// Whether another question may be asked.
    pub fn has_room(&self) -> bool {
        self.outstanding.len() < self.width
    }

    /// Whether nothing is outstanding.
    pub fn is_empty(&self) -> bool {
        self.outstanding.is_empty()
    }

    /// Whether bytes have come that belong to no question.
    pub fn has_leftovers(&self) -> bool {
        self.is_empty() && self.filled > 0
    }

    /// The question that was asked first, and when its answer is too late.
    pub fn oldest(&self) -> Option<(usize, Instant)> {
        self.outstanding
            .first()
            .map(|first| (first.index, first.deadline))
    }

    /// Remembers a question, and appends its frame to `out`. `transaction` must not be outstanding.
    pub fn ask(
        &mut self,
        index: usize,
        block: ReadBlock,
        transaction: u16,
        deadline: Instant,
        out: &mut Vec<u8>,
    ) -> Result<(), NotAQuestion> {
        let question = Question::new(block.function, block.address, block.count)?;
        match self.framing {
            Framing::Mbap => out.extend(mbap::request(transaction, block.unit, &question)),
            Framing::Rtu => out.extend(rtu::request(block.unit, &question)),
        }
        self.outstanding.push(Outstanding {
            index,
            transaction,
            unit: block.unit,
            question,
            deadline,
        });
        Ok(())
    }

    /// Where the next bytes go. It is never empty while something is outstanding: whole frames leave the
    /// buffer, and it is longer than one.
    pub fn spare(&mut self) -> &mut [u8] {
        self.buffer.get_mut(self.filled..).unwrap_or_default()
    }

    /// Gives out the answers that are whole now that `came` more bytes have come.
    pub fn take(&mut self, came: usize, on: &mut OnRead<'_>) -> Result<(), Broken> {
        self.filled = (self.filled + came).min(self.buffer.len());
        let mut start = 0;
        let result = loop {
            let bytes = self.buffer.get(start..self.filled).unwrap_or_default();
            match next(self.framing, &mut self.outstanding, bytes, on) {
                Ok(0) => break Ok(()),
                Ok(size) => start += size,
                Err(broken) => break Err(broken),
            }
        };
        self.buffer.copy_within(start..self.filled, 0);
        self.filled -= start;
        result
    }
}

/// Gives out the answer at the front of `bytes`, and says how many bytes it took up: none where it is not
/// whole, or nothing is outstanding.
fn next(
    framing: Framing,
    outstanding: &mut Vec<Outstanding>,
    bytes: &[u8],
    on: &mut OnRead<'_>,
) -> Result<usize, Broken> {
    let Some(oldest) = outstanding.first().copied() else {
        return Ok(0);
    };
    let broken = |index, error| Broken { index, error };
    let (at, asked, reply, size) = match framing {
        Framing::Rtu => match rtu::reply(bytes, oldest.unit, &oldest.question) {
            Ok(Some((reply, size))) => (0, oldest, reply, size),
            Ok(None) => return Ok(0),
            Err(error) => return Err(broken(oldest.index, error)),
        },
        Framing::Mbap => {
            let decoded = mbap::decode(bytes).map_err(|error| broken(oldest.index, error))?;
            let Some((frame, size)) = decoded else {
                return Ok(0);
            };
            let mut known = outstanding.iter().copied().enumerate();
            let Some((at, asked)) = known.find(|(_, asked)| asked.transaction == frame.transaction) else {
                let error = FrameError::Transaction {
                    asked: oldest.transaction,
                    came: frame.transaction,
                };
                return Err(broken(oldest.index, error));
            };
            let reply = frame.reply(asked.unit, &asked.question);
            (
                at,
                asked,
                reply.map_err(|error| broken(asked.index, error))?,
                size,
            )
        }
    };
    outstanding.remove(at);
    on(asked.index, registers(reply));
    Ok(size)
}

fn registers(reply: Reply<'_>) -> Result<Registers, ReadError> {
    match reply {
        Reply::Exception(code) => Err(ReadError::Exception(Exception(code))),
        Reply::Read(Block::Registers(words)) => Ok(Registers::Words(words.iter().collect())),
        Reply::Read(Block::Bits(bits)) => Ok(Registers::Bits(bits.iter().collect())),
    }
}

#[cfg(test)]
mod tests {
    use corrente_crds::profile::Function;
    use corrente_modbus::adu::pdu;
    use proptest::{collection::vec, prelude::*};

    use super::*;

    fn block(unit: u8, address: u16) -> ReadBlock {
        ReadBlock {
            unit,
            function: Function::Holding,
            address,
            count: 1,
        }
    }

    fn answer(transaction: u16, word: u16) -> Vec<u8> {
        let mut out = Vec::new();
        mbap::answer(&mut out, transaction, 1, |out| {
            pdu::registers(Function::Holding, [word].into_iter(), out)
        });
        out
    }

    fn asked(width: usize) -> Window {
        let mut window = Window::new(Framing::Mbap, width);
        let mut out = Vec::new();
        for index in 0..width {
            assert!(window.has_room());
            let transaction = 65_530_u16.wrapping_add(index as u16);
            window
                .ask(index, block(1, 0), transaction, Instant::now(), &mut out)
                .unwrap();
        }
        assert!(!window.has_room() && out.len() == width * mbap::REQUEST);
        window
    }

    /// Feeds bytes in pieces and collects what comes out.
    fn feed(window: &mut Window, bytes: &[u8], piece: usize) -> (Vec<(usize, u16)>, Result<(), Broken>) {
        let mut seen = Vec::new();
        for piece in bytes.chunks(piece) {
            window.spare()[..piece.len()].copy_from_slice(piece);
            let taken = window.take(piece.len(), &mut |index, read| match read {
                Ok(Registers::Words(words)) => seen.push((index, words[0])),
                other => panic!("{other:?}"),
            });
            if taken.is_err() {
                return (seen, taken);
            }
        }
        (seen, Ok(()))
    }

    #[test]
    fn an_answer_to_nothing_breaks_the_window() {
        let mut window = asked(3);
        let bytes = [answer(65_531, 7), answer(65_531, 8)].concat();
        let (seen, taken) = feed(&mut window, &bytes, 100);
        assert_eq!(seen, [(1, 7)]);
        let error = FrameError::Transaction {
            asked: 65_530,
            came: 65_531,
        };
        assert_eq!(taken, Err(Broken { index: 0, error }));
    }

    #[test]
    fn a_wrong_answer_is_laid_to_the_question_it_names() {
        let mut window = asked(3);
        let mut bytes = answer(65_532, 7);
        bytes[6] = 9;
        let error = FrameError::Unit { asked: 1, came: 9 };
        assert_eq!(feed(&mut window, &bytes, 100).1, Err(Broken { index: 2, error }));
    }

    #[test]
    fn what_comes_after_the_last_answer_is_left_over() {
        let mut window = asked(1);
        let bytes = [answer(65_530, 7), vec![1]].concat();
        assert_eq!(feed(&mut window, &bytes, 100), (vec![(0, 7)], Ok(())));
        assert!(window.is_empty() && window.has_leftovers());
        let mut window = asked(1);
        feed(&mut window, &answer(65_530, 7), 100).1.unwrap();
        assert!(window.is_empty() && !window.has_leftovers());
    }

    #[test]
    fn a_serial_line_has_one_question_outstanding() {
        let mut window = Window::new(Framing::Rtu, 16);
        let mut out = Vec::new();
        window.ask(0, block(1, 0), 0, Instant::now(), &mut out).unwrap();
        assert!(!window.has_room());
    }

    proptest! {
        /// Answers in any order, in pieces of any size, each find their question.
        #[test]
        fn answers_come_in_any_order(
            order in Just((0..16_usize).collect::<Vec<_>>()).prop_shuffle(),
            words in vec(any::<u16>(), 16),
            piece in 1..300_usize,
        ) {
            let mut window = asked(16);
            let bytes: Vec<u8> = order
                .iter()
                .flat_map(|&index| answer(65_530_u16.wrapping_add(index as u16), words[index]))
                .collect();
            let (seen, taken) = feed(&mut window, &bytes, piece);
            prop_assert_eq!(taken, Ok(()));
            prop_assert_eq!(seen, order.iter().map(|&index| (index, words[index])).collect::<Vec<_>>());
            prop_assert!(window.is_empty() && !window.has_leftovers());
        }
    }
}
