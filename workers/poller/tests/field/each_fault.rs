//! Each fault against the poller: what records come of the meter that has it, and that nobody else notices.

use std::{fmt, time::Duration};

use corrente_record::{Quality, Record};
use corrente_simulator::{
    Effect, Fault, Faults,
    faults::{Beyond, Recipient, Then},
};
use tokio::{net::TcpStream, task::JoinSet};

use crate::plant::{Line, Polling, assert_every_slot, bad, config, serve, show, since_good};

const MS: Duration = Duration::from_millis(1);
const SLOTS: usize = 7;
const TCP: &str = "tcp";
const RTU: &str = "rtu-over-tcp";
const TLS: &str = "tls";

/// What must come of the meter with the fault.
#[derive(Clone, Copy)]
enum Comes {
    /// A good record of every slot.
    Good,
    /// Records without a value, each reason of which contains one of these.
    Failed(&'static [&'static str]),
    /// In the end good records.
    GoodInTheEnd,
    /// In the end records that lack just this value, for a reason that contains this.
    AllBut(&'static str, &'static str),
    /// Some good, some not.
    Both,
}

use Comes::{AllBut, Both, Failed, Good, GoodInTheEnd};

/// What comes of the unit on the same line.
#[derive(Clone, Copy, PartialEq)]
enum Neighbour {
    /// It has every slot.
    Unhurt,
    /// The same, for the fault is of the whole line.
    Same,
    /// Anything but wrong values: what is meant for another comes in front of each of its answers.
    InTheWay,
}

use Neighbour::{InTheWay, Same, Unhurt};

/// Unit 1 of the line `sick` has the fault, unit 2 shares its line, unit 3 is elsewhere.
struct Case {
    transport: &'static str,
    fault: Fault,
    comes: Comes,
    neighbour: Neighbour,
    /// Whether somebody else had a connection to the line first, and keeps it.
    occupied: bool,
}

impl fmt::Display for Case {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} over {}", self.fault, self.transport)
    }
}

const NO_ANSWER: Comes = Failed(&["no answer"]);
const NOT_ITS_ANSWER: Comes = Failed(&["answer", "came", "closed"]);

fn cases() -> Vec<Case> {
    let torn = |then| Effect::Torn { after: None, then };
    let late = |after: Option<u32>, to| Effect::Late {
        after: after.map(|after| MS * after),
        to,
    };
    let garbage = |then_answer| Effect::Garbage {
        bytes: 20,
        then_answer,
    };
    let drip = |bytes, pause: u32| Effect::Drip {
        bytes,
        pause: MS * pause,
    };
    let both = [
        (Effect::Silence, NO_ANSWER),
        (Effect::Delay(50 * MS, 50 * MS), Good),
        (Effect::Delay(10 * MS, 60 * MS), Good),
        (Effect::Delay(700 * MS, 700 * MS), NO_ANSWER),
        // Few pauses, since a machine with much to do prolongs each.
        (drip(8, 2), Good),
        (drip(1, 60), NO_ANSWER),
        (torn(Then::Nothing), NO_ANSWER),
        (torn(Then::Close), NOT_ITS_ANSWER),
        (torn(Then::Reset), NOT_ITS_ANSWER),
        (late(Some(450), Recipient::Same), NO_ANSWER),
        (late(Some(450), Recipient::Newest), NO_ANSWER),
        (late(None, Recipient::Same), NO_ANSWER),
        (Effect::WrongUnit(1), NOT_ITS_ANSWER),
        (Effect::WrongFunction(None), NOT_ITS_ANSWER),
        (Effect::WrongFunction(Some(6)), NOT_ITS_ANSWER),
        (Effect::WrongCount(1), NOT_ITS_ANSWER),
        (Effect::WrongCount(-1), NOT_ITS_ANSWER),
        (Effect::WrongByteCount(2), NOT_ITS_ANSWER),
        (Effect::WrongByteCount(-2), NOT_ITS_ANSWER),
        (garbage(false), NOT_ITS_ANSWER),
        (garbage(true), NOT_ITS_ANSWER),
        (Effect::Exception(1), Failed(&["exception 01"])),
        (Effect::Exception(2), Failed(&["exception 02"])),
        (Effect::Exception(4), Failed(&["exception 04"])),
        (Effect::Exception(6), Failed(&["exception 06"])),
        (Effect::Exception(10), Failed(&["exception 0A"])),
        (Effect::Exception(11), Failed(&["exception 0B"])),
    ];
    let case = |transport, fault: Fault, comes| Case {
        transport,
        fault: fault.endpoint("sick").units([1]),
        comes,
        neighbour: Unhurt,
        occupied: false,
    };
    let mut cases: Vec<Case> = [TCP, RTU]
        .into_iter()
        .flat_map(|transport| {
            both.clone()
                .map(|(effect, comes)| case(transport, Fault::new(effect), comes))
        })
        .collect();
    cases.extend([TCP, RTU].map(|transport| Case {
        neighbour: InTheWay,
        ..case(transport, Fault::new(late(None, Recipient::Newest)), NO_ANSWER)
    }));
    let silence = || Fault::new(Effect::Silence);
    cases.extend([
        case(TCP, Fault::new(Effect::WrongTransaction(1)), NOT_ITS_ANSWER),
        case(RTU, Fault::new(Effect::BadCrc), Failed(&["checksum"])),
        case(
            TCP,
            Fault::new(Effect::Exception(2)).registers(502..=502),
            AllBut("r502", "exception 02"),
        ),
        case(TCP, Fault::new(Effect::Exception(3)).longer_than(5), GoodInTheEnd),
        case(RTU, Fault::new(Effect::Exception(2)).longer_than(2), GoodInTheEnd),
        case(TCP, silence().chance(0.4), Both),
        case(TLS, Fault::new(Effect::Delay(50 * MS, 50 * MS)), Good),
        case(TLS, silence(), NO_ANSWER),
        case(TLS, Fault::new(torn(Then::Nothing)), NO_ANSWER),
        case(TLS, Fault::new(torn(Then::Close)), NOT_ITS_ANSWER),
        case(TLS, Fault::new(torn(Then::Reset)), NOT_ITS_ANSWER),
        case(TLS, Fault::new(late(Some(450), Recipient::Newest)), NO_ANSWER),
        case(TCP, silence().until(2500 * MS), GoodInTheEnd),
        case(TCP, Fault::new(torn(Then::Reset)).every(4), Good),
    ]);
    let line = |limit, beyond, occupied, comes| Case {
        transport: TCP,
        fault: Fault::new(Effect::Connections { limit, beyond }).endpoint("sick"),
        comes,
        neighbour: Same,
        occupied,
    };
    cases.extend([
        line(1, Beyond::Refuse, false, Good),
        line(4, Beyond::Ignore, true, Good),
        line(16, Beyond::CloseOldest, true, Good),
        line(
            0,
            Beyond::Refuse,
            false,
            Failed(&["closed", "reset", "no connection"]),
        ),
        line(
            1,
            Beyond::Refuse,
            true,
            Failed(&["closed", "reset", "no connection"]),
        ),
        line(1, Beyond::Ignore, true, NO_ANSWER),
        line(1, Beyond::CloseOldest, true, Good),
    ]);
    cases
}

fn check(case: &Case, records: &[Record], who: &str) {
    let what = format!("{case}, {who}");
    let quality = |record: &Record| record.quality.unwrap();
    match case.comes {
        Good => assert_every_slot(&what, records, 1000),
        Failed(reasons) => {
            for record in records {
                assert_eq!(quality(record), Quality::Failed, "{what}: {}", show(records));
                for (name, reason) in bad(record) {
                    let said = reasons.iter().any(|part| reason.contains(part));
                    assert!(said, "{what}: {name}: {reason}");
                }
            }
        }
        GoodInTheEnd => assert_eq!(
            quality(records.last().unwrap()),
            Quality::Good,
            "{what}: {}",
            show(records)
        ),
        AllBut(name, reason) => {
            let last = records.last().unwrap();
            assert_eq!(quality(last), Quality::Partial, "{what}: {}", show(records));
            let bad = bad(last);
            assert_eq!(bad.keys().collect::<Vec<_>>(), [name], "{what}");
            assert!(bad[name].contains(reason), "{what}: {}", bad[name]);
        }
        Both => {
            let good = records
                .iter()
                .filter(|record| quality(record) == Quality::Good)
                .count();
            assert!(
                (1..records.len()).contains(&good),
                "{what}: {good} of {}",
                records.len()
            );
        }
    }
}

async fn run(case: Case) {
    let lines = [
        Line("sick", case.transport, vec![1, 2]),
        Line("well", TCP, vec![3]),
    ];
    let mut config = config(&lines, "1s", "300ms");
    let served = serve(&mut config, Faults::new(3).with(case.fault.clone())).await;
    let other = if case.occupied {
        let mut stream = TcpStream::connect(served.addresses["sick"]).await.unwrap();
        // An answer shows that it is served.
        tokio::io::AsyncWriteExt::write_all(&mut stream, &[0, 1, 0, 0, 0, 6, 2, 3, 0, 0, 0, 1])
            .await
            .unwrap();
        tokio::io::AsyncReadExt::read_exact(&mut stream, &mut [0; 11])
            .await
            .unwrap();
        Some(stream)
    } else {
        None
    };
    let mut polling = Polling::start(config);
    polling
        .until(|seen| {
            let many = |meter: &str, count| seen.get(meter).is_some_and(|records| records.len() >= count);
            many("well-3", SLOTS) && many("sick-1", SLOTS - 2) && many("sick-2", SLOTS - 1)
        })
        .await;
    drop(other);
    assert_every_slot(&format!("{case}, elsewhere"), polling.of("well-3"), 1000);
    check(&case, polling.of("sick-1"), "the one with the fault");
    let neighbour = polling.of("sick-2");
    match case.neighbour {
        Same => check(&case, neighbour, "its neighbour"),
        // The values were looked at as they came.
        InTheWay => {}
        Unhurt => {
            let good = since_good(neighbour);
            assert_every_slot(&format!("{case}, its neighbour"), good, 1000);
            assert!(good.len() + 1 >= neighbour.len(), "{case}: {}", show(neighbour));
        }
    }
    polling.end().await;
    served.shutdown().await;
}

/// All at the same time, each with a poller and a plant of its own.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_fault_costs_whom_it_must_and_nobody_else() {
    let mut running = JoinSet::new();
    for case in cases() {
        let what = case.to_string();
        running.spawn(async move { (what, tokio::spawn(run(case)).await) });
    }
    let mut failed = Vec::new();
    while let Some(ended) = running.join_next().await {
        let (what, result) = ended.unwrap();
        if let Err(error) = result {
            failed.push(format!("{what}: {error}"));
        }
    }
    assert!(
        failed.is_empty(),
        "{} failed:\n{}",
        failed.len(),
        failed.join("\n")
    );
}
