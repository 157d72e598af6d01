"""The results: kept as JSON, written out as a table. Numbers come from runs alone."""

import json
from statistics import median

from poller.servers import BENCH

from .shapes import PARTS

JSON = BENCH / "results/pipeline.json"
TABLE = BENCH / "results/pipeline.md"

NAMES = {
    "plain": "corrente-pipeline, plain table",
    "copy_plain": "`psql \\copy` binary of the same rows, same table and index",
    "bare": "corrente-pipeline, plain table without an index",
    "copy_bare": "`psql \\copy` binary of the same rows, no index at all",
    "hyper": "corrente-pipeline, hypertable",
    "copy_hyper": "`psql \\copy` binary of the same rows, same hypertable and indexes",
    "told": "corrente-pipeline, plain table, 1 in 1,000 that the worker can tell",
    "refused": "corrente-pipeline, plain table, 1 in 1,000 that only the database can tell",
    "plain_enveloped": "corrente-pipeline, plain table, records in Connect's envelope",
    "telegraf": "Telegraf, kafka_consumer to postgresql",
}
# (what, of, at least)
PROMISES = [
    ("bare", "debezium", 10.0, "Debezium's JDBC sink into the same table, at its fastest"),
    ("plain", "copy_plain", 0.5, "`\\copy` into the same table"),
    ("bare", "copy_bare", 0.5, "`\\copy` into the same table"),
    ("hyper", "copy_hyper", 0.5, "`\\copy` into the same hypertable"),
    ("told", "plain", 0.8, "the clean rate"),
    ("refused", "plain", 0.4, "the clean rate"),
]
# (what, of): told beside them, with no promise.
BESIDE = [
    ("bare_late", "debezium_late", "Debezium's JDBC sink into the same table, in the second half of each"),
    ("plain", "debezium_index", "Debezium's JDBC sink into the same table"),
    ("copy_plain", "debezium_index", "Debezium's JDBC sink into the same table"),
    ("bare", "telegraf", "Telegraf"),
]
MEMORY_MIB = 128


def load() -> dict:
    return json.loads(JSON.read_text()) if JSON.exists() else {}


def save(results: dict) -> None:
    JSON.parent.mkdir(exist_ok=True)
    JSON.write_text(json.dumps(results, indent=1) + "\n")
    TABLE.write_text("\n".join(lines(results)) + "\n")


def spread(values: list, digits: int) -> str:
    if len(values) == 1:
        return f"{values[0]:,.{digits}f}"
    return f"{median(values):,.{digits}f} ({min(values):,.{digits}f} to {max(values):,.{digits}f})"


def shown_peer(name: str) -> str:
    table = "plain table" if "_index" in name else "plain table without an index"
    return name.replace("_index", "").replace("debezium", f"Kafka Connect 4.1.1, Debezium JDBC sink 3.3.1, {table}")


def medians(groups: dict, key: str) -> dict:
    """By the runs' names; Debezium's at its fastest too."""
    found = {name: median(run[key] for run in runs) for name, runs in groups.items() if key in runs[0]}
    for peer in ("debezium", "debezium_index"):
        if settings := [rate for name, rate in found.items() if name.startswith(f"{peer},")]:
            found[peer] = max(settings)
    return found


def verdict(holds: bool) -> str:
    return "holds" if holds else "**not met**"


def lines(results: dict) -> list:
    ran, groups = results["ran"], {}
    for run in results["runs"]:
        groups.setdefault(run["name"], []).append(run)
    out = [
        "# The pipeline worker, measured",
        "",
        "Written by `bench/pipeline.sh`; what is run and how is in [../README.md](../README.md).",
        "",
        f"Run {ran['date']} on commit {ran['commit']}, profile {ran['profile']}; {ran['cores']} cores ({ran['cpu']}), "
        f"{ran['memory_gib']} GiB, Linux {ran['kernel']}; load before it {ran['load_before']:.1f}. Kafka 4.1.1 and "
        f"PostgreSQL 17 with TimescaleDB on the same machine.",
        f"{ran['records']:,} records of {ran['bytes']} bytes with 8 metrics in 6 partitions; the peers' topics have "
        f"{ran['peer_records']:,}. A rate is that between {PARTS[0]:.0%} and {PARTS[-1]:.0%} of the records; in the next "
        f"column it is that from {PARTS[1]:.0%} on. The median, and in brackets the least and the most, of "
        f"{ran['rounds']} rounds.",
        "",
        "| | records/s | in the second half | us of its CPU per record | of the database's | of the broker's | highest RSS, MiB |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for name, runs in groups.items():
        shown = NAMES.get(name) or shown_peer(name)
        if "failed" in runs[0]:
            out.append(f"| {shown} | failed: {runs[0]['failed']} | | | | | |")
            continue
        column = lambda key, digits, runs=runs: spread([run[key] for run in runs], digits) if key in runs[0] else ""  # noqa: E731
        out.append(f"| {shown} | {column('rate', 0)} | {column('late_rate', 0)} | {column('cpu_us', 2)} | {column('postgres_us', 2)} | {column('kafka_us', 2)} | {column('peak_mib', 0)} |")
    rates = medians(groups, "rate") | {f"{name}_late": rate for name, rate in medians(groups, "late_rate").items()}
    out += ["", "| | ratio | promised | |", "| --- | --- | --- | --- |"]
    for what, of, least, shown in PROMISES:
        if what in rates and of in rates:
            ratio = rates[what] / rates[of]
            out.append(f"| {NAMES[what]}, to {shown} | **{ratio:.2f}** | {least} | {verdict(ratio >= least)} |")
    for what, of, shown in BESIDE:
        if what in rates and of in rates:
            out.append(f"| {NAMES[what.removesuffix('_late')]}, to {shown} | {rates[what] / rates[of]:.2f} | | |")
    peak = max((run["peak_mib"] for run in groups.get("plain", []) + groups.get("hyper", [])), default=0)
    out += ["", f"Highest RSS at the full rate: {peak:.0f} MiB; at most {MEMORY_MIB} are promised: {verdict(peak <= MEMORY_MIB)}."]
    return out
