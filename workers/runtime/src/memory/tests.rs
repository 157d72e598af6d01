//! The broker within the process: who is told what, and when.

use tokio::sync::mpsc;

use super::*;

fn message(partition: i32, token: u64) -> Outgoing {
    Outgoing {
        key: (*b"m").into(),
        payload: token.to_string().into_bytes().into(),
        headers: Vec::new(),
        partition,
        token,
    }
}

#[tokio::test]
async fn what_is_sent_is_read_in_order_and_from_where_asked() {
    let broker = MemoryBroker::new(2);
    let (sender, mut deliveries) = mpsc::unbounded_channel();
    let producer = broker.producer("t", sender);
    for token in 0..5 {
        producer.send(message(1, token)).unwrap();
    }
    assert!(matches!(producer.send(message(2, 9)), Err(SendError::Refused(_))));
    for token in 0..5 {
        assert_eq!(
            deliveries.recv().await,
            Some(Delivery {
                token,
                outcome: Outcome::Stored
            })
        );
    }
    let mut source = broker.source(&["t".to_owned()]);
    let SourceEvent::Assigned(all) = source.next().await else {
        panic!("not assigned")
    };
    assert_eq!(all.len(), 2);
    source.start(vec![
        (all[0].clone(), Start::Beginning),
        (all[1].clone(), Start::Offset(3)),
    ]);
    let SourceEvent::Messages(place, messages) = source.next().await else {
        panic!("no messages")
    };
    assert_eq!(place, all[1]);
    assert_eq!(messages.iter().map(|m| m.offset).collect::<Vec<_>>(), [3, 4]);
    source.commit(vec![(all[1].clone(), 5)]);
    assert_eq!(source.watermarks(&all[1]).await, Ok((4, 5)));
}

#[tokio::test]
async fn what_one_consumer_stored_stays_for_the_other() {
    let broker = MemoryBroker::new(1);
    let topics = ["t".to_owned()];
    let (mut fast, mut slow) = (broker.source(&topics), broker.source(&topics));
    let (sender, _deliveries) = mpsc::unbounded_channel();
    let producer = broker.producer("t", sender);
    for token in 0..3 {
        producer.send(message(0, token)).unwrap();
    }
    let SourceEvent::Assigned(all) = fast.next().await else {
        panic!("not assigned")
    };
    fast.commit(vec![(all[0].clone(), 3)]);
    let SourceEvent::Assigned(all) = slow.next().await else {
        panic!("not assigned")
    };
    slow.start(vec![(all[0].clone(), Start::Beginning)]);
    let SourceEvent::Messages(_, messages) = slow.next().await else {
        panic!("no messages")
    };
    assert_eq!(messages.len(), 3);
}

/// The tokens that are said to be stored by now.
fn told(deliveries: &mut mpsc::UnboundedReceiver<Delivery>) -> Vec<u64> {
    std::iter::from_fn(|| deliveries.try_recv().ok())
        .map(|delivery| {
            assert_eq!(delivery.outcome, Outcome::Stored);
            delivery.token
        })
        .collect()
}

#[tokio::test]
async fn a_message_is_stored_when_the_slowest_consumer_has_stored_it() {
    let broker = MemoryBroker::new(2);
    let topics = ["t".to_owned()];
    let (mut fast, mut slow) = (broker.source(&topics), broker.source(&topics));
    let (sender, mut deliveries) = mpsc::unbounded_channel();
    let producer = broker.producer("t", sender);
    for token in 0..6 {
        producer.send(message(0, token)).unwrap();
    }
    producer.send(message(1, 6)).unwrap();
    let place = |partition| TopicPartition {
        topic: "t".into(),
        partition,
    };
    assert!(told(&mut deliveries).is_empty());
    fast.commit(vec![(place(0), 6), (place(1), 1)]);
    assert!(told(&mut deliveries).is_empty());
    slow.commit(vec![(place(0), 2)]);
    assert_eq!(told(&mut deliveries), [0, 1]);
    slow.commit(vec![(place(0), 2)]);
    assert!(told(&mut deliveries).is_empty(), "nothing is said twice");
    slow.commit(vec![(place(1), 1), (place(0), 5)]);
    assert_eq!(told(&mut deliveries), [6, 2, 3, 4]);
    // The sink knows better than the consumer before, which ended before it could say so.
    slow.start(vec![(place(0), Start::Offset(6))]);
    assert_eq!(told(&mut deliveries), [5]);
    // Another topic, which nobody reads, waits for nobody.
    let (sender, mut deliveries) = mpsc::unbounded_channel();
    broker.producer("other", sender).send(message(0, 1)).unwrap();
    assert_eq!(told(&mut deliveries), [1]);
}

#[tokio::test]
async fn a_full_partition_takes_more_once_some_is_stored() {
    let broker = MemoryBroker::new(1);
    let mut source = broker.source(&["t".to_owned()]);
    let SourceEvent::Assigned(all) = source.next().await else {
        panic!("not assigned")
    };
    let (sender, mut deliveries) = mpsc::unbounded_channel();
    let producer = broker.producer("t", sender);
    let mut sent = 0;
    while producer.send(message(0, sent)).is_ok() {
        sent += 1;
    }
    assert_eq!(sent, WAITING as u64);
    assert_eq!(producer.send(message(0, sent)), Err(SendError::QueueFull));
    source.commit(vec![(all[0].clone(), 2)]);
    assert_eq!(told(&mut deliveries), [0, 1]);
    assert_eq!(producer.send(message(0, sent)), Ok(()));
    assert_eq!(producer.send(message(0, sent)), Err(SendError::QueueFull));
    source.commit(vec![(all[0].clone(), sent as i64 + 1)]);
    assert_eq!(told(&mut deliveries), (2..=sent).collect::<Vec<_>>());
}

#[tokio::test]
async fn a_flush_waits_for_its_own_messages() {
    let broker = MemoryBroker::new(1);
    let mut source = broker.source(&["t".to_owned()]);
    let SourceEvent::Assigned(all) = source.next().await else {
        panic!("not assigned")
    };
    let (sender, mut deliveries) = mpsc::unbounded_channel();
    let producer = broker.producer("t", sender);
    let (sender, _others) = mpsc::unbounded_channel();
    let other = broker.producer("t", sender);
    producer.send(message(0, 1)).unwrap();
    other.send(message(0, 2)).unwrap();
    producer.flush(Duration::ZERO).await;
    assert!(told(&mut deliveries).is_empty());
    let flushed = tokio::spawn(async move { producer.flush(Duration::MAX).await });
    tokio::task::yield_now().await;
    source.commit(vec![(all[0].clone(), 1)]);
    flushed.await.unwrap();
    assert_eq!(told(&mut deliveries), [1]);
}

#[tokio::test]
async fn a_waiting_reader_is_woken() {
    let broker = MemoryBroker::new(1);
    let mut source = broker.source(&["t".to_owned()]);
    let SourceEvent::Assigned(all) = source.next().await else {
        panic!("not assigned")
    };
    source.start(vec![(all[0].clone(), Start::Beginning)]);
    let reader = tokio::spawn(async move { source.next().await });
    let (sender, _deliveries) = mpsc::unbounded_channel();
    broker.producer("t", sender).send(message(0, 1)).unwrap();
    assert!(matches!(reader.await.unwrap(), SourceEvent::Messages(_, messages) if messages.len() == 1));
}
