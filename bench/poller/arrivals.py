"""When requests really arrived at the meters: by the kernel's own time of each packet.

A packet socket on the loopback, with a filter in the kernel, sees the Modbus requests to the
plant's ports. Nothing of what is measured has to be believed for it.
"""

import ctypes
import socket
import struct
import threading

from .configs import Plant

SO_ATTACH_FILTER = 26
SO_RCVBUFFORCE = 33
SO_TIMESTAMPNS = 35
ETH_P_IP = 0x0800
# Byte offsets behind the Ethernet header of an IPv4 packet without options, which loopback has.
TCP = 14 + 20


def requests_to(first: int, last: int) -> bytes:
    """Classic BPF: TCP to these ports with data, once (the loopback shows each packet leaving and arriving)."""
    instructions = [
        (0x28, 0, 0, 0xFFFFF004),  # ldh the packet's type: 0 is one that arrives
        (0x15, 0, 8, 0),
        (0x30, 0, 0, 14 + 9),  # ldb the protocol
        (0x15, 0, 6, 6),
        (0x28, 0, 0, TCP + 2),  # ldh the port it goes to
        (0x35, 0, 4, first),
        (0x25, 3, 0, last),
        (0x30, 0, 0, TCP + 13),  # ldb the flags: only what carries data is pushed
        (0x45, 0, 1, 0x08),
        (0x06, 0, 0, 128),  # accept
        (0x06, 0, 0, 0),  # drop
    ]
    return b"".join(struct.pack("HBBI", *instruction) for instruction in instructions)


class Arrivals:
    """Collects (time in ns, port, unit) of every request while the `with` block runs."""

    def __init__(self, plant: Plant):
        self.seen = []
        ports = plant.ports()
        self.socket = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(ETH_P_IP))
        program = ctypes.create_string_buffer(requests_to(ports[0], ports[-1]))
        # struct sock_fprog: the number of instructions and where they are.
        fprog = struct.pack("HL", (len(program) - 1) // 8, ctypes.addressof(program))
        self.socket.setsockopt(socket.SOL_SOCKET, SO_ATTACH_FILTER, fprog)
        self.socket.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, 64 * 1024 * 1024)
        self.socket.setsockopt(socket.SOL_SOCKET, SO_TIMESTAMPNS, 1)
        self.socket.bind(("lo", ETH_P_IP))
        self.socket.settimeout(0.2)
        self.going = True
        self.thread = threading.Thread(target=self._collect, daemon=True)

    def _collect(self) -> None:
        while self.going:
            try:
                packet, ancillary, _, _ = self.socket.recvmsg(256, 64)
            except TimeoutError:
                continue
            seconds, nanos = struct.unpack("qq", ancillary[0][2][:16])
            port = int.from_bytes(packet[TCP + 2 : TCP + 4])
            data = TCP + (packet[TCP + 12] >> 4) * 4
            if len(packet) > data + 6:  # the end of a connection may be pushed too
                self.seen.append((seconds * 10**9 + nanos, port, packet[data + 6]))

    def __enter__(self):
        self.thread.start()
        return self

    def __exit__(self, *_):
        self.going = False
        self.thread.join()
        self.socket.close()
