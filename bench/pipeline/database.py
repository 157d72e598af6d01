"""A PostgreSQL with TimescaleDB for the measurements, apart from the tests' own, on a new folder each time."""

import os
import shutil
import subprocess
import time
from pathlib import Path

from poller.servers import CACHE, WORK, Failed, Process

ROOTFS = CACHE / "postgres"
BIN = "/usr/lib/postgresql/17/bin"
DATA = "/var/lib/postgresql/bench"
PORT = 5532
URL = f"postgres://postgres@127.0.0.1:{PORT}/postgres"

SETTINGS = f"""
listen_addresses = '127.0.0.1'
port = {PORT}
unix_socket_directories = '/tmp'
shared_preload_libraries = 'timescaledb'
timescaledb.telemetry_level = off
shared_buffers = 1GB
max_wal_size = 8GB
checkpoint_timeout = 30min
autovacuum = off
"""


def inside(*command: str) -> list:
    """The command as the user postgres, in PostgreSQL's own tree."""
    return [
        "chroot", "--userspec=postgres:postgres", str(ROOTFS), "/usr/bin/env", "-i", "PATH=/usr/bin:/bin", "LANG=C.UTF-8",
        *command,
    ]  # fmt: skip


def psql(sql: str) -> str:
    """What the statement says, without decoration."""
    done = subprocess.run(
        inside(f"{BIN}/psql", "-XqAt", "-v", "ON_ERROR_STOP=1", URL, "-c", sql), capture_output=True, text=True
    )
    if done.returncode:
        raise Failed(f"{sql}: {done.stderr}")
    return done.stdout.strip()


def server() -> Process:
    """Starts it and waits until it answers."""
    shutil.rmtree(f"{ROOTFS}{DATA}", ignore_errors=True)
    (ROOTFS / "dev/shm").chmod(0o1777)
    subprocess.run(inside(f"{BIN}/initdb", "-D", DATA, "-U", "postgres", "--auth=trust"), check=True, capture_output=True)
    with Path(f"{ROOTFS}{DATA}/postgresql.conf").open("a") as settings:
        settings.write(SETTINGS)
    process = Process("postgres", *inside(f"{BIN}/postgres", "-D", DATA))
    deadline = time.time() + 60
    while subprocess.run(inside(f"{BIN}/pg_isready", "-q", "-h", "/tmp", "-p", str(PORT))).returncode:
        process.check()
        if time.time() > deadline:
            raise Failed(f"PostgreSQL does not answer; see {process.log}")
        time.sleep(0.2)
    psql("CREATE EXTENSION IF NOT EXISTS timescaledb")
    (WORK / "url").write_text(URL + "\n")
    return process


class Console:
    """A psql that stays, so that a question costs no start of a process."""

    def __enter__(self):
        self.child = subprocess.Popen(
            inside(f"{BIN}/psql", "-XqAt", URL),
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
        )  # fmt: skip
        return self

    def ask(self, sql: str) -> str:
        """The first line of the answer; none where the statement fails."""
        self.child.stdin.write(f"{sql};\n\\echo --end\n")
        self.child.stdin.flush()
        lines = []
        while (line := self.child.stdout.readline().rstrip("\n")) != "--end":
            lines.append(line)
        return lines[0] if lines else ""

    def __exit__(self, *_):
        self.child.stdin.close()
        self.child.wait()


def copy_out(table: str, columns: str) -> str:
    """The table's rows as a file for `\\copy`, within PostgreSQL's tree."""
    path = "/tmp/bench-rows.bin"
    Path(f"{ROOTFS}{path}").unlink(missing_ok=True)
    psql(f"COPY (SELECT {columns} FROM {table}) TO '{path}' (FORMAT binary)")
    os.sync()
    return path


def copy_in(table: str, columns: str, path: str) -> float:
    """Seconds that psql's `\\copy` of the file takes, over the same TCP connection as everybody uses."""
    command = inside(f"{BIN}/psql", "-Xq", "-v", "ON_ERROR_STOP=1", URL, "-c", f"\\copy {table} ({columns}) FROM '{path}' (FORMAT binary)")
    began = time.monotonic()
    subprocess.run(command, check=True)
    return time.monotonic() - began
