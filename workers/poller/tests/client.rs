//! The client over a socket: a window of requests, what spends it, and what it says then.
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use std::time::Duration;

use common::Device;
use corrente_config::EndpointAddress;
use corrente_crds::{poller::Transport, profile::Function};
use corrente_modbus::adu::{Question, Request, mbap, pdu};
use corrente_poller::client::{
    Connector, Exception, ModbusClient, ReadBlock, ReadError, Registers, TcpClient, TcpConnector,
};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
};

const TIMEOUT: Duration = Duration::from_millis(300);

fn connector(address: impl ToString, max_in_flight: usize) -> TcpConnector {
    let address = EndpointAddress::normalise(&address.to_string()).unwrap();
    TcpConnector::new(&address, Transport::Tcp, TIMEOUT).with_max_in_flight(max_in_flight)
}

fn block(address: u16) -> ReadBlock {
    ReadBlock {
        unit: 1,
        function: Function::Holding,
        address,
        count: 1,
    }
}

fn blocks(count: u16) -> Vec<ReadBlock> {
    (0..count).map(block).collect()
}

/// A client, and the server's end of its connection.
async fn pair(max_in_flight: usize) -> (TcpClient, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let connector = connector(listener.local_addr().unwrap(), max_in_flight);
    let (client, server) = tokio::join!(connector.connect(false), listener.accept());
    (client.unwrap(), server.unwrap().0)
}

/// The next request: its transaction id and what it asks.
async fn asked(server: &mut TcpStream) -> (u16, Question) {
    let mut request = [0; mbap::REQUEST];
    server.read_exact(&mut request).await.unwrap();
    let (frame, _) = mbap::decode(&request).unwrap().unwrap();
    (
        frame.transaction,
        Request::of(frame.pdu).unwrap().question().unwrap(),
    )
}

/// The answer that a register holds its own address.
fn answer((transaction, question): (u16, Question)) -> Vec<u8> {
    let mut out = Vec::new();
    mbap::answer(&mut out, transaction, 1, |out| {
        pdu::registers(Function::Holding, [question.address()].into_iter(), out)
    });
    out
}

type Seen = Vec<(usize, Result<u16, ReadError>)>;

async fn read_many(client: &mut TcpClient, blocks: &[ReadBlock]) -> Seen {
    let mut seen = Vec::new();
    let mut on = |index, read: Result<Registers, ReadError>| {
        seen.push((
            index,
            read.map(|registers| match registers {
                Registers::Words(words) => words[0],
                Registers::Bits(_) => panic!("these are no words"),
            }),
        ));
    };
    client.read_many(blocks, &mut on).await;
    seen
}

fn spent(seen: &Seen) -> &str {
    match seen.last() {
        Some((_, Err(ReadError::Connection(why)))) => why,
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn a_window_of_requests_slides_and_takes_answers_in_any_order() {
    let (mut client, mut server) = pair(4).await;
    let serve = async {
        // Nothing is answered before four are asked: a client that waits for each answer would stay here.
        let mut window = Vec::new();
        for _ in 0..4 {
            window.push(asked(&mut server).await);
        }
        let ids: std::collections::BTreeSet<u16> = window.iter().map(|(id, _)| *id).collect();
        assert_eq!(ids.len(), 4, "each has an id of its own");
        for _ in 0..6 {
            let last = window.pop().unwrap();
            server.write_all(&answer(last)).await.unwrap();
            // Room for one is room for the next.
            window.push(asked(&mut server).await);
        }
        let rest: Vec<u8> = window.into_iter().rev().flat_map(answer).collect();
        server.write_all(&rest).await.unwrap();
    };
    let blocks = blocks(10);
    let (seen, ()) = tokio::join!(read_many(&mut client, &blocks), serve);
    let order: Vec<usize> = seen.iter().map(|(index, _)| *index).collect();
    assert_eq!(order, [3, 4, 5, 6, 7, 8, 9, 2, 1, 0]);
    assert!(
        seen.iter()
            .all(|(index, read)| *read == Ok(u16::try_from(*index).unwrap()))
    );
}

#[tokio::test]
async fn an_exception_costs_its_block_alone() {
    let (mut client, mut server) = pair(2).await;
    let serve = async {
        for _ in 0..3 {
            let (transaction, question) = asked(&mut server).await;
            let mut out = Vec::new();
            if question.address() == 1 {
                mbap::answer(&mut out, transaction, 1, |out| pdu::exception(3, 2, out));
            } else {
                out = answer((transaction, question));
            }
            server.write_all(&out).await.unwrap();
        }
    };
    let blocks = blocks(3);
    let (seen, ()) = tokio::join!(read_many(&mut client, &blocks), serve);
    let refused = Err(ReadError::Exception(Exception(2)));
    assert_eq!(seen, [(0, Ok(0)), (1, refused), (2, Ok(2))]);
}

#[tokio::test]
async fn the_first_timeout_is_told_and_the_rest_is_not() {
    let (mut client, mut server) = pair(3).await;
    let serve = async {
        let _silent = asked(&mut server).await;
        let second = asked(&mut server).await;
        server.write_all(&answer(second)).await.unwrap();
        // The third is asked, and so is the fourth, since the second left room; neither is answered.
        let _ = (asked(&mut server).await, asked(&mut server).await);
    };
    let blocks = blocks(4);
    let (seen, ()) = tokio::join!(read_many(&mut client, &blocks), serve);
    assert_eq!(seen, [(1, Ok(1)), (0, Err(ReadError::Timeout(TIMEOUT)))]);
    let seen = read_many(&mut client, &blocks).await;
    assert!(spent(&seen).contains("given up"), "{seen:?}");
}

#[tokio::test]
async fn a_gateway_that_does_not_echo_the_transaction_id_is_refused_with_a_sentence() {
    let (mut client, mut server) = pair(1).await;
    let serve = async {
        let (transaction, question) = asked(&mut server).await;
        let other = answer((transaction.wrapping_add(1), question));
        server.write_all(&other).await.unwrap();
    };
    let blocks = blocks(1);
    let (seen, ()) = tokio::join!(read_many(&mut client, &blocks), serve);
    assert!(spent(&seen).contains("does not echo the id"), "{seen:?}");
    let seen = read_many(&mut client, &blocks).await;
    assert!(spent(&seen).contains("given up"), "{seen:?}");
}

#[tokio::test]
async fn no_transaction_id_comes_again_on_the_next_connection() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let connector = connector(listener.local_addr().unwrap(), 1);
    let mut ids = Vec::new();
    for _ in 0..3 {
        let (client, server) = tokio::join!(connector.connect(false), listener.accept());
        let (mut client, mut server) = (client.unwrap(), server.unwrap().0);
        let serve = async {
            let question = asked(&mut server).await;
            server.write_all(&answer(question)).await.unwrap();
            question.0
        };
        let (read, id) = tokio::join!(client.read(block(7)), serve);
        assert_eq!(read, Ok(Registers::Words(vec![7])));
        ids.push(id);
    }
    assert!(
        ids[0] != ids[1] && ids[1] != ids[2] && ids[0] != ids[2],
        "{ids:?}"
    );
}

#[tokio::test]
async fn a_drip_of_bytes_does_not_put_off_the_timeout() {
    let (mut client, mut server) = pair(1).await;
    let drip = tokio::spawn(async move {
        let bytes = answer(asked(&mut server).await);
        // All but the last byte, and never that one; it ends when the client hangs up.
        for byte in &bytes[..bytes.len() - 1] {
            if server.write_all(&[*byte]).await.is_err() {
                return;
            }
            tokio::time::sleep(TIMEOUT / 4).await;
        }
        let _ = server.read(&mut [0]).await;
    });
    assert_eq!(client.read(block(0)).await, Err(ReadError::Timeout(TIMEOUT)));
    drop(client);
    drip.await.unwrap();
}

#[tokio::test]
async fn a_torn_answer_and_another_protocol_are_told_apart() {
    for (bytes, why) in [
        (
            &[0_u8, 0, 0, 0, 0, 5, 1][..],
            "the other side closed the connection",
        ),
        (b"HTTP/1.1 400 Bad Request\r\n", "not Modbus"),
    ] {
        let (mut client, mut server) = pair(1).await;
        let serve = async {
            asked(&mut server).await;
            server.write_all(bytes).await.unwrap();
            drop(server);
        };
        let blocks = blocks(1);
        let (seen, ()) = tokio::join!(read_many(&mut client, &blocks), serve);
        assert!(spent(&seen).contains(why), "{seen:?}");
    }
}

#[tokio::test]
async fn a_read_that_was_broken_off_spends_the_client() {
    let (mut client, mut server) = pair(1).await;
    tokio::select! {
        read = client.read(block(0)) => panic!("{read:?}"),
        late = asked(&mut server) => server.write_all(&answer(late)).await.unwrap(),
    }
    let read = client.read(block(0)).await;
    let why = "the connection was given up with an answer outstanding".to_owned();
    assert_eq!(read, Err(ReadError::Connection(why)));
}

#[tokio::test]
async fn a_server_of_others_answers_a_whole_window() {
    let device = Device::tcp().await;
    let words: Vec<u16> = (0..200).map(|word| word * 7).collect();
    device.set(1, 0, &words);
    for max_in_flight in [1, 16] {
        let connector = connector(device.address, max_in_flight);
        let mut client = connector.connect(false).await.unwrap();
        let seen = read_many(&mut client, &blocks(200)).await;
        assert_eq!(seen.len(), 200);
        assert!(seen.iter().all(|(index, read)| *read == Ok(words[*index])));
    }
    assert_eq!(device.connections(), 2);
}
