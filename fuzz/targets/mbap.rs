//! Modbus TCP: a client's answers and a server's requests, from any bytes.
#![no_main]

use corrente_fuzz::question;
use corrente_modbus::adu::{Block, Reply, Request, mbap};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let Some((question, unit, transaction, mut rest)) = question(data) else {
        return;
    };
    while let Ok(Some((frame, size))) = mbap::decode(rest) {
        assert!(size <= mbap::MAX_FRAME && frame.pdu.len() + mbap::HEADER == size);
        for end in 0..size {
            assert!(
                !matches!(mbap::decode(&rest[..end]), Ok(Some(_))),
                "a cut frame is none"
            );
        }
        if frame.belongs_to(transaction).is_ok()
            && let Ok(Reply::Read(block)) = frame.reply(unit, &question)
        {
            let count = usize::from(question.count());
            match block {
                Block::Registers(words) => assert_eq!((words.len(), words.iter().count()), (count, count)),
                Block::Bits(bits) => assert_eq!((bits.len(), bits.iter().count()), (count, count)),
            }
        }
        if let Some(Ok(asked)) = Request::of(frame.pdu).map(|request| request.question()) {
            let written = mbap::request(frame.transaction, frame.unit, &asked);
            assert_eq!(written, rest[..size], "a read is written as it came");
        }
        rest = &rest[size..];
    }
});
