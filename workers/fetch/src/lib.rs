//! What a Kafka consumer has read ahead, taken many messages at a time.
//!
//! [`rdkafka::consumer::BaseConsumer::poll`] takes one message: for each, librdkafka asks the clock and counts the
//! poll, and the binding makes an event, and memory that counts who holds it. librdkafka itself gives out many at once
//! (`rd_kafka_consume_batch_queue`), which the binding does not offer. [`Queue`] does, and no more:
//! 1. [`Queue::redirect`] sends what is read of a partition here from now on. The consumer's own queue is never taken
//!    from in this way: librdkafka would drop its rebalances, commits and errors there. It is polled beside this one.
//! 2. [`Queue::take`] gives a [`Batch`] of messages, which lie in librdkafka's memory until it is dropped.
//! 3. [`Queue::beside`] says how much there is to hear in the consumer's own queue, which `poll` does not: it returns
//!    nothing both where it was empty and where it held a line of the log.
//!
//! It is a crate of its own because calling librdkafka is `unsafe`, which every other crate forbids.

use std::{
    ffi::{CString, NulError},
    fmt,
    marker::PhantomData,
    ptr::NonNull,
    sync::Arc,
    time::Duration,
};

use rdkafka::{
    bindings,
    consumer::{BaseConsumer, Consumer, ConsumerContext},
};

pub use self::message::Message;

mod message;

/// A queue into which partitions of one consumer are read.
pub struct Queue<C: ConsumerContext + 'static> {
    queue: NonNull<bindings::rd_kafka_queue_t>,
    /// The consumer's own.
    own: NonNull<bindings::rd_kafka_queue_t>,
    /// Ends after the queues.
    consumer: Arc<BaseConsumer<C>>,
}

// SAFETY: librdkafka's queues may be used on any thread.
unsafe impl<C: ConsumerContext + 'static> Send for Queue<C> {}

impl<C: ConsumerContext + 'static> fmt::Debug for Queue<C> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Queue").finish_non_exhaustive()
    }
}

impl<C: ConsumerContext + 'static> Queue<C> {
    /// An empty queue beside the consumer's own. `None` where the consumer is in no group, and so has none.
    #[must_use]
    pub fn new(consumer: Arc<BaseConsumer<C>>) -> Option<Self> {
        let client = consumer.client().native_ptr();
        // SAFETY: the client lives as long as `consumer`, which outlives the queue.
        let own = NonNull::new(unsafe { bindings::rd_kafka_queue_get_consumer(client) })?;
        // SAFETY: the same.
        let queue = NonNull::new(unsafe { bindings::rd_kafka_queue_new(client) })?;
        Some(Self { queue, own, consumer })
    }

    /// How much there is to hear in the consumer's own queue.
    #[must_use]
    pub fn beside(&self) -> usize {
        // SAFETY: the queue is held here.
        unsafe { bindings::rd_kafka_queue_length(self.own.as_ptr()) }
    }

    /// Reads a partition into this queue from now on, and takes over what was read of it and not taken yet. To be
    /// called before the partition is assigned, and again from time to time: when librdkafka stops reading a partition,
    /// it forgets some time later where its messages went, though it may have been assigned again meanwhile. They wait
    /// in the partition then.
    ///
    /// # Errors
    /// Where the topic's name has a zero in it, which no topic's has.
    pub fn redirect(&self, topic: &str, partition: i32) -> Result<(), NulError> {
        let topic = CString::new(topic)?;
        let client = self.consumer.client().native_ptr();
        // SAFETY: the client lives as long as `consumer`, and the name until the end of this function.
        let from = unsafe { bindings::rd_kafka_queue_get_partition(client, topic.as_ptr(), partition) };
        if let Some(from) = NonNull::new(from) {
            // SAFETY: both are queues of this client, and both are held here.
            unsafe { bindings::rd_kafka_queue_forward(from.as_ptr(), self.queue.as_ptr()) };
            // SAFETY: it was got above, and is not used after this. The partition keeps a hold of its own.
            unsafe { bindings::rd_kafka_queue_destroy(from.as_ptr()) };
        }
        Ok(())
    }

    /// Waits until there are `most` messages, but not longer than `wait`, and takes what is there. With `most` of 1 the
    /// first message is waited for.
    #[must_use]
    pub fn take(&self, most: usize, wait: Duration) -> Batch<'_> {
        let mut messages = vec![std::ptr::null_mut(); most];
        let wait = i32::try_from(wait.as_millis()).unwrap_or(i32::MAX);
        // SAFETY: there is room for `most` messages, and librdkafka writes no more.
        let taken = unsafe {
            bindings::rd_kafka_consume_batch_queue(self.queue.as_ptr(), wait, messages.as_mut_ptr(), most)
        };
        // It is negative where this is no queue of a consumer's.
        messages.truncate(usize::try_from(taken).unwrap_or(0));
        Batch {
            messages,
            of: PhantomData,
        }
    }
}

impl<C: ConsumerContext + 'static> Drop for Queue<C> {
    fn drop(&mut self) {
        // SAFETY: it was made by `new`, no batch borrows it any more, and its client still lives. What is in it yet is
        // dropped, and what is read later too.
        unsafe { bindings::rd_kafka_queue_destroy(self.queue.as_ptr()) };
        // SAFETY: it was got by `new`; the consumer keeps a hold of its own.
        unsafe { bindings::rd_kafka_queue_destroy(self.own.as_ptr()) };
    }
}

/// Messages that were taken together, of any partitions; those of one partition are in the order of their offsets.
pub struct Batch<'a> {
    messages: Vec<*mut bindings::rd_kafka_message_t>,
    /// Its queue, and so the client.
    of: PhantomData<&'a ()>,
}

impl Batch<'_> {
    /// The messages, and the errors between them.
    pub fn iter(&self) -> impl Iterator<Item = Message<'_>> {
        // SAFETY: librdkafka gave these pointers to messages that are nobody else's, and they live until `self` is
        // dropped.
        self.messages
            .iter()
            .filter_map(|&message| unsafe { message.as_ref() }.map(Message::new))
    }

    /// Whether there was nothing to take.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.messages.is_empty()
    }
}

impl fmt::Debug for Batch<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.iter()).finish()
    }
}

impl Drop for Batch<'_> {
    fn drop(&mut self) {
        for &message in &self.messages {
            // SAFETY: it is a message of this batch, and nothing borrows it any more.
            unsafe { bindings::rd_kafka_message_destroy(message) };
        }
    }
}
