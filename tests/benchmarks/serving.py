"""What medrag's HTTP service bears: load, ten times too much of it, clients that trickle, hours, and a swap of the index under traffic.

    python tests/benchmarks/serving.py STORE {closed,overload,trickle,soak,swap,all} [--out FOLDER] [--seconds 20] [--minutes 30] [--peak RATE]
        [--settings serve.workers=2 ...]

It starts the service itself on a free port of 127.0.0.1, once for each part, and ends it. STORE is only read: verdicts go to a file in the output
folder, ``swap`` works on a copy. Questions are all distinct ones of the corpus's examples in random order, then all again in another. A table is
printed for each part, ``OUT/PART.json`` has the figures; the exit status is 1 where a promise was broken.

- *closed*: 1, 4, 16 and 64 clients, each with one question at a time, so many seconds each, after a warm-up. The *peak* is the highest rate.
- *overload*: an open loop at ten times the peak for a minute. Before it, one client alone (the uncontended latencies), and the peak, unless it is
  known; after it, one client again.
- *trickle*: 500 sockets that send a byte a second, half of the headers, half of the body, each opened twice, beside two healthy clients.
- *soak*: an open loop at 70% of the peak. Memory every ten seconds; its growth from the third minute to the end is Theil and Sen's slope times that
  time. ``OUT/soak.png`` shows memory, latency and rate.
- *swap*: an open loop at half the peak while ``medrag index remove`` publishes another index three times; at last CURRENT is set back to the first.

Latencies are those of answers that a method gave, from the time the request was due: answers by rule (emergencies) do not wait for a worker. Rates
count the same answers, ``all`` those by rule as well. Memory is the sum of RSS over the service's processes, mapped files included; *anonymous* is
what no file backs. The clients are a process of their own (``openloop.py``); its share of a core and how late it sent are printed: where
it falls behind, it is the generator that was measured.
"""

from __future__ import annotations

import argparse
import os
import random
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from openloop import Plan, slope
from scale import machine
from watching import MIB, ROOT, SAMPLE_SECONDS, Clients, Load, Progress, Service, Window, clients

from medrag import files, prepare, text
from medrag.reports.pictures import drawing

CLIENTS = (1, 4, 16, 64)
PEAK_CLIENTS = (4, 8, 16)
PEAK_SECONDS = 8.0
WARM_SECONDS = 5.0
TIMES_TOO_MUCH = 10
OVERLOAD_SECONDS = 60.0
SETTLE_SECONDS = 10.0
TRICKLES, ROUNDS = 500, 2
TRICKLE_LIMIT_SECONDS = 15.0
SWAPS = 3
SWAP_WAIT_SECONDS = 120.0
GAP_SECONDS = 10.0
"""of undisturbed traffic before and after each swap"""
SOAK_SAMPLE_SECONDS = 10.0
STEADY_SECONDS = 180.0
MOST_CHARACTERS = 2000
"""of a question that the service takes"""
Figures = dict[str, Any]


@dataclass
class Bench:
    """What all parts need."""

    store: Path
    command: list[str]
    settings: list[str]
    out: Path
    work: Path
    seconds: float
    minutes: float
    questions: list[str]
    progress: Progress
    peak: dict[str, float] | None
    """answers a second, by a method and all"""
    seed: int = 0

    def service(self, part: str, store: Path | None = None) -> Service:
        """Not yet started."""
        return Service(self.command, store or self.store, self.settings, self.out / f"{part}.log")

    def plan(self, service: Service, seconds: float, **more: Any) -> Plan:
        """Questions in another order each time."""
        self.seed += 1
        return Plan(service.port, self.questions, seconds, seed=self.seed, **more)

    def load(self, service: Service, what: str, seconds: float, **more: Any) -> Load:
        """Clients from their start to their end."""
        with clients(self.plan(service, seconds, **more), self.work, "load") as some:
            self.wait(some, what, seconds)
            return some.load()

    def wait(self, some: Clients, what: str, seconds: float, until: Callable[[], bool] = lambda: False) -> None:
        """Until the clients end, or something else has come."""
        began = time.monotonic()
        while some.running and not until():
            time.sleep(0.02)
            told = " ".join(f"{name}: {count}" for name, count in some.last.get("counts", {}).items())
            self.progress.show(f"{what} {told}", began + seconds - time.monotonic())

    def warm(self, service: Service) -> None:
        """One answer looked at, then a little load."""
        service.ask(self.questions[0])
        self.load(service, "warm-up", WARM_SECONDS, clients=4)

    def closed(self, service: Service, count: int, seconds: float) -> Figures:
        """A closed loop."""
        load = self.load(service, f"{count} clients,", seconds, clients=count)
        return {"clients": count, **load.figures(), "service_cores": service.cores(load.window), "rss_mib": memory(service, load.window)["peak"]}

    def known_peak(self, service: Service) -> dict[str, float]:
        """Measured where it is not known."""
        if self.peak is None:
            self.peak = highest([self.closed(service, count, PEAK_SECONDS) for count in PEAK_CLIENTS])
        return self.peak


def highest(rows: Sequence[Figures]) -> dict[str, float]:
    """The highest rates of closed loops. Raises ValueError where nothing was answered."""
    best = max(rows, key=lambda row: float(row["rate"]))
    if not best["rate"]:
        raise ValueError(f"no question was answered: {best['statuses']}, {best['errors']}")
    return {name: float(best[name]) for name in ("rate", "rate_all")}


def memory(service: Service, window: Window, what: str = "rss_bytes") -> dict[str, float]:
    """MiB: the medians of the first and the last three samples in a window, and the highest; nan where there is none."""
    found = np.array([getattr(sample, what) / MIB for sample in service.sampled(window)])
    if not len(found):
        return dict.fromkeys(("first", "last", "peak"), float("nan"))
    return {"first": float(np.median(found[:3])), "last": float(np.median(found[-3:])), "peak": float(found.max())}


def closed(bench: Bench) -> Figures:
    """Closed loops of growing size."""
    with bench.service("closed") as service:
        bench.warm(service)
        rows = [bench.closed(service, count, bench.seconds) for count in CLIENTS]
    bench.peak = highest(rows)
    return {"rows": rows, "peak": bench.peak, **about(service), "promises": {"only 200 and 429": all(_only(row, "200", "429") for row in rows)}}


def _only(row: Figures, *statuses: str) -> bool:
    return set(row["statuses"]) <= set(statuses)


def about(service: Service) -> Figures:
    """How the service started and ended."""
    return {"ready_seconds": service.ready_seconds, "stopped": service.stopped, "command": shlex.join(service.command)}


def overload(bench: Bench) -> Figures:
    """Ten times the peak."""
    with bench.service("overload") as service:
        bench.warm(service)
        alone = bench.closed(service, 1, bench.seconds)
        peak = bench.known_peak(service)
        began = time.monotonic()
        time.sleep(3 * SAMPLE_SECONDS)
        rate = TIMES_TOO_MUCH * peak["rate_all"]
        load = bench.load(service, f"{rate:.0f}/s,", OVERLOAD_SECONDS, rate=rate)
        over = load.figures() | {"clients": f"open loop, {rate:.0f}/s", "service_cores": service.cores(load.window)}
        time.sleep(SETTLE_SECONDS)
        held = {what: memory(service, (began, time.monotonic()), what) for what in ("rss_bytes", "anonymous_bytes")}
        over["rss_mib"] = held["rss_bytes"]["peak"]
        after = bench.closed(service, 1, bench.seconds)
    promises = {
        "only 200 and 429": _only(over, "200", "429"),
        "Retry-After on every 429": over["refused_without_retry_after"] == 0,
        "no connection failed": not over["errors"],
    }
    return {
        "rows": [alone, over, after],
        "peak": peak,
        "p99_over_uncontended": over["milliseconds"]["p99"] / alone["milliseconds"]["p99"],
        "goodput_over_peak": over["rate"] / peak["rate"],
        "memory_mib": held,
        **about(service),
        "promises": promises,
    }


def trickle(bench: Bench) -> Figures:
    """Slow sockets beside healthy clients."""
    most = 2 * bench.seconds + ROUNDS * 60
    with bench.service("trickle") as service:
        bench.warm(service)
        with clients(bench.plan(service, most, clients=2), bench.work, "healthy") as healthy:
            bench.wait(healthy, "two clients,", bench.seconds, _after(bench.seconds))
            begin = time.monotonic()
            plan = Plan(service.port, trickles=TRICKLES, rounds=ROUNDS)
            with clients(plan, bench.work, "trickle") as slow:
                bench.wait(slow, "trickling,", ROUNDS * TRICKLE_LIMIT_SECONDS)
                rows = slow.rows()
            end = time.monotonic()
            bench.wait(healthy, "two clients,", bench.seconds, _after(bench.seconds))
            healthy.stop()
            load = healthy.load()
        held = memory(service, load.window)
    seconds = np.array([np.inf if row["seconds"] is None else row["seconds"] for row in rows])
    sorts = {(row["part"], row["status"]) for row in rows}
    counted = {f"{part}, {status or 'no answer'}": sum((row["part"], row["status"]) == (part, status) for row in rows) for part, status in sorts}
    phases = {"before": (load.window[0], begin), "during": (begin, end), "after": (end, load.window[1])}
    table = [{"clients": f"2, {name}", **load.figures(window), "service_cores": service.cores(window)} for name, window in phases.items()]
    for row, window in zip(table, phases.values(), strict=True):
        row["rss_mib"] = memory(service, window)["peak"]
    return {
        "rows": table,
        "sockets": len(rows),
        "closed_seconds": {name: float(np.quantile(seconds, share, method="inverted_cdf")) for name, share in (("min", 0), ("p50", 0.5), ("max", 1))},
        "closed_as": dict(sorted(counted.items())),
        "memory_mib": {"rss_bytes": held},
        **about(service),
        "promises": {
            f"every socket closed within {TRICKLE_LIMIT_SECONDS:.0f} s": bool((seconds <= TRICKLE_LIMIT_SECONDS).all()),
            "no healthy request failed": all(_only(row, "200") for row in table),
        },
    }


def _after(seconds: float) -> Callable[[], bool]:
    end = time.monotonic() + seconds
    return lambda: time.monotonic() > end


def soak(bench: Bench) -> Figures:
    """Steady traffic for a long time."""
    seconds = 60 * bench.minutes
    with bench.service("soak") as service:
        bench.warm(service)
        peak = bench.known_peak(service)
        rate = 0.7 * peak["rate_all"]
        load = bench.load(service, f"{rate:.0f}/s,", seconds, rate=rate)
    begin, end = load.window
    steady = (begin + min(STEADY_SECONDS, 0.3 * seconds), end)
    minutes = [(begin + at, min(begin + at + 60, end)) for at in np.arange(0, seconds, 60).tolist()]
    step = max(1, round(SOAK_SAMPLE_SECONDS / SAMPLE_SECONDS))
    samples = service.sampled(load.window)[::step]
    growth = {}
    for what in ("rss_bytes", "anonymous_bytes"):
        kept = [sample for sample in samples if sample.time >= steady[0]]
        values = np.array([getattr(sample, what) / MIB for sample in kept])
        gradient = slope(np.array([sample.time for sample in kept]), values)
        growth[what] = {
            "growth": gradient * (steady[1] - steady[0]),
            "an_hour": 3600 * gradient,
            "percent": 100 * gradient * (steady[1] - steady[0]) / float(np.median(values)) if len(values) else 0.0,
            **memory(service, steady, what),
        }
    each = [load.figures(window) for window in minutes]
    row = {"clients": f"open loop, {rate:.0f}/s", **load.figures(), "service_cores": service.cores(load.window)}
    row["rss_mib"] = memory(service, load.window)["peak"]
    found = {
        "rows": [row],
        "peak": peak,
        "minutes": bench.minutes,
        "memory_mib": growth,
        "by_minute": [
            {"middle": (window[0] + window[1]) / 2 - begin} | {name: one[name] for name in ("rate", "rate_due", "statuses", "milliseconds")}
            for window, one in zip(minutes, each, strict=True)
        ],
        "samples": [asdict(sample) | {"time": sample.time - begin} for sample in samples],
        **about(service),
        "promises": {"no request failed (429 apart)": _only(row, "200", "429"), "no request was refused": "429" not in row["statuses"]},
    }
    picture(found, bench.out / "soak.png")
    return found


def picture(found: Figures, path: Path) -> None:
    """Memory, latency and rate over time."""
    minutes = [sample["time"] / 60 for sample in found["samples"]]
    middles = [minute["middle"] / 60 for minute in found["by_minute"]]
    with drawing(8.4, 7.0, path) as figure:
        top, middle, low = figure.subplots(3, 1, sharex=True)
        for name, said in (("rss_bytes", "resident"), ("anonymous_bytes", "anonymous")):
            top.plot(minutes, [sample[name] / MIB for sample in found["samples"]], label=said)
        for share in ("p50", "p99"):
            middle.plot(middles, [minute["milliseconds"][share] for minute in found["by_minute"]], "o-", label=share)
        low.plot(middles, [minute["rate_due"] for minute in found["by_minute"]], "o-", label="asked")
        low.plot(middles, [minute["rate"] for minute in found["by_minute"]], "o-", label="answered by a method")
        top.set(ylabel="MiB, all processes")
        middle.set(ylabel="ms")
        low.set(ylabel="requests/s", xlabel="minutes")
        for axes in (top, middle, low):
            axes.set_ylim(0, 1.15 * axes.dataLim.y1)
            axes.legend(loc="center left", bbox_to_anchor=(1.01, 0.5))
        grown = found["memory_mib"]["anonymous_bytes"]
        top.set_title(f"medrag serve at 70% of its peak: anonymous memory {grown['growth']:+.1f} MiB ({grown['percent']:+.1f}%) once steady")


def swap(bench: Bench) -> Figures:
    """Another index under traffic."""
    copy = bench.work / "store"
    shutil.copytree(bench.store, copy, ignore=shutil.ignore_patterns("runs", ".staging-*", ".work-*", "feedback.sqlite*"))
    first = files.current(copy, "index")
    passages = [row["id"] for row in files.read_jsonl(first.parent("corpus").path / "passages.jsonl")]
    removed = random.Random(0).sample(passages, SWAPS)
    with bench.service("swap", copy) as service:
        bench.warm(service)
        model = service.ask(bench.questions[0])["versions"]["model"]
        peak = bench.known_peak(service)
        rate = 0.5 * peak["rate_all"]
        most = (SWAPS + 1) * (2 * SWAP_WAIT_SECONDS + GAP_SECONDS) + GAP_SECONDS
        with clients(bench.plan(service, most, rate=rate, keep_versions=True), bench.work, "steady") as steady:
            bench.wait(steady, "steady,", GAP_SECONDS, _after(GAP_SECONDS))
            hows: list[list[str] | Path] = [["remove", name] for name in removed]
            rounds = [_swap(bench, steady, copy, how) for how in [*hows, first.path]]
            steady.stop()
            load = steady.load()
    for one in rounds:
        settled = one["changed"], one["changed"] + GAP_SECONDS
        one |= {"rss_mib": memory(service, settled)["last"], "service_cores": service.cores(settled)}
    held = {what: memory(service, load.window, what) for what in ("rss_bytes", "anonymous_bytes")}
    return judged(load, first.path.name, model, rounds) | {"peak": peak, "memory_mib": held, **about(service)}


def _swap(bench: Bench, steady: Clients, store: Path, how: list[str] | Path) -> Figures:
    """One swap, and the traffic after it. Raises ValueError where nothing is published."""
    pointer = store / "index" / files.CURRENT
    before, began = pointer.read_text("utf-8"), time.monotonic()
    process = None
    if isinstance(how, Path):
        files.set_current(store, "index", how)
    else:
        command = [sys.executable, "-m", "medrag", "index", *how, f"store={store}"]
        process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL)
    try:
        late = _after(SWAP_WAIT_SECONDS)
        while pointer.read_text("utf-8") == before:
            if late() or (process is not None and process.poll()):
                raise ValueError(f"nothing was published by {how}")
            time.sleep(0.005)
        changed, name = time.monotonic(), pointer.read_text("utf-8").strip()
        bench.wait(steady, f"swap to {name},", SWAP_WAIT_SECONDS, lambda: steady.last.get("index") == name or _over(changed))
        bench.wait(steady, "swapped,", GAP_SECONDS, _after(GAP_SECONDS))
    finally:
        if process is not None and process.poll() is None:
            process.terminate()
            process.wait()
    return {"how": "CURRENT set back" if process is None else "index remove", "began": began, "changed": changed, "name": name}


def _over(changed: float) -> bool:
    return time.monotonic() > changed + SWAP_WAIT_SECONDS


def judged(load: Load, first: str, model: str, rounds: Sequence[Figures]) -> Figures:
    """Of every answer: was its pair of versions published by then? Of every swap: how long it took, and what it did to latencies."""
    pairs = [tuple(pair) for pair in load.about["versions"]]
    published = {(model, first): -np.inf}
    for one in rounds:
        published.setdefault((model, one["name"]), one["changed"])
    good = (load.status == 200) & ~load.by_rule
    since = np.array([published.get(pair, np.inf) for pair in pairs] + [np.inf])
    # CURRENT was seen to change up to a few milliseconds after it did.
    strange = good & (load.done_at < since[load.version] - 0.1)
    table = [{"clients": "before", **load.figures((load.window[0], rounds[0]["began"]))}]
    for one in rounds:
        number = pairs.index((model, one["name"])) if (model, one["name"]) in pairs else -2
        new = load.done_at[good & (load.version == number) & (load.done_at >= one["changed"])]
        one["seconds"] = float(new.min() - one["changed"]) if len(new) else float("inf")
        until = one["changed"] + min(one["seconds"], SWAP_WAIT_SECONDS) + 2
        stale = good & (load.version != number) & (load.due_at > until) & (load.due_at < one["changed"] + GAP_SECONDS)
        one["old_answers_later"] = int(stale.sum())
        measured = {name: one[name] for name in ("rss_mib", "service_cores")}
        table.append({"clients": one["how"], **load.figures((one["began"], until)), **measured})
    row = load.figures()
    table.append({"clients": "in all", **row})
    return {
        "rows": table,
        "swaps": [{name: value for name, value in one.items() if name not in ("began", "changed")} for one in rounds],
        "versions": [list(pair) for pair in pairs],
        "promises": {
            "no request failed (429 apart)": _only(row, "200", "429"),
            "no request was refused": "429" not in row["statuses"],
            "every answer has a published pair of versions": not strange.any(),
            "every swap was seen": all(np.isfinite(one["seconds"]) for one in rounds),
        },
    }


COLUMNS: dict[str, Callable[[Figures], str]] = {
    "traffic": lambda row: str(row["clients"]),
    "answers/s": lambda row: f"{row['rate']:.1f}",
    "all/s": lambda row: f"{row['rate_all']:.1f}",
    "p50 / p95 / p99 ms": lambda row: " / ".join(f"{row['milliseconds'][share]:.0f}" for share in ("p50", "p95", "p99")),
    "statuses": lambda row: ", ".join(f"{name}: {count:,}" for name, count in row["statuses"].items()),
    "by rule": lambda row: f"{row['by_rule']:,}",
    "429 p99 ms": lambda row: f"{row['refused_milliseconds']['p99']:.0f}",
    "cores": lambda row: f"{row['service_cores']:.2f}" if "service_cores" in row else "",
    "RSS MiB": lambda row: f"{row['rss_mib']:,.0f}" if "rss_mib" in row else "",
    "generator: cores, late p50 / p99 ms": lambda row: (
        f"{row['generator_cpu_share']:.2f}, {row['late_milliseconds']['p50']:.1f} / {row['late_milliseconds']['p99']:.1f}"
    ),
}


def report(part: str, found: Figures) -> str:
    """Markdown: the traffic, what is said of the part alone, and which promises were kept."""
    lines = [f"\n## {part}\n", "| " + " | ".join(COLUMNS) + " |", "|---" + "|--:" * (len(COLUMNS) - 1) + "|"]
    lines += ["| " + " | ".join(cell(row).replace("nan", "") for cell in COLUMNS.values()) + " |" for row in found["rows"]]
    lines.append("")
    if "peak" in found:
        lines.append(f"peak: {found['peak']['rate']:.1f} answers/s by a method, {found['peak']['rate_all']:.1f} in all")
    if part == "overload":
        over = found["rows"][1]
        lines.append(
            f"p99 of the admitted is {found['p99_over_uncontended']:.2f} times the uncontended; goodput is {100 * found['goodput_over_peak']:.0f}% "
            f"of the peak; 429 without Retry-After: {over['refused_without_retry_after']}"
        )
        lines.append(
            f"connections {over['connections']:,}, sent again {over['resent']:,}, held back {over['held']:,}; errors: {over['errors'] or 'none'}"
        )
    if part == "trickle":
        lines.append(f"{found['sockets']} sockets, closed after {found['closed_seconds']['min']:.1f} to {found['closed_seconds']['max']:.1f} s")
        lines.append(f"closed with: {found['closed_as']}")
    for one in found.get("swaps", ()):
        lines.append(
            f"{one['how']}: {one['name']} answered {one['seconds']:.2f} s after CURRENT changed; old answers later: {one['old_answers_later']}"
        )
    for what, sizes in found.get("memory_mib", {}).items():
        lines.append(f"{what.removesuffix('_bytes')} MiB: " + ", ".join(f"{name} {size:,.1f}" for name, size in sizes.items()))
    lines += [f"{'kept  ' if kept else 'BROKEN'} {promise}" for promise, kept in found["promises"].items()]
    return "\n".join(lines)


def plain(value: Any) -> Any:
    """JSON has no nan and no infinity; nobody reads more than four decimals."""
    if isinstance(value, dict):
        return {name: plain(each) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return [plain(each) for each in value]
    if isinstance(value, float):
        return round(value, 4) if np.isfinite(value) else None
    return value


PARTS = {"closed": closed, "overload": overload, "trickle": trickle, "soak": soak, "swap": swap}


def planned(seconds: float, minutes: float) -> dict[str, float]:
    """About how long each part takes, in seconds, with the service's start."""
    start, peak = 20 + WARM_SECONDS, PEAK_SECONDS * len(PEAK_CLIENTS)
    return {
        "closed": start + len(CLIENTS) * seconds,
        "overload": start + peak + 2 * seconds + OVERLOAD_SECONDS + SETTLE_SECONDS,
        "trickle": start + 2 * seconds + ROUNDS * TRICKLE_LIMIT_SECONDS,
        "soak": start + peak + 60 * minutes,
        "swap": start + peak + GAP_SECONDS + (SWAPS + 1) * (GAP_SECONDS + 15),
    }


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("store", type=Path)
    parser.add_argument("part", choices=[*PARTS, "all"])
    parser.add_argument("--out", type=Path, default=Path(tempfile.gettempdir()) / "medrag-serving", help="where JSON, the picture and logs go")
    parser.add_argument("--seconds", type=float, default=20.0, help="of each closed loop")
    parser.add_argument("--minutes", type=float, default=30.0, help="of the soak")
    parser.add_argument("--peak", type=float, help="answers a second; measured where it is not said")
    parser.add_argument("--settings", nargs="*", default=[], metavar="KEY=VALUE", help="of the service")
    parser.add_argument("--service", help="another command that serves (medrag serve)")
    given = parser.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)
    parts = list(PARTS) if given.part == "all" else [given.part]
    try:
        corpus = prepare.read(files.current(given.store, "corpus"))
        asked = text.unique(example.question for split in (corpus.train, corpus.dev, corpus.test) for example in split)
        questions = [question for question in asked if question.strip() and len(question) <= MOST_CHARACTERS]
        load = os.getloadavg()[0]
        print(f"{machine()}; load {load:.2f}; {len(questions):,} distinct questions; to {given.out}")
        with tempfile.TemporaryDirectory(prefix="medrag-serving-") as work:
            command = shlex.split(given.service) if given.service else [sys.executable, "-m", "medrag", "serve"]
            peak = {"rate": given.peak, "rate_all": given.peak} if given.peak else None
            progress = Progress({part: planned(given.seconds, given.minutes)[part] for part in parts})
            bench = Bench(given.store, command, given.settings, given.out, Path(work), given.seconds, given.minutes, questions, progress, peak)
            broken = False
            for part in parts:
                progress.part(part)
                before = os.getloadavg()[0]
                found = PARTS[part](bench)
                found |= {"machine": machine(), "load_before": before, "load_after": os.getloadavg()[0], "questions": len(questions)}
                files.write_json(given.out / f"{part}.json", plain(found))
                progress.clear()
                print(report(part, found), flush=True)
                broken |= not all(found["promises"].values())
    except ValueError as error:
        print(f"serving: {error}", file=sys.stderr)
        return 2
    return int(broken)


if __name__ == "__main__":
    sys.exit(main())
