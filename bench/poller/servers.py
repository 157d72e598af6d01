"""The processes of a run: the broker, the simulator, and what is measured.

Each is ended by its own id when its block is left, however that happens.
"""

import os
import shutil
import socket
import subprocess
import time
import urllib.request
from pathlib import Path

from . import configs

BENCH = Path(os.environ["BENCH"])
CACHE = Path(os.environ["CORRENTE_CACHE"])
BINARIES = Path(os.environ["BENCH_BINARIES"])
# On a disk, not in memory: the spool is part of what is measured.
WORK = CACHE / "bench"


class Failed(Exception):
    """A run that cannot go on, with the reason."""


class Process:
    """A process with a log, from here to the end of a `with` block."""

    def __init__(self, name: str, *command):
        self.log = WORK / f"{name}.log"
        self.name = name
        self.began = time.time()
        with self.log.open("wb") as log:
            self.child = subprocess.Popen(
                [str(word) for word in command], stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd=WORK
            )

    @property
    def pid(self) -> int:
        return self.child.pid

    def check(self) -> None:
        if self.child.poll() is not None:
            tail = self.log.read_text(errors="replace")[-2000:]
            raise Failed(f"{self.name} ended with {self.child.returncode}; the end of {self.log}:\n{tail}")

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.child.terminate()
        try:
            self.child.wait(10)
        except subprocess.TimeoutExpired:
            self.child.kill()
            self.child.wait()


def wait_for_port(process: Process, port: int, seconds: float = 60) -> None:
    deadline = time.time() + seconds
    while True:
        process.check()
        try:
            socket.create_connection(("127.0.0.1", port), 1).close()
            return
        except OSError:
            if time.time() > deadline:
                raise Failed(f"{process.name} does not listen on port {port}; see {process.log}") from None
            time.sleep(0.1)


def broker() -> Process:
    """A Kafka broker on a new folder."""
    data = WORK / "kafka"
    shutil.rmtree(data, ignore_errors=True)
    properties = WORK / "kafka.properties"
    port = int(configs.BROKER.rsplit(":", 1)[1])
    text = (BENCH / "kafka.properties").read_text()
    for name, value in (("@DATA@", data), ("@PORT@", port), ("@CONTROLLER@", port + 1)):
        text = text.replace(name, str(value))
    properties.write_text(text)
    logging = BENCH.parent / "e2e/stack/kafka/log4j2.properties"
    java = ["java", f"-Dlog4j2.configurationFile={logging}", "-cp", f"{CACHE}/kafka/*"]
    subprocess.run(
        [*java, "kafka.tools.StorageTool", "format", "-t", "Y29ycmVudGUtZTJlLTAwMQ", "-c", properties],
        check=True,
        capture_output=True,
    )
    process = Process("kafka", *java, "-Xmx512m", "kafka.Kafka", properties)
    wait_for_port(process, port)
    return process


def simulator(plant: configs.Plant) -> Process:
    config = configs.poller(plant, "none", WORK / "simulator.json")
    process = Process("simulator", BINARIES / "corrente-simulator", "--config", config)
    wait_for_port(process, plant.ports()[-1])
    return process


class Poller(Process):
    """The poller on a new spool."""

    def __init__(self, plant: configs.Plant, topic: str):
        spool = WORK / "spool"
        shutil.rmtree(spool, ignore_errors=True)
        config = configs.poller(plant, topic, WORK / "poller.json")
        with socket.socket() as free:
            free.bind(("", 0))
            self.port = free.getsockname()[1]
        super().__init__(
            "corrente-poller", BINARIES / "corrente-poller", "--config", config, "--spool", spool, "--listen", self.port
        )

    def metrics(self) -> str:
        with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/metrics", timeout=5) as answer:
            return answer.read().decode()


class Telegraf(Process):
    def __init__(self, plant: configs.Plant, topic: str, serializer: str):
        config = configs.telegraf(plant, topic, WORK / "telegraf.conf", serializer)
        super().__init__("telegraf", CACHE / "bin/telegraf", "--config", config)
