"""The shapes: what is run, for how long, and what is taken down."""

import re
import resource
import time
from dataclasses import replace
from statistics import median

import xxhash

from . import topic as topics
from .arrivals import Arrivals
from .configs import Plant
from .machine import Usage
from .servers import Failed, Poller, Process, Telegraf, simulator

WARM_UP = 10
COMPARISON = Plant(endpoints=3, units=9, registers=80, interval_ms=100)
# With the cheapest of its serializers, and with the one that writes JSON as the poller does.
PEERS = ("telegraf influx", "telegraf json")
# The same with a field that Telegraf has no like of: its default is one request at a time.
IN_FLIGHT = "corrente-poller, maxInFlight: 16"
THOUSAND = Plant(endpoints=100, units=10, registers=40, interval_ms=1000)


def say(text: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {text}", flush=True)


def unique(name: str) -> str:
    return topics.create(f"{name}-{time.time_ns()}")


def start(program: str, plant: Plant, topic: str) -> Process:
    if program == IN_FLIGHT:
        return Poller(replace(plant, in_flight=16), topic)
    if program == "corrente-poller":
        return Poller(plant, topic)
    return Telegraf(plant, topic, program.removeprefix("telegraf "))


def measure(program: str, plant: Plant, simulated: Process, seconds: float) -> dict:
    """Runs a program for `seconds` after its warm-up; what it used, and what of it arrived in the topic."""
    topic = unique("bench")
    with start(program, plant, topic) as process:
        time.sleep(WARM_UP)
        process.check()
        usage, meters = Usage(process.pid), Usage(simulated.pid)
        time.sleep(seconds)
        process.check()
        result = {"program": program, **usage.end(), "simulator_cpu_s": meters.end()["cpu_s"]}
        metrics = process.metrics() if isinstance(process, Poller) else ""
        time.sleep(3)  # what was sampled is on its way for a second or two
    arrived = topics.delivered(topic, result["from"], result["to"], plant.interval_ms)
    if not arrived.registers:
        raise Failed(f"{program} delivered nothing; see {process.log}")
    span = result["to"] - result["from"]
    return {
        **result,
        "metrics": metrics,
        "seconds": span,
        "records": arrived.records,
        "good": arrived.good,
        "registers": arrived.registers,
        "expected_records": round(plant.meters * span * 1000 / plant.interval_ms),
        "missing_slots": max(0, round(plant.meters * (span * 1000 // plant.interval_ms)) - len(arrived.slots)),
        "cpu_s_per_million": result["cpu_s"] * 1e6 / arrived.registers,
        "cpu_us_per_poll": result["cpu_s"] * 1e6 / arrived.records,
        "switches_per_poll": result["switches"] / arrived.records,
    }


def tell(result: dict) -> None:
    say(
        f"  {result['program']}: {result['cpu_s_per_million']:.3f} CPU-s per million registers, "
        f"{result['cpu_us_per_poll']:.1f} us and {result['switches_per_poll']:.2f} context switches per poll, "
        f"{result['rss_mib']:.1f} MiB; {result['records']} of {result['expected_records']} records, "
        f"{result['good']} good; simulator {result['simulator_cpu_s']:.1f} CPU-s, machine {result['machine_busy']:.0%} busy"
    )


def strip(result: dict) -> dict:
    return {key: value for key, value in result.items() if key != "metrics"}


def comparison(seconds: float, rounds: int) -> dict:
    """A: CPU time for each million registers delivered, in turn with Telegraf."""
    runs = []
    with simulator(COMPARISON) as simulated:
        for number in range(rounds):
            say(f"  round {number + 1} of {rounds}")
            for program in (*PEERS, "corrente-poller", IN_FLIGHT):
                runs.append(measure(program, COMPARISON, simulated, seconds))
                tell(runs[-1])
    return {"peers": list(PEERS), "runs": [strip(run) for run in runs]}


def percentiles(values: list) -> dict:
    values = sorted(values)
    at = lambda share: values[min(len(values) - 1, int(len(values) * share))]  # noqa: E731
    return {"count": len(values), "p50": at(0.5), "p99": at(0.99), "p999": at(0.999), "max": values[-1]}


def lateness(seen: list, plant: Plant, began: float, ended: float, phased: bool) -> dict:
    """Milliseconds from the due instant to the arrival of the request at the meter.

    A poll is due at a multiple of the interval plus the endpoint's phase: one of so many moments, by
    its address, that at most four endpoints share each on average (docs/decisions/0025). Telegraf has
    no phases.
    """
    digest = lambda text: xxhash.xxh3_64_intdigest(text.encode())  # noqa: E731
    spread = min(plant.interval_ms, 10_000)
    moments = 1 << (-(-plant.endpoints // 4) - 1).bit_length()
    shift = digest("bench/bench/0") % spread
    phases = {}
    for port in plant.ports():
        moment = digest(plant.address(port)) % moments
        phases[port] = (shift + moment * spread // moments) % spread if phased else 0
    inside = [(at, port, unit) for at, port, unit in seen if began * 1e9 <= at < ended * 1e9]
    if not inside:
        raise Failed("no request was seen on the loopback")
    interval = plant.interval_ms * 1_000_000
    return percentiles([(at - phases[port] * 1_000_000) % interval / 1e6 for at, port, _ in inside])


BUCKET = re.compile(r'^corrente_poller_lateness_seconds_bucket\{.*le="([^"]+)"\} (\d+)', re.M)


def own_lateness(text: str) -> dict:
    """What the poller says of itself: the bounds of its histogram that hold half and 99% of its polls."""
    counts = {}
    for bound, count in BUCKET.findall(text):
        counts[float(bound)] = counts.get(float(bound), 0) + int(count)
    total = counts.get(float("inf"), 0)
    if not total:
        return {}
    bounds = sorted(counts)
    at = lambda share: next(bound for bound in bounds if counts[bound] >= share * total) * 1000  # noqa: E731
    return {"p50": at(0.5), "p99": at(0.99)}


def thousand(seconds: float) -> dict:
    """B: how late a thousand meters are asked, each second, from one process."""
    result = {}
    with simulator(THOUSAND) as simulated:
        for program in ("corrente-poller", "telegraf influx"):
            with Arrivals(THOUSAND) as arrivals:
                run = measure(program, THOUSAND, simulated, seconds)
            ours = program == "corrente-poller"
            run["lateness_ms"] = lateness(arrivals.seen, THOUSAND, run["from"], run["to"], ours)
            run["own_lateness_ms"] = own_lateness(run["metrics"])
            tell(run)
            late = run["lateness_ms"]
            say(f"    late by p50 {late['p50']:.2f}, p99 {late['p99']:.2f}, max {late['max']:.2f} ms; by its own count {run['own_lateness_ms']}")
            result[program] = strip(run)
    return result


def scale(seconds: float) -> dict:
    """C: what a poll costs with a hundred, a thousand and ten thousand meters in one process."""
    runs = []
    for endpoints in (10, 100, 1000):
        plant = Plant(endpoints=endpoints, units=10, registers=40, interval_ms=1000)
        with simulator(plant) as simulated:
            run = measure("corrente-poller", plant, simulated, seconds)
        tell(run)
        runs.append({"meters": plant.meters, **strip(run)})
    return {"runs": runs}


def first_poll(starts: int) -> dict:
    """D: from the start of the process to its first request at a meter."""
    took = []
    with simulator(COMPARISON):
        for _ in range(starts):
            topic = unique("bench-start")
            with Arrivals(COMPARISON) as arrivals:
                time.sleep(0.3)
                with Poller(COMPARISON, topic) as process:
                    # What the kernel still had of the process before comes too early to be this one's.
                    own = lambda began=process.began: [at for at, _, _ in arrivals.seen if at >= began * 1e9]  # noqa: E731
                    deadline = time.time() + 10
                    while not own() and time.time() < deadline:
                        process.check()
                        time.sleep(0.01)
            if not own():
                raise Failed(f"no poll within 10 s; see {process.log}")
            took.append(min(own()) / 1e6 - process.began * 1000)
    say(f"  median {median(took):.0f} ms, longest {max(took):.0f} ms")
    return {"took_ms": took}


def allow_many_files() -> None:
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
