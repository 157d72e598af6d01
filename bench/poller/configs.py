"""The same meters, written down for the poller, the simulator and Telegraf.

Meters are units 1 to n behind each endpoint, with registers of type u16 side by side, so
that one request reads a meter.
"""

import json
from dataclasses import dataclass
from pathlib import Path

BROKER = "127.0.0.1:9192"
FIRST_PORT = 21000


@dataclass(frozen=True)
class Plant:
    """So many endpoints with so many units of so many registers, read every `interval_ms`.

    The poller may have `in_flight` requests of an endpoint under way at a time; Telegraf has one.
    """

    endpoints: int
    units: int
    registers: int
    interval_ms: int
    in_flight: int = 1

    @property
    def meters(self) -> int:
        return self.endpoints * self.units

    def ports(self) -> list:
        return list(range(FIRST_PORT, FIRST_PORT + self.endpoints))

    def address(self, port: int) -> str:
        return f"127.0.0.1:{port}"

    def names(self) -> list:
        return [f"r{number:02}" for number in range(self.registers)]


def poller(plant: Plant, topic: str, path: Path) -> Path:
    """The configuration of the poller, which the simulator reads too. What is not named has its default."""
    registers = [
        {"name": name, "address": address, "function": "holding", "type": "u16"}
        for address, name in enumerate(plant.names())
    ]
    endpoints = [
        {
            "name": f"e{port}",
            "address": plant.address(port),
            "transport": "tcp",
            "maxInFlight": plant.in_flight,
            "meters": [
                {"name": f"m{port}-{unit}", "unitId": unit, "registerMap": "bench"}
                for unit in range(1, plant.units + 1)
            ],
        }
        for port in plant.ports()
    ]
    config = {
        "namespace": "bench",
        "name": "bench",
        "shard": 0,
        "interval": f"{plant.interval_ms}ms",
        "timeout": "1s",
        "retries": 1,
        "maps": {"map/bench": {"registers": registers}},
        "endpoints": endpoints,
        "output": {"bootstrapServers": [BROKER], "topic": topic},
        "buffer": {"maxBytes": 256 * 1024 * 1024, "syncInterval": "1s"},
    }
    path.write_text(json.dumps(config))
    return path


def telegraf(plant: Plant, topic: str, path: Path, serializer: str) -> Path:
    """Telegraf's configuration: the defaults, but for what makes it read and send what the poller does.

    The broker's key is the meter, as in the poller; the flush is as often as the poller syncs
    and sends; no host is looked up. Compression and idempotence are off, as they are by default.
    """
    lines = [
        "[agent]",
        f'  interval = "{plant.interval_ms}ms"',
        '  flush_interval = "1s"',
        "  omit_hostname = true",
        "[[outputs.kafka]]",
        f'  brokers = ["{BROKER}"]',
        f'  topic = "{topic}"',
        '  version = "3.6.0"',
        '  routing_tag = "meter"',
        f'  data_format = "{serializer}"',
    ]
    if serializer == "json":
        lines.append('  json_timestamp_units = "1ms"')
    fields = [f'    {{address = {address}, name = "{name}", type = "UINT16"}},' for address, name in enumerate(plant.names())]
    for port in plant.ports():
        lines += [
            "[[inputs.modbus]]",
            f'  name = "e{port}"',
            f'  controller = "tcp://{plant.address(port)}"',
            '  timeout = "1s"',
            '  configuration_type = "request"',
        ]
        for unit in range(1, plant.units + 1):
            lines += [
                "  [[inputs.modbus.request]]",
                f"    slave_id = {unit}",
                '    byte_order = "ABCD"',
                '    register = "holding"',
                '    optimization = "max_insert"',
                "    optimization_max_register_fill = 50",
                "    fields = [",
                *fields,
                "    ]",
                "    [inputs.modbus.request.tags]",
                f'      meter = "m{port}-{unit}"',
            ]
    path.write_text("\n".join(lines) + "\n")
    return path
