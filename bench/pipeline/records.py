"""The topics: records as a poller writes them, all there before anybody reads."""

import time

from confluent_kafka import Producer
from confluent_kafka.admin import AdminClient, NewTopic
from poller.configs import BROKER

PARTITIONS = 6
METERS = 120
# Pollers' spools: each has its own part of the meters.
STREAMS = ["k7f3q2m9w4x1c", "b2h8t5n0p6r3d", "z9v1j4s7l2g8a"]
METRICS = [
    "voltage_l1_n", "voltage_l2_n", "voltage_l3_n", "current_l1", "current_l2", "current_l3",
    "active_power_total", "energy_active_import",
]  # fmt: skip
# 2026-11-20T00:00:00Z; a meter is read each second.
BEGIN = 1_795_132_800
# One in so many has a value that is no number, where that is asked for.
BAD = 1000

SCHEMA = ",".join(
    f'{{"field":"{name}",{kind}}}'
    for name, kind in [
        ("ts", '"type":"int64","name":"org.apache.kafka.connect.data.Timestamp","version":1'),
        ("meter", '"type":"string"'),
        ("slot", '"type":"int64","name":"org.apache.kafka.connect.data.Timestamp","version":1'),
        ("stream", '"type":"string"'),
        ("seq", '"type":"int64"'),
        ("quality", '"type":"string"'),
        *((name, '"type":"double"') for name in METRICS),
    ]
)


def values(number: int, current: str = "") -> str:
    """Eight metrics, with digits as meters have them."""
    n = number * 7919 % 10_000
    current = current or f"{n % 977 / 100:.7g}"
    return (
        f'"voltage_l1_n":{225 + n % 97 / 10:.7g},"voltage_l2_n":{226 + n % 89 / 10:.7g},"voltage_l3_n":{224 + n % 83 / 10:.7g},'
        f'"current_l1":{current},"current_l2":{n % 953 / 100:.7g},"current_l3":{n % 919 / 100:.7g},'
        f'"active_power_total":{n * 3 / 8:.7g},"energy_active_import":{123_456_700 + number // 7}'
    )


def records(count: int, enveloped: bool, bad: bool):
    """(key, payload) of each record; `seq` rises by one per stream, in the order of sending."""
    seqs = [0] * len(STREAMS)
    second = -1
    for number in range(count):
        meter = number % METERS
        if number // METERS != second:
            second = number // METERS
            slot = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(BEGIN + second))
        spool = meter % len(STREAMS)
        seq = seqs[spool]
        seqs[spool] += 1
        key = f"feeder-{meter}"
        ids = f'"stream":"{STREAMS[spool]}","seq":{seq},"quality":"good"'
        measured = values(number, '"n/a"' if bad and number % BAD == BAD // 2 else "")
        if enveloped:
            millis = (BEGIN + second) * 1000
            payload = (
                f'{{"schema":{{"type":"struct","fields":[{SCHEMA}]}},"payload":{{"ts":{millis + 123},"meter":"{key}",'
                f'"slot":{millis},{ids},{measured}}}}}'
            )
        else:
            payload = f'{{"ts":"{slot}.123Z","meter":"{key}","slot":"{slot}.000Z",{ids},{measured}}}'
        yield key, payload


def preload(name: str, count: int, enveloped: bool = False, bad: bool = False) -> str:
    """A topic with so many records, compressed and partitioned as a poller does it."""
    topic = f"{name}-{time.time_ns()}"
    admin = AdminClient({"bootstrap.servers": BROKER, "log_level": 3})
    admin.create_topics([NewTopic(topic, PARTITIONS, 1)])[topic].result(30)
    producer = Producer({
        "bootstrap.servers": BROKER,
        "log_level": 3,
        "partitioner": "murmur2_random",
        "compression.type": "lz4",
        "enable.idempotence": True,
        "linger.ms": 20,
        "queue.buffering.max.messages": 500_000,
    })  # fmt: skip
    for sent, (key, payload) in enumerate(records(count, enveloped, bad)):
        while True:
            try:
                producer.produce(topic, payload, key)
                break
            except BufferError:
                producer.poll(0.1)
        if sent % 10_000 == 0:
            producer.poll(0)
    if producer.flush(60):
        raise RuntimeError(f"{topic} could not be filled")
    return topic
