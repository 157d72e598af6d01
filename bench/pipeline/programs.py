"""What is measured: the worker, and its peers."""

import json
import os
import shutil
import socket
import time

from poller.configs import BROKER
from poller.servers import BINARIES, CACHE, WORK, Process

from .database import PORT
from .records import METRICS


class Worker(Process):
    """The pipeline worker, with its defaults."""

    def __init__(self, name: str, topic: str, table: str, hypertable: bool):
        config = {
            "namespace": "bench",
            "name": name,
            "kafka": {"bootstrapServers": [BROKER]},
            "topics": [topic],
            "group": name,
            "sink": {
                "postgres": {
                    "urlFile": str(WORK / "url"),
                    "schema": "public",
                    "table": table,
                    "hypertable": {"chunkIntervalMillis": None} if hypertable else None,
                }
            },
            "columns": {},
            "batch": json.loads(os.environ.get("BATCH", "{}")),
        }
        path = WORK / "pipeline.json"
        path.write_text(json.dumps(config))
        super().__init__("corrente-pipeline", BINARIES / "corrente-pipeline", "--config", path, "--listen", free_port())


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("", 0))
        return free.getsockname()[1]


class Connect(Process):
    """Kafka Connect in one process with Debezium's JDBC sink, at the fastest that was found."""

    def __init__(self, topic: str, table: str, tasks: int, batch: int):
        folder = WORK / "connect"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        worker = {
            "bootstrap.servers": BROKER,
            "listeners": "http://127.0.0.1:0",
            "offset.storage.file.filename": folder / "offsets",
            "key.converter": "org.apache.kafka.connect.storage.StringConverter",
            "value.converter": "org.apache.kafka.connect.json.JsonConverter",
            "consumer.auto.offset.reset": "earliest",
            "consumer.max.poll.records": batch,
            "consumer.fetch.min.bytes": 1_000_000,
            "consumer.max.partition.fetch.bytes": 4_000_000,
            "plugin.discovery": "only_scan",
        }
        sink = {
            # The consumer group is named after it.
            "name": f"bench-{time.time_ns()}",
            "connector.class": "io.debezium.connector.jdbc.JdbcSinkConnector",
            "topics": topic,
            "tasks.max": tasks,
            "connection.url": f"jdbc:postgresql://127.0.0.1:{PORT}/postgres?reWriteBatchedInserts=true",
            "connection.username": "postgres",
            "connection.password": "postgres",
            "insert.mode": "insert",
            "primary.key.mode": "none",
            "schema.evolution": "none",
            "collection.name.format": table,
            "batch.size": batch,
            "use.reduction.buffer": "false",
        }
        files = []
        for name, properties in (("worker", worker), ("sink", sink)):
            files.append(folder / f"{name}.properties")
            files[-1].write_text("".join(f"{key}={value}\n" for key, value in properties.items()))
        super().__init__(
            "connect", "java", "-Xmx1g", "-cp", f"{CACHE}/connect/*",
            "org.apache.kafka.connect.cli.ConnectStandalone", *files,
        )  # fmt: skip


class Telegraf(Process):
    """Telegraf's kafka_consumer and postgresql plugins, with batches as large as they help."""

    def __init__(self, topic: str, table: str):
        fields = "".join(
            f'      [[inputs.kafka_consumer.json_v2.field]]\n        path = "{name}"\n        type = "float"\n' for name in METRICS
        )
        config = f"""
[agent]
  interval = "1s"
  flush_interval = "1s"
  metric_batch_size = 20000
  metric_buffer_limit = 400000
  omit_hostname = true
[[inputs.kafka_consumer]]
  brokers = ["{BROKER}"]
  topics = ["{topic}"]
  consumer_group = "{table}"
  offset = "oldest"
  kafka_version = "3.6.0"
  max_undelivered_messages = 200000
  data_format = "json_v2"
  [[inputs.kafka_consumer.json_v2]]
    measurement_name = "{table}"
    timestamp_path = "ts"
    timestamp_format = "rfc3339"
      [[inputs.kafka_consumer.json_v2.tag]]
        path = "meter"
      [[inputs.kafka_consumer.json_v2.tag]]
        path = "stream"
      [[inputs.kafka_consumer.json_v2.field]]
        path = "seq"
        type = "int"
{fields}
[[outputs.postgresql]]
  connection = "postgres://postgres@127.0.0.1:{PORT}/postgres?pool_max_conns=2"
"""
        path = WORK / "telegraf-pipeline.conf"
        path.write_text(config)
        super().__init__("telegraf-pipeline", CACHE / "bin/telegraf-pipeline", "--config", path)

