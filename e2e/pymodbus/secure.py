"""Serve one Modbus/TCP Security meter by pymodbus, which wants a client certificate.

Usage: secure.py DIR

DIR holds ca.crt (who must have signed a client's certificate), tls.crt and tls.key (the server's own). The
meter is unit 1 with holding registers 10 to 13, which hold 1 to 4. Prints "READY PORT" and serves until its
standard input is closed, so that a killed test leaves nothing behind.
"""
import asyncio
import ssl
import sys

from pymodbus.server import ModbusTlsServer
from pymodbus.simulator import DataType, SimData, SimDevice


async def serve(folder: str) -> None:
    """Listen on a free port, say which, and serve until nobody holds the other end of the input."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.load_cert_chain(f"{folder}/tls.crt", f"{folder}/tls.key")
    context.load_verify_locations(f"{folder}/ca.crt")
    context.verify_mode = ssl.CERT_REQUIRED
    meter = SimDevice(id=1, simdata=[SimData(10, values=[1, 2, 3, 4], datatype=DataType.REGISTERS)])
    server = ModbusTlsServer([meter], address=("127.0.0.1", 0), sslctx=context)
    await server.serve_forever(background=True)
    print("READY", server.transport.sockets[0].getsockname()[1], flush=True)
    await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)


if len(sys.argv) != 2:
    sys.exit(__doc__)
asyncio.run(serve(sys.argv[1]))
