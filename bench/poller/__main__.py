"""Runs the shapes that are asked for, one after the other."""

import os
import signal
import subprocess
import sys
import time

from . import machine, report, servers, shapes

SECONDS = float(os.environ.get("SECONDS_EACH", "60"))
ROUNDS = int(os.environ.get("ROUNDS", "3"))

SHAPES = {
    "a": lambda: shapes.comparison(SECONDS, ROUNDS),
    "b": lambda: shapes.thousand(SECONDS),
    "c": lambda: shapes.scale(SECONDS),
    "d": lambda: shapes.first_poll(10),
}


def ran() -> dict:
    """When, where and of what."""
    git = lambda *words: subprocess.run(["git", *words], capture_output=True, text=True, cwd=servers.BENCH).stdout.strip()  # noqa: E731
    changed = "" if not git("status", "--porcelain", "--untracked-files=no", "--", "..", ":!.") else " with changes"
    return {
        "date": time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()),
        "commit": git("rev-parse", "--short", "HEAD") + changed,
        "profile": os.environ["PROFILE"],
        "telegraf": os.environ["TELEGRAF"],
        "load_before": os.getloadavg()[0],
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
    shapes.allow_many_files()
    with servers.broker():
        for name in asked:
            shapes.say(f"shape {name}: {SHAPE_NAMES[name]}")
            about = ran()
            result = SHAPES[name]()
            results = report.load()
            results[name] = {"ran": about, **result}
            report.save(results)
    shapes.say(f"written: {report.TABLE}")
    return 0


SHAPE_NAMES = {
    "a": "beside Telegraf",
    "b": "a thousand meters",
    "c": "a hundred to ten thousand meters",
    "d": "start to first poll",
}

if __name__ == "__main__":
    try:
        sys.exit(main())
    except servers.Failed as reason:
        print(f"bench: {reason}", file=sys.stderr)
        sys.exit(1)
