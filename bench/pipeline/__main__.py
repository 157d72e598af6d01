"""Runs the shapes that are asked for."""

import os
import signal
import subprocess
import sys
import time

from poller import machine, servers

from . import database, records, report, shapes

RECORDS = int(os.environ.get("RECORDS", "3000000"))
ROUNDS = int(os.environ.get("ROUNDS", "2"))
SHAPES = ("plain", "bare", "hyper", "bad", "peers")


def ran() -> dict:
    """When, where and of what."""
    git = lambda *words: subprocess.run(["git", *words], capture_output=True, text=True, cwd=servers.BENCH).stdout.strip()  # noqa: E731
    changed = "" if not git("status", "--porcelain", "--untracked-files=no", "--", "..", ":!.") else " with changes"
    _, payload = next(records.records(1, False, False))
    return {
        "date": time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()),
        "commit": git("rev-parse", "--short", "HEAD") + changed,
        "profile": os.environ["PROFILE"],
        "load_before": os.getloadavg()[0],
        "records": RECORDS,
        "peer_records": RECORDS // 3,
        "rounds": ROUNDS,
        "bytes": len(payload),
        **machine.describe(),
    }


def main() -> int:
    asked = sys.argv[1:] or list(SHAPES)
    if unknown := [name for name in asked if name not in SHAPES]:
        print(f"there is no shape {unknown[0]}; there are {', '.join(SHAPES)}", file=sys.stderr)
        return 2
    # An end by a signal leaves the blocks too, which end their processes.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    servers.WORK.mkdir(parents=True, exist_ok=True)
    results = {"ran": ran(), "runs": []}
    with servers.broker() as kafka, database.server() as postgres:
        shapes.servers.update(kafka=kafka.pid, postgres=postgres.pid)
        results["runs"] += shapes.rounds(asked, RECORDS, ROUNDS)
        report.save(results)
        if "peers" in asked:
            telegraf = (servers.CACHE / "bin/telegraf-pipeline").exists()
            results["runs"] += shapes.peers(RECORDS // 3, telegraf)
            report.save(results)
    shapes.say(f"written: {report.TABLE}")
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except servers.Failed as reason:
        print(f"bench: {reason}", file=sys.stderr)
        sys.exit(1)
