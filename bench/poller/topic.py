"""What really arrived in the topic: every record is read back and looked into."""

import json
import re
from dataclasses import dataclass, field
from datetime import datetime

from confluent_kafka import Consumer, TopicPartition
from confluent_kafka.admin import AdminClient, NewTopic

from .configs import BROKER
from .servers import Failed

INFLUX_FIELD = re.compile(rb"r\d+=\d")


def create(topic: str) -> str:
    """A new topic, before anybody writes to it."""
    admin = AdminClient({"bootstrap.servers": BROKER, "log_level": 3})
    admin.create_topics([NewTopic(topic, 6, 1)])[topic].result(30)
    return topic


@dataclass
class Delivered:
    """What was sampled in a span of time and delivered."""

    records: int = 0
    registers: int = 0
    good: int = 0
    slots: set = field(default_factory=set)


def records(topic: str):
    """All records of a topic."""
    consumer = Consumer({"bootstrap.servers": BROKER, "group.id": "bench", "enable.auto.commit": False, "log_level": 3})
    try:
        partitions = consumer.list_topics(topic, 10).topics[topic].partitions
        ends = {p: consumer.get_watermark_offsets(TopicPartition(topic, p), 10)[1] for p in partitions}
        consumer.assign([TopicPartition(topic, p, 0) for p, end in ends.items() if end > 0])
        left = sum(ends.values())
        while left > 0:
            batch = consumer.consume(1000, 10)
            if not batch:
                raise Failed(f"{left} records of {topic} cannot be read back")
            for message in batch:
                if message.error():
                    raise Failed(str(message.error()))
                left -= 1
                yield message
    finally:
        consumer.close()


def delivered(topic: str, began: float, ended: float, interval_ms: int) -> Delivered:
    """What was sampled from `began` to before `ended`, in seconds since the epoch.

    The poller's records say by `slot` when they were due, Telegraf's by the message's
    timestamp when they were read.
    """
    result = Delivered()
    for message in records(topic):
        payload = message.value()
        ours = None
        if payload.startswith(b"{"):
            record = json.loads(payload)
            values = record.get("fields", record)
            registers = sum(1 for name in values if name[0] == "r" and name[1:].isdigit())
            if "slot" in record:
                ours = record
        else:
            registers = len(INFLUX_FIELD.findall(payload))
        if ours:
            millis = round(datetime.fromisoformat(ours["slot"]).timestamp() * 1000)
            good = ours["quality"] == "good"
        else:
            millis = message.timestamp()[1]
            good = True
        if not began * 1000 <= millis < ended * 1000:
            continue
        result.records += 1
        result.registers += registers
        result.good += good
        result.slots.add((message.key(), millis // interval_ms))
    return result
