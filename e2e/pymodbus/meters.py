#!/usr/bin/env python3
"""Serve Modbus TCP meters by pymodbus, and write down who asked what.

usage: meters.py CONFIG LOG [--with-parent]

The scenarios read meters of an implementation that is not the project's own, so that
both ends cannot share one misreading of the protocol. CONFIG is a JSON file, or - for
standard input:

    [{"name": "gateway-1", "host": "10.123.0.1", "port": 5020, "framer": "socket",
      "missing": "silent",
      "units": [{"unit": 1,
                 "registers": {"holding": {"0": 2300, "1": 17}, "input": {"10": 1},
                               "coil": {"0": 1}, "discrete": {"3": 0}},
                 "rising": {"holding": [1]}}]}]

framer    "socket" (Modbus TCP, the default) or "rtu" (RTU frames over TCP)
port      0 takes a free one
tls       a folder with ca.crt, tls.crt and tls.key: Modbus/TCP Security, for clients with a
          certificate of that authority alone
missing   what a unit that is not there does: "silent" (the default), or "gateway", for
          which its gateway answers exception 0B
hold      seconds for which the line is held by a request for a unit that is not there,
          as by a gateway that waits for it; all others wait meanwhile. 0, the default, for
          a server that has no line
most      the most connections; one more is closed at once. 0, the default, for any number
registers zero-based addresses; one that is not given answers exception 02. (Gaps between
          coils read as 0: pymodbus keeps bits in words.)
rising    registers that count one up at each read, so that no two readings are equal

Once every port listens, READY and a JSON object of ports by name goes to standard
output. LOG is appended one JSON object a line, flushed: {"t": seconds since the epoch,
"endpoint", "event": "connect" | "request" | "disconnect", "connection": a number of its
own, "peer"}, and for a request also "unit", "function", "address", "count". From it
tests tell whether an endpoint ever had two masters. With --with-parent the process ends
when the one that started it has ended, so that a killed test leaves no port taken.
"""
import asyncio
import itertools
import json
import os
import signal
import ssl
import sys
import time

from pymodbus.constants import ExcCodes
from pymodbus.framer import FramerType
from pymodbus.pdu import ExceptionResponse
from pymodbus.server import ModbusTcpServer
from pymodbus.server.requesthandler import ServerRequestHandler
from pymodbus.simulator import DataType, SimData, SimDevice
from pymodbus.transport import CommParams, CommType

FRAMERS = {"socket": FramerType.SOCKET, "rtu": FramerType.RTU}
FUNCTIONS = {"coil": 1, "discrete": 2, "holding": 3, "input": 4}
NO_BITS = 65520  # pymodbus wants a block of each kind: where there are no bits, it is out of the way


class Trace:
    """The log: one JSON object a line."""

    def __init__(self, path: str) -> None:
        self.file = open(path, "a", buffering=1, encoding="utf-8")
        self.connections = itertools.count(1)

    def write(self, **fields) -> None:
        """Write one event down, with the time it is now."""
        self.file.write(json.dumps({"t": time.time(), **fields}) + "\n")


class Connection(ServerRequestHandler):
    """One client's connection: pymodbus's own handler, which says what happens to it."""

    def __init__(self, endpoint: "Endpoint") -> None:
        super().__init__(endpoint, None, self.note_request, None)
        self.endpoint = endpoint
        self.number = next(endpoint.trace.connections)
        self.peer = ""
        self.is_served = False

    def note(self, event: str, **fields) -> None:
        """Write an event of this connection down."""
        self.endpoint.trace.write(
            endpoint=self.endpoint.name, event=event, connection=self.number, peer=self.peer, **fields
        )

    def callback_connected(self) -> None:
        """Note the connection and whose it is."""
        super().callback_connected()
        if 0 < self.endpoint.most <= self.endpoint.served:
            self.transport.abort()
            return
        self.endpoint.served += 1
        self.is_served = True
        host, port = self.transport.get_extra_info("peername")[:2]
        self.peer = f"{host}:{port}"
        self.note("connect")

    def callback_disconnected(self, exc) -> None:
        """Note the end of the connection."""
        if self.is_served:
            self.endpoint.served -= 1
            self.note("disconnect")
        super().callback_disconnected(exc)

    def note_request(self, sending: bool, pdu):
        """Note a request as it comes in; answers pass as they are."""
        if not sending:
            self.note("request", unit=pdu.dev_id, function=pdu.function_code, address=pdu.address, count=pdu.count)
        return pdu

    async def handle_request(self) -> None:
        """Answer by pymodbus, unless there is no such unit: that is for its gateway to say."""
        request, peer = self.last_pdu, self.last_addr
        if request is None:
            return
        if not self.endpoint.hold:
            await self.answer(request, peer)
            return
        # Whoever asked may be gone by then: the line is held all the same.
        async with self.endpoint.line:
            await self.answer(request, peer)

    async def answer(self, request, peer) -> None:
        """Answer one request, which is on the line now."""
        if request.dev_id in self.endpoint.context.devices:
            self.last_pdu, self.last_addr = request, peer
            await super().handle_request()
            return
        await asyncio.sleep(self.endpoint.hold)
        if self.endpoint.missing == "gateway":
            answer = ExceptionResponse(request.function_code, ExcCodes.GATEWAY_NO_RESPONSE)
            answer.transaction_id, answer.dev_id = request.transaction_id, request.dev_id
            self.server_send(answer, peer)


class Endpoint(ModbusTcpServer):
    """One address with the meters behind it."""

    def __init__(self, config: dict, trace: Trace) -> None:
        self.name = config["name"]
        self.missing = config.get("missing", "silent")
        if config.get("tls"):
            # What sets pymodbus's server with TLS apart from the one without.
            self.tls_setup = CommParams(
                comm_type=CommType.TLS, comm_name="server_listener", reconnect_delay=0.0, reconnect_delay_max=0.0,
                timeout_connect=0.0, sslctx=mutual(config["tls"]),
            )
        self.hold = config.get("hold", 0)
        self.most = config.get("most", 0)
        self.served = 0
        self.line = asyncio.Lock()
        self.trace = trace
        super().__init__(
            [device(unit) for unit in config["units"]],
            framer=FRAMERS[config.get("framer", "socket")],
            address=(config["host"], config["port"]),
        )

    def callback_new_connection(self) -> Connection:
        """Called by pymodbus for each connection."""
        return Connection(self)

    def port(self) -> int:
        """The port it listens on."""
        return self.transport.sockets[0].getsockname()[1]


def mutual(folder: str) -> ssl.SSLContext:
    """TLS in which both sides show a certificate."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(f"{folder}/tls.crt", f"{folder}/tls.key")
    context.load_verify_locations(f"{folder}/ca.crt")
    context.verify_mode = ssl.CERT_REQUIRED
    return context


def device(unit: dict) -> SimDevice:
    """A meter as pymodbus describes it."""
    tables = unit["registers"]
    rising = {(FUNCTIONS[kind], address) for kind, list_ in unit.get("rising", {}).items() for address in list_}

    async def count_up(function, start, address, count, registers, _written):
        for asked in range(address, address + count):
            if (function, asked) in rising:
                registers[asked - start] = (registers[asked - start] + 1) % 65536

    return SimDevice(
        id=unit["unit"],
        simdata=(
            bits(tables.get("coil", {})),
            bits(tables.get("discrete", {})),
            words(tables.get("holding", {})),
            words(tables.get("input", {})),
        ),
        action=count_up,
    )


def bits(table: dict) -> list[SimData]:
    """Coils or discrete inputs."""
    if not table:
        return [SimData(NO_BITS, values=[False] * 16, datatype=DataType.BITS)]
    return [SimData(int(at), values=[bool(table[at])], datatype=DataType.BITS) for at in sorted(table, key=int)]


def words(table: dict) -> list[SimData]:
    """Holding or input registers; what lies between them is no valid address."""
    if not table:
        return [SimData(0, datatype=DataType.INVALID)]
    return [SimData(int(at), values=table[at], datatype=DataType.REGISTERS) for at in sorted(table, key=int)]


async def serve(config: list[dict], trace: Trace, with_parent: bool) -> None:
    """Listen everywhere, say so, and serve until told to stop."""
    ports = {}
    for endpoint_config in config:
        endpoint = Endpoint(endpoint_config, trace)
        try:
            await endpoint.serve_forever(background=True)
        except RuntimeError:
            sys.exit(f"meters.py: {endpoint_config['host']}:{endpoint_config['port']} cannot be listened on: is it taken?")
        ports[endpoint.name] = endpoint.port()
    print("READY", json.dumps(ports), flush=True)

    stop, parent = asyncio.Event(), os.getppid()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    while not stop.is_set() and not (with_parent and os.getppid() != parent):
        try:
            await asyncio.wait_for(stop.wait(), timeout=1)
        except asyncio.TimeoutError:
            pass


def main() -> None:
    """Read the arguments and serve."""
    arguments = [argument for argument in sys.argv[1:] if argument != "--with-parent"]
    if len(arguments) != 2:
        sys.exit(__doc__)
    with sys.stdin if arguments[0] == "-" else open(arguments[0], encoding="utf-8") as file:
        config = json.load(file)
    asyncio.run(serve(config, Trace(arguments[1]), "--with-parent" in sys.argv))


main()
