"""What is run, and what is taken down."""

import time
from functools import cache
from pathlib import Path

from poller.machine import TICKS, Usage, cpu_seconds, memory_mib
from poller.servers import Failed, Process

from . import programs, records
from .database import Console, copy_in, copy_out, psql

# A rate is that between the first and the last of these parts of all records: at the beginning connections are made, and at
# the end a worker waits for more, as long as its batches may be old. From the second on a JVM has compiled what it runs.
PARTS = (0.05, 0.5, 0.95)
# So long a slow program is measured, at most.
SECONDS = 60
COLUMNS = ", ".join(["ts", "meter", "slot", "stream", "seq", "quality", "bad", "skipped", *records.METRICS])


def say(text: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {text}", flush=True)


# The broker's and the database's processes; set before anything is measured.
servers: dict = {}


def database_cpu_seconds(postmaster: int) -> float:
    """User and system time of PostgreSQL: of the sessions that have ended, and of those that live."""
    fields = Path(f"/proc/{postmaster}/stat").read_text().rsplit(") ", 1)[1].split()
    seconds = sum(int(field) for field in fields[11:15]) / TICKS
    for child in Path(f"/proc/{postmaster}/task/{postmaster}/children").read_text().split():
        try:
            seconds += cpu_seconds(int(child))
        except FileNotFoundError:  # it ended just now
            pass
    return seconds


def servers_cpu() -> tuple:
    return cpu_seconds(servers["kafka"]), database_cpu_seconds(servers["postgres"])


def rates(marks: list, used: dict) -> dict:
    """Of what was stored, when, and what the servers had used by then, at the ends of the parts; and of what the program
    used meanwhile."""
    (began_at, began, before), (half_at, half, _), (at, now, after) = marks
    stored, (kafka, postgres) = at - began_at, (then - first for first, then in zip(before, after))
    return {
        "rate": stored / (now - began),
        "late_rate": (at - half_at) / (now - half) if at > half_at else 0,
        "seconds": now - began,
        "records": stored,
        "cpu_us": used["cpu_s"] * 1e6 / stored,
        "kafka_us": kafka * 1e6 / stored,
        "postgres_us": postgres * 1e6 / stored,
        "busy": used["machine_busy"],
    }


def follow(process: Process, stored, count: int, pause: float, exact=lambda at: at, to_the_end: bool = False) -> dict:
    """Records a second in the part that counts. `stored` says how many there are, or about so many; `exact` counts them."""
    began, peak, marks, usage, result = time.monotonic(), 0.0, [], None, {}
    while True:
        process.check()
        at = stored()
        peak = max(peak, memory_mib(process.pid)["peak_mib"])
        is_late = bool(marks) and time.monotonic() - marks[0][1] > SECONDS
        while not result and (at >= PARTS[len(marks)] * count or is_late):
            marks.append((exact(at), time.monotonic(), servers_cpu()))
            usage = usage or Usage(process.pid)
            if len(marks) == len(PARTS):
                result = rates(marks, usage.end())
        if result and (at >= count or not to_the_end):
            return {**result, "peak_mib": peak}
        if time.monotonic() - began > 4 * SECONDS:
            raise Failed(f"{process.name} has stored {at} of {count} records; see {process.log}")
        time.sleep(pause)


def worker(topic: str, count: int, table: str, hypertable: bool = False) -> dict:
    """The worker from the first record of a topic to the last; the offsets, which it commits with the rows, say when."""
    psql("CHECKPOINT")
    with Console() as console, programs.Worker(table, topic, table, hypertable) as process:
        sql = f"SELECT coalesce(sum(next_offset), 0) FROM corrente.offsets WHERE pipeline = 'bench/{table}'"
        result = follow(process, lambda: int(console.ask(sql) or 0), count, 0.05, to_the_end=True)
    found = psql(f"SELECT count(*), count(DISTINCT (stream, seq)) FROM {table}").split("|")
    letters = int(psql(f"SELECT count(*) FROM corrente.dead_letters WHERE pipeline = 'bench/{table}'"))
    if len(set(found)) != 1 or int(found[0]) + letters != count:
        raise Failed(f"{table} has {found} rows and {letters} dead letters of {count} records")
    return {**result, "dead_letters": letters}


def copied(like: str, rows: str, hypertable: bool, index: bool = True) -> dict:
    """psql's `\\copy` of the same rows into a new table of the same definition."""
    psql(f"CREATE TABLE copied (LIKE {like} {'INCLUDING ALL' if index else ''})")
    if hypertable:
        psql("SELECT create_hypertable('copied', by_range('ts'), create_default_indexes => false)")
    psql("CHECKPOINT")
    before = servers_cpu()[1]
    seconds = copy_in("copied", COLUMNS, rows)
    used = servers_cpu()[1] - before
    count = int(psql("SELECT count(*) FROM copied"))
    psql("DROP TABLE copied")
    return {"rate": count / seconds, "seconds": seconds, "records": count, "postgres_us": used * 1e6 / count}


def peer(process: Process, table: str, count: int) -> dict:
    """Another program. Counting its rows over and over would slow it down: PostgreSQL's own count, which is a second
    late, says when to look."""
    about = f"SELECT coalesce(sum(n_tup_ins), 0) FROM pg_stat_user_tables WHERE relname = '{table}'"
    with Console() as console, process:
        exact = lambda _: int(console.ask(f"SELECT count(*) FROM {table}"))  # noqa: E731
        return follow(process, lambda: int(console.ask(about)), count, 0.2, exact)


def tell(name: str, result: dict) -> dict:
    extra = (
        f", us of CPU each: {result['cpu_us']:.2f}, database {result['postgres_us']:.2f}, broker {result['kafka_us']:.2f}; "
        f"{result['peak_mib']:.0f} MiB, machine {result['busy']:.0%} busy"
        if "cpu_us" in result
        else f", {result['postgres_us']:.2f} us of the database's CPU each"
    )
    say(f"  {name}: {result['rate']:,.0f} records/s over {result['seconds']:.1f} s{extra}")
    return {"name": name, **result}


def rounds(names: list, count: int, times: int) -> list:
    """The worker and `\\copy`, in turn."""
    say(f"filling the topics: {count:,} records")
    clean = records.preload("clean", count)
    bad = records.preload("bad", count, bad=True) if "bad" in names else ""
    if "peers" in names:
        with_schema(count // 3)
    runs, rows = [], ""
    for number in range(times):
        say(f"round {number + 1} of {times}")

        def run(name: str, topic: str, hypertable: bool = False, made: str = "", keep: bool = False) -> None:
            table = f"{name}_{number}"
            if made:
                psql(f"CREATE TABLE {table} ({made})")
            runs.append(tell(name, worker(topic, count, table, hypertable)))
            if not keep:
                psql(f"DROP TABLE {table}")

        run("plain", clean, keep=True)
        plain = f"plain_{number}"
        rows = rows or copy_out(plain, COLUMNS)
        psql(f"TRUNCATE {plain}")
        runs.append(tell("copy_plain", copied(plain, rows, False)))
        if "bare" in names:
            run("bare", clean, made=f"LIKE {plain}")
            runs.append(tell("copy_bare", copied(plain, rows, False, index=False)))
        if "peers" in names:
            runs.append(debezium(count // 3, plain, tasks=2, batch=3000))
        if "hyper" in names:
            run("hyper", clean, hypertable=True, keep=True)
            psql(f"TRUNCATE hyper_{number}")
            runs.append(tell("copy_hyper", copied(f"hyper_{number}", rows, True)))
            psql(f"DROP TABLE hyper_{number}")
        if "bad" in names:
            run("told", bad)
            check = f"CHECK (seq % {records.BAD} <> {records.BAD // 2})"
            run("refused", clean, made=f"LIKE {plain} INCLUDING ALL, {check}")
        if number + 1 < times:
            psql(f"DROP TABLE {plain}")
        else:
            psql(f"ALTER TABLE {plain} RENAME TO shape")
    return runs


@cache
def with_schema(count: int) -> str:
    """A topic of records with their schema, as Debezium's sink needs them."""
    say(f"filling a topic: {count:,} records with their schema")
    return records.preload("enveloped", count, enveloped=True)


def debezium(count: int, like: str, tasks: int, batch: int, index: bool = False) -> dict:
    """Debezium's JDBC sink, into a new table of the worker's definition."""
    psql(f"CREATE TABLE debezium (LIKE {like} {'INCLUDING ALL' if index else ''})")
    name = f"debezium{'_index' if index else ''}, {tasks} tasks, batch {batch}"
    run = tell(name, peer(programs.Connect(with_schema(count), "debezium", tasks, batch), "debezium", count))
    psql("DROP TABLE debezium")
    return run


def peers(count: int, telegraf: bool) -> list:
    """Debezium's sink at other settings, and the worker on the same topic; Telegraf on a topic of flat records."""
    runs = [
        debezium(count, "shape", tasks=4, batch=5000),
        debezium(count, "shape", tasks=2, batch=3000, index=True),
        tell("plain_enveloped", worker(with_schema(count), count, "plain_enveloped")),
    ]
    psql("DROP TABLE plain_enveloped")
    if telegraf:
        flat = records.preload("flat", count)
        try:
            runs.append(tell("telegraf", peer(programs.Telegraf(flat, "telegraf"), "telegraf", count)))
        except Failed as reason:
            say(f"  telegraf: {reason}")
            runs.append({"name": "telegraf", "failed": str(reason).splitlines()[0]})
    return runs
