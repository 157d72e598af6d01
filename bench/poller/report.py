"""The results: kept as JSON, written out as a table. Numbers come from runs alone."""

import json
from statistics import median

from .servers import BENCH

JSON = BENCH / "results/poller.json"
TABLE = BENCH / "results/poller.md"


def load() -> dict:
    return json.loads(JSON.read_text()) if JSON.exists() else {}


def save(results: dict) -> None:
    JSON.parent.mkdir(exist_ok=True)
    JSON.write_text(json.dumps(results, indent=1) + "\n")
    TABLE.write_text("\n".join(lines(results)) + "\n")


def verdict(holds: bool) -> str:
    return "holds" if holds else "**not met**"


def spread(values: list, digits: int) -> str:
    return f"{median(values):.{digits}f} ({min(values):.{digits}f} to {max(values):.{digits}f})"


def head(shape: dict) -> str:
    ran = shape["ran"]
    return (
        f"Run {ran['date']} on commit {ran['commit']}, profile {ran['profile']}; {ran['cores']} cores "
        f"({ran['cpu']}), {ran['memory_gib']} GiB, Linux {ran['kernel']}; load before it {ran['load_before']:.1f}. "
        f"Telegraf {ran['telegraf']}, Kafka on the same machine."
    )


def comparison(shape: dict) -> list:
    peers = shape["peers"]
    groups: dict = {}
    for run in shape["runs"]:
        groups.setdefault(run["program"], []).append(run)
    out = [
        "## A: 27 units on 3 endpoints, 80 u16 each in one request, every 100 ms",
        "",
        head(shape),
        "Median, and in brackets the least and the most, of "
        f"{len(groups[peers[0]])} rounds of {shape['runs'][0]['seconds']:.0f} s each, in turn.",
        "",
        "| | CPU-s per million registers | us of CPU per poll | RSS, MiB | context switches per poll | records of those due | not good |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for name, runs in groups.items():
        column = lambda key, runs=runs: [run[key] for run in runs]  # noqa: E731
        share = min(run["records"] / run["expected_records"] for run in runs)
        bad = sum(run["records"] - run["good"] for run in runs)
        out.append(
            f"| {name} | {spread(column('cpu_s_per_million'), 3)} | {spread(column('cpu_us_per_poll'), 1)} "
            f"| {spread(column('rss_mib'), 1)} | {spread(column('switches_per_poll'), 2)} | {share:.2%} | {bad} |"
        )
    cost = {name: median(run["cpu_s_per_million"] for run in runs) for name, runs in groups.items()}
    out += ["", "| | ratio of the medians | promised | |", "| --- | --- | --- | --- |"]
    for name in (name for name in cost if name not in peers):
        for peer in peers:
            ratio = cost[name] / cost[peer]
            out.append(f"| {name}, to {peer} | **{ratio:.3f}** | 0.1 | {verdict(ratio <= 0.1)} |")
    return [*out, ""]


def thousand(shape: dict) -> list:
    out = [
        "## B: 1,000 meters of 40 registers on 100 endpoints, each second, from one process",
        "",
        head(shape),
        "Lateness is from the due instant to the request's arrival at the meter, by the kernel's time of the packet. "
        "Telegraf has no phases: all its meters are due at once, on the second.",
        "",
        "| | late p50, ms | p99, ms | max, ms | RSS, MiB | highest RSS | CPU, % of a core | records of those due |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for name in ("corrente-poller", "telegraf influx"):
        run = shape[name]
        late = run["lateness_ms"]
        out.append(
            f"| {name} | {late['p50']:.2f} | {late['p99']:.2f} | {late['max']:.2f} | {run['rss_mib']:.1f} | {run['peak_mib']:.1f} "
            f"| {run['cpu_s'] / run['seconds']:.1%} | {run['records'] / run['expected_records']:.2%} |"
        )
    ours = shape["corrente-poller"]
    own = ours["own_lateness_ms"]
    out += [
        "",
        f"p99 at most 10 ms is promised: {verdict(ours['lateness_ms']['p99'] <= 10)}. "
        f"At most 25 MiB is promised: {verdict(ours['rss_mib'] <= 25)}.",
    ]
    if own:
        out.append(f"By its own metric: half within {own['p50']:g} ms, 99% within {own['p99']:g} ms (bounds of buckets).")
    return [*out, ""]


def scale(shape: dict) -> list:
    out = [
        "## C: the cost of a meter, 40 registers each second, 10 meters to an endpoint",
        "",
        head(shape),
        "",
        "| meters | us of CPU per poll | of the cost at 100 | context switches per poll | RSS, MiB | records of those due |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    base = shape["runs"][0]["cpu_us_per_poll"]
    for run in shape["runs"]:
        out.append(
            f"| {run['meters']:,} | {run['cpu_us_per_poll']:.1f} | {run['cpu_us_per_poll'] / base:.0%} "
            f"| {run['switches_per_poll']:.2f} | {run['rss_mib']:.1f} | {run['records'] / run['expected_records']:.2%} |"
        )
    worst = max(run["cpu_us_per_poll"] for run in shape["runs"]) / base
    out += ["", f"No dearer than at 100 meters by more than 20% is promised: {verdict(worst <= 1.2)}.", ""]
    return out


def first_poll(shape: dict) -> list:
    took = shape["took_ms"]
    return [
        "## D: from the start of the process to its first request, with an interval of 100 ms",
        "",
        head(shape),
        f"{len(took)} starts on a new spool: {spread(took, 0)} ms, the wait for the first due instant included. "
        f"Less than 300 ms is promised: {verdict(max(took) < 300)}.",
        "",
    ]


SECTIONS = {"a": comparison, "b": thousand, "c": scale, "d": first_poll}


def lines(results: dict) -> list:
    out = ["# The poller, measured", "", "Written by `bench/poller.sh`; what is run and how is in [../README.md](../README.md).", ""]
    for key, section in SECTIONS.items():
        if key in results:
            out += section(results[key])
    return out[:-1]
