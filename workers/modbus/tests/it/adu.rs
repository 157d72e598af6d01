//! Frames: the examples of the specifications, what is refused and why, and properties over any bytes.

use corrente_crds::profile::Function;
use corrente_modbus::adu::{Block, FrameError, NotAQuestion, Question, Reply, Request, mbap, pdu, rtu};
use proptest::{collection::vec, prelude::*, sample::select};

const FUNCTIONS: [Function; 4] = [
    Function::Coil,
    Function::Discrete,
    Function::Holding,
    Function::Input,
];

fn ask(function: Function, address: u16, count: u16) -> Question {
    Question::new(function, address, count).unwrap()
}

fn words(reply: Reply<'_>) -> Vec<u16> {
    match reply {
        Reply::Read(Block::Registers(view)) => {
            assert!((0..view.len()).all(|at| view.get(at) == view.iter().nth(at)));
            assert_eq!(view.get(view.len()), None);
            view.iter().collect()
        }
        other => panic!("{other:?}"),
    }
}

fn bits(reply: Reply<'_>) -> Vec<bool> {
    match reply {
        Reply::Read(Block::Bits(view)) => {
            assert!((0..view.len()).all(|at| view.get(at) == view.iter().nth(at)));
            assert_eq!(view.get(view.len()), None);
            view.iter().collect()
        }
        other => panic!("{other:?}"),
    }
}

/// The examples of Modbus Application Protocol V1.1b3, 6.1 to 6.4.
#[test]
fn the_examples_of_the_specification() {
    let holding = ask(Function::Holding, 107, 3);
    assert_eq!(holding.bytes(), [0x03, 0x00, 0x6b, 0x00, 0x03]);
    let answer = [0x03, 0x06, 0x02, 0x2b, 0x00, 0x00, 0x00, 0x64];
    assert_eq!(words(holding.reply(&answer).unwrap()), [555, 0, 100]);

    let input = ask(Function::Input, 8, 1);
    assert_eq!(input.bytes(), [0x04, 0x00, 0x08, 0x00, 0x01]);
    assert_eq!(words(input.reply(&[0x04, 0x02, 0x00, 0x0a]).unwrap()), [10]);

    let coils = ask(Function::Coil, 19, 19);
    assert_eq!(coils.bytes(), [0x01, 0x00, 0x13, 0x00, 0x13]);
    // 27-20, 35-28 and 38-36 of the example, the last first.
    let packed = |text: &str| -> Vec<bool> { text.bytes().rev().map(|bit| bit == b'1').collect() };
    let answer = [0x01, 0x03, 0xcd, 0x6b, 0x05];
    assert_eq!(bits(coils.reply(&answer).unwrap()), packed("1010110101111001101"));

    let discrete = ask(Function::Discrete, 196, 22);
    assert_eq!(discrete.bytes(), [0x02, 0x00, 0xc4, 0x00, 0x16]);
    let answer = [0x02, 0x03, 0xac, 0xdb, 0x35];
    assert_eq!(
        bits(discrete.reply(&answer).unwrap()),
        packed("1101011101101110101100")
    );

    assert_eq!(coils.reply(&[0x81, 0x02]), Ok(Reply::Exception(2)));
}

/// The example of the Modbus Messaging on TCP/IP Implementation Guide V1.0b, and the one of Modbus over
/// Serial Line V1.02, 6.2.2: the checksum of 02 07 is 1241, and goes as 41 12.
#[test]
fn the_examples_of_the_transports() {
    let question = ask(Function::Holding, 4, 1);
    let request = [
        0x15, 0x01, 0x00, 0x00, 0x00, 0x06, 0xff, 0x03, 0x00, 0x04, 0x00, 0x01,
    ];
    assert_eq!(mbap::request(0x1501, 0xff, &question), request);
    let answer = [
        0x15, 0x01, 0x00, 0x00, 0x00, 0x05, 0xff, 0x03, 0x02, 0x00, 0x05, 0x77,
    ];
    let (frame, size) = mbap::decode(&answer).unwrap().unwrap();
    assert_eq!((frame.transaction, size), (0x1501, 11));
    assert_eq!(words(frame.reply(0xff, &question).unwrap()), [5]);
    assert_eq!(rtu::crc(&[0x02, 0x07]), 0x1241);
    let mut out = Vec::new();
    rtu::answer(&mut out, 2, |pdu| pdu.push(7));
    assert_eq!(out, [0x02, 0x07, 0x41, 0x12]);
}

#[test]
fn a_question_stays_within_the_bounds_of_the_protocol() {
    for (function, most) in [
        (Function::Coil, 2000),
        (Function::Discrete, 2000),
        (Function::Holding, 125),
        (Function::Input, 125),
    ] {
        assert!(Question::new(function, 0, most).is_ok());
        for count in [0, most + 1, u16::MAX] {
            let refused = Question::new(function, 0, count);
            assert_eq!(refused, Err(NotAQuestion::Count { count, most }));
        }
        assert!(Question::new(function, u16::MAX, 1).is_ok());
        let (address, count) = (u16::MAX, 2);
        let refused = Question::new(function, address, count);
        assert_eq!(refused, Err(NotAQuestion::BeyondAddressSpace { address, count }));
    }
}

#[test]
fn what_is_no_answer_says_why() {
    let question = ask(Function::Holding, 0, 2);
    let frame = |transaction, unit, pdu: &[u8]| {
        let mut out = Vec::new();
        mbap::answer(&mut out, transaction, unit, |out| out.extend(pdu));
        out
    };
    let read = |bytes: &[u8]| {
        let Some((frame, _)) = mbap::decode(bytes)? else {
            return Ok(None);
        };
        frame.belongs_to(7)?;
        frame.reply(1, &question).map(|reply| Some(words(reply)))
    };
    let good = [3, 4, 0, 1, 0, 2];
    assert_eq!(read(&frame(7, 1, &good)), Ok(Some(vec![1, 2])));
    let cases: [(Vec<u8>, FrameError); 10] = [
        (frame(8, 1, &good), FrameError::Transaction { asked: 7, came: 8 }),
        (frame(7, 2, &good), FrameError::Unit { asked: 1, came: 2 }),
        (
            frame(7, 1, &[4, 4, 0, 1, 0, 2]),
            FrameError::Function { asked: 3, came: 4 },
        ),
        (
            frame(7, 1, &[0x84, 2]),
            FrameError::Function { asked: 3, came: 0x84 },
        ),
        (
            frame(7, 1, &[3, 2, 0, 1]),
            FrameError::ByteCount { expected: 4, came: 2 },
        ),
        (
            frame(7, 1, &[3, 4, 0, 1]),
            FrameError::Size { expected: 6, came: 4 },
        ),
        (frame(7, 1, &[3]), FrameError::Size { expected: 6, came: 1 }),
        (
            frame(7, 1, &[0x83, 2, 2]),
            FrameError::Size { expected: 2, came: 3 },
        ),
        (b"HTTP/1.1".to_vec(), FrameError::NotModbus(0x5450)),
        (vec![0, 7, 0, 0, 0, 255, 1], FrameError::Length(255)),
    ];
    for (bytes, error) in cases {
        assert_eq!(read(&bytes), Err(error), "{bytes:02x?}");
    }
    assert_eq!(read(&[0, 7, 0, 0, 0, 1]), Err(FrameError::Length(1)));
}

#[test]
fn an_rtu_answer_is_refused_as_soon_as_it_shows() {
    let question = ask(Function::Holding, 0, 1);
    let mut good = Vec::new();
    rtu::answer(&mut good, 17, |out| out.extend([3, 2, 0, 9]));
    let read =
        |bytes: &[u8]| rtu::reply(bytes, 17, &question).map(|done| done.map(|(reply, n)| (words(reply), n)));
    assert_eq!(read(&good), Ok(Some((vec![9], 7))));
    for (bytes, error) in [
        (&[16][..], FrameError::Unit { asked: 17, came: 16 }),
        (&[17, 4], FrameError::Function { asked: 3, came: 4 }),
        (&[17, 3, 4], FrameError::ByteCount { expected: 2, came: 4 }),
    ] {
        assert_eq!(read(bytes), Err(error));
    }
    let mut bad = good.clone();
    bad[4] ^= 1;
    assert!(matches!(read(&bad), Err(FrameError::Crc { .. })));
    // What a line without bias resistors begins with.
    for stray in [&[0][..], &[0xff], &[0, 0xff, 0, 0]] {
        assert_eq!(
            read(&[stray, &good].concat()),
            Ok(Some((vec![9], stray.len() + 7)))
        );
    }
    let far = [&[0; 5], &good[..]].concat();
    assert_eq!(read(&far), Err(FrameError::Unit { asked: 17, came: 0 }));
    let mut exception = Vec::new();
    rtu::answer(&mut exception, 17, |out| pdu::exception(3, 4, out));
    assert_eq!(
        rtu::reply(&exception, 17, &question),
        Ok(Some((Reply::Exception(4), 5)))
    );
    // A unit may have such an address over TCP.
    let mut zero = Vec::new();
    rtu::answer(&mut zero, 0, |out| out.extend([3, 2, 0, 9]));
    assert!(matches!(rtu::reply(&zero, 0, &question), Ok(Some(_))));
}

#[test]
fn a_server_knows_where_every_request_ends_and_answers_none_but_reads() {
    for (pdu, exception) in [
        (&[0x05, 0, 1, 0xff, 0][..], 1),
        (&[0x06, 0, 1, 0, 3], 1),
        (&[0x07], 1),
        (&[0x08, 0, 0, 0xa5, 0x37], 1),
        (&[0x0b], 1),
        (&[0x0c], 1),
        (&[0x0f, 0, 0x13, 0, 10, 2, 0xcd, 1], 1),
        (&[0x10, 0, 1, 0, 2, 4, 0, 10, 1, 2], 1),
        (&[0x11], 1),
        (&[0x14, 7, 6, 0, 4, 0, 1, 0, 2], 1),
        (&[0x16, 0, 4, 0, 0xf2, 0, 0x25], 1),
        (&[0x17, 0, 3, 0, 6, 0, 14, 0, 1, 2, 0, 0xff], 1),
        (&[0x18, 4, 0xde], 1),
        (&[0x2b, 0x0e, 1, 0], 1),
        (&[0x03, 0, 0, 0, 0], 3),
        (&[0x03, 0, 0, 0, 126], 3),
        (&[0x04, 0xff, 0xff, 0, 2], 2),
    ] {
        assert_eq!(Request::of(pdu).unwrap().question(), Err(exception), "{pdu:02x?}");
        let mut frame = Vec::new();
        rtu::answer(&mut frame, 9, |out| out.extend(pdu));
        for end in 0..frame.len() {
            assert_eq!(rtu::decode_request(&frame[..end]), Ok(None), "{pdu:02x?}");
        }
        let (whole, size) = rtu::decode_request(&frame).unwrap().unwrap();
        assert_eq!((whole.unit, whole.pdu, size), (9, pdu, frame.len()));
    }
    for (pdu, exception) in [(&[0x2b][..], 1), (&[0x03, 0, 0], 3), (&[0x41], 1)] {
        assert_eq!(Request::of(pdu).unwrap().question(), Err(exception));
    }
    assert_eq!(Request::of(&[]), None);
    for unknown in [[9, 0x41, 0], [9, 0x2b, 0x0d]] {
        assert_eq!(
            rtu::decode_request(&unknown),
            Err(FrameError::UnknownFunction(unknown[1]))
        );
    }
}

fn questions() -> impl Strategy<Value = Question> {
    (select(&FUNCTIONS[..]), any::<u16>(), any::<u16>()).prop_map(|(function, address, count)| {
        let most = if matches!(function, Function::Coil | Function::Discrete) {
            2000
        } else {
            125
        };
        let count = 1 + count % most;
        ask(function, address.min(u16::MAX - count + 1), count)
    })
}

/// A question and a server's answer to it, with what the answer holds.
#[derive(Clone, Debug)]
struct Exchange {
    question: Question,
    answer: Vec<u8>,
    held: Vec<u16>,
}

fn exchanges() -> impl Strategy<Value = Exchange> {
    (questions(), vec(any::<u16>(), 2000), any::<Option<u8>>()).prop_map(|(question, held, exception)| {
        let held = held[..usize::from(question.count())].to_vec();
        let (function, mut answer) = (question.function(), Vec::new());
        match (exception, function) {
            (Some(code), _) => pdu::exception(pdu::code(function), code, &mut answer),
            (_, Function::Coil | Function::Discrete) => {
                pdu::bits(function, held.iter().map(|word| word & 1 == 1), &mut answer);
            }
            _ => pdu::registers(function, held.iter().copied(), &mut answer),
        }
        Exchange {
            question,
            answer,
            held,
        }
    })
}

fn check(exchange: &Exchange, reply: Reply<'_>) {
    match reply {
        Reply::Exception(code) => assert_eq!(exchange.answer[1..], [code]),
        Reply::Read(Block::Registers(view)) => assert!(view.iter().eq(exchange.held.iter().copied())),
        Reply::Read(Block::Bits(view)) => {
            assert!(view.iter().eq(exchange.held.iter().map(|word| word & 1 == 1)));
        }
    }
}

proptest! {
    #[test]
    fn what_is_asked_over_tcp_comes_back(
        exchange in exchanges(), transaction: u16, unit: u8, more in vec(any::<u8>(), 0..20)
    ) {
        let question = exchange.question;
        let mut request = mbap::request(transaction, unit, &question).to_vec();
        let (asked, size) = mbap::decode(&request).unwrap().unwrap();
        prop_assert_eq!((asked.transaction, asked.unit, size), (transaction, unit, request.len()));
        prop_assert_eq!(Request::of(asked.pdu).unwrap().question(), Ok(question));
        for end in 0..request.len() {
            prop_assert_eq!(mbap::decode(&request[..end]), Ok(None));
        }
        let mut answer = Vec::new();
        mbap::answer(&mut answer, transaction, unit, |out| out.extend(&exchange.answer));
        for end in 0..answer.len() {
            prop_assert_eq!(mbap::decode(&answer[..end]), Ok(None));
        }
        let whole = answer.len();
        answer.extend(&more);
        let (frame, size) = mbap::decode(&answer).unwrap().unwrap();
        prop_assert_eq!((frame.belongs_to(transaction), size), (Ok(()), whole));
        check(&exchange, frame.reply(unit, &question).unwrap());
        request.extend(&more);
        prop_assert_eq!(mbap::decode(&request).unwrap().unwrap().1, mbap::REQUEST);
    }

    #[test]
    fn what_is_asked_over_a_serial_line_comes_back(
        exchange in exchanges(), unit: u8, more in vec(any::<u8>(), 0..20)
    ) {
        let question = exchange.question;
        let mut request = rtu::request(unit, &question).to_vec();
        for end in 0..request.len() {
            prop_assert_eq!(rtu::decode_request(&request[..end]), Ok(None));
        }
        request.extend(&more);
        let (asked, size) = rtu::decode_request(&request).unwrap().unwrap();
        prop_assert_eq!((asked.unit, size), (unit, rtu::REQUEST));
        prop_assert_eq!(Request::of(asked.pdu).unwrap().question(), Ok(question));
        let mut answer = Vec::new();
        rtu::answer(&mut answer, unit, |out| out.extend(&exchange.answer));
        for end in 0..answer.len() {
            prop_assert_eq!(rtu::reply(&answer[..end], unit, &question), Ok(None));
        }
        let whole = answer.len();
        answer.extend(&more);
        let (reply, size) = rtu::reply(&answer, unit, &question).unwrap().unwrap();
        prop_assert_eq!(size, whole);
        check(&exchange, reply);
    }

    /// A checksum of 16 bits finds every change of one byte.
    #[test]
    fn a_serial_answer_with_one_wrong_byte_is_never_taken(
        exchange in exchanges(), unit in 1_u8..255, at: proptest::sample::Index, change in 1_u8..
    ) {
        let mut answer = Vec::new();
        rtu::answer(&mut answer, unit, |out| out.extend(&exchange.answer));
        let at = at.index(answer.len());
        answer[at] ^= change;
        prop_assert!(!matches!(rtu::reply(&answer, unit, &exchange.question), Ok(Some(_))));
    }

    #[test]
    fn noise_is_survived(noise in vec(any::<u8>(), 0..300), unit: u8, question in questions()) {
        if let Ok(Some((frame, size))) = mbap::decode(&noise) {
            prop_assert!(size <= noise.len() && !frame.pdu.is_empty());
            let _ = frame.reply(unit, &question);
            let _ = Request::of(frame.pdu).unwrap().question();
        }
        if let Ok(Some((_, size))) = rtu::reply(&noise, unit, &question) {
            prop_assert!(size <= noise.len());
        }
        if let Ok(Some((frame, size))) = rtu::decode_request(&noise) {
            prop_assert!(size <= noise.len() && !frame.pdu.is_empty());
        }
    }
}
