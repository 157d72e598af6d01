//! RTU frames: a client's answers and a server's requests, from any bytes. A fuzzer does not guess checksums,
//! so every input is tried as it is and with the last two bytes made right.
#![no_main]

use corrente_fuzz::question;
use corrente_modbus::adu::{Block, Question, Reply, Request, rtu};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let Some((question, unit, _, rest)) = question(data) else {
        return;
    };
    answers(rest, unit, &question);
    requests(rest);
    for end in 2..=rest.len().min(rtu::MAX_FRAME) {
        let mut right = rest[..end].to_vec();
        let crc = rtu::crc(&right[..end - 2]);
        right[end - 2..].copy_from_slice(&crc.to_le_bytes());
        answers(&right, unit, &question);
        requests(&right);
    }
});

fn answers(bytes: &[u8], unit: u8, question: &Question) {
    let Ok(Some((reply, size))) = rtu::reply(bytes, unit, question) else {
        return;
    };
    assert!(size <= bytes.len());
    for end in 0..size {
        assert!(
            !matches!(rtu::reply(&bytes[..end], unit, question), Ok(Some(_))),
            "a cut frame is none"
        );
    }
    let count = usize::from(question.count());
    match reply {
        Reply::Exception(_) => {}
        Reply::Read(Block::Registers(words)) => {
            assert_eq!((words.len(), words.iter().count()), (count, count))
        }
        Reply::Read(Block::Bits(bits)) => assert_eq!((bits.len(), bits.iter().count()), (count, count)),
    }
}

fn requests(bytes: &[u8]) {
    let Ok(Some((frame, size))) = rtu::decode_request(bytes) else {
        return;
    };
    assert!(size <= rtu::MAX_FRAME && frame.pdu.len() + 3 == size);
    for end in 0..size {
        assert!(
            !matches!(rtu::decode_request(&bytes[..end]), Ok(Some(_))),
            "a cut frame is none"
        );
    }
    if let Some(Ok(asked)) = Request::of(frame.pdu).map(|request| request.question()) {
        assert_eq!(
            rtu::request(frame.unit, &asked),
            bytes[..size],
            "a read is written as it came"
        );
    }
}
