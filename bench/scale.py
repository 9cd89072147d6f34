"""What breaks first beyond one machine: jobs as events on web tier, Redis, broker and workers, with measured costs.

    python -m bench.scale --costs costs.json --jobs-a-day 1000000 --jobs-a-day 100000000

`--costs` is what `python -m bench.costs --json costs.json` wrote, by default the measured bench/costs.json. Reckoned
are some seconds of the busiest hour, in which jobs come at random at `--peak` times the day's average.
"""

import heapq
import json
import math
import random
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import click

from bench.all import line
from bench.rig import Figure, percentile
from tests.stack import ROOT

PAGE, DEFAULT = ROOT / "docs/scale.md", ROOT / "bench/costs.json"
BEGIN, END = "<!-- reckoned by python -m bench.scale -->\n", "<!-- end of what is reckoned -->\n"
SECONDS_OF_A_DAY = 86_400
# Above this share of its time a part with one queue makes others wait noticeably.
BUSY = 0.7
# How many looks a client takes at its job on average: one that waits, and one at the picture.
LOOKS = 2


@dataclass
class Part:
    """So many servers with one line of waiting."""

    servers: int
    free_at: list[float] = field(default_factory=list)

    def serve(self, now: float, seconds: float) -> float:
        """When a visit that comes now is over."""
        start = now if len(self.free_at) < self.servers else max(now, heapq.heappop(self.free_at))
        heapq.heappush(self.free_at, start + seconds)
        return start + seconds


@dataclass(frozen=True)
class Load:
    """Jobs a second, seconds and steps of a job's model, and seconds that are reckoned."""

    rate: float
    model_seconds: float
    steps: int
    seconds: float


@dataclass(frozen=True)
class Costs:
    """Seconds of processor time; see bench/costs.py."""

    web_submit: float
    redis_submit: float
    redis_run: float
    redis_step: float
    broker_submit: float
    broker_run: float

    @classmethod
    def read(cls, path: Path) -> "Costs":
        """Those of a file that bench/costs.py wrote."""
        found = {figure["name"]: figure["value"] / 1000 for figure in json.loads(path.read_text())["figures"]}
        names = ("web: a submit", "Redis: a submit", "Redis: a run", "Redis: a step", "RabbitMQ: a submit",
                 "RabbitMQ: a run")  # fmt: skip
        return cls(*(found[name] for name in names))


@click.command()
@click.option("--costs", type=click.Path(path_type=Path, exists=True), default=DEFAULT, help="Measured costs.")
@click.option("--jobs-a-day", multiple=True, type=int, default=(1_000_000, 10_000_000, 30_000_000, 100_000_000))
@click.option("--peak", default=3.0, show_default=True, help="The busiest hour, in multiples of the average.")
@click.option("--model-seconds", default=4.0, show_default=True)
@click.option("--steps", default=20, show_default=True)
@click.option("--seconds", default=20.0, show_default=True, help="Of the busiest hour.")
@click.option("--write", is_flag=True, help="Write the table into docs/scale.md.")
def main(
    *, costs: Path, jobs_a_day: tuple[int, ...], peak: float, model_seconds: float, steps: int, seconds: float,
    write: bool,
) -> None:  # fmt: skip
    """Reckon how busy each part is at these numbers of jobs a day, and which one breaks first."""
    loads = [Load(peak * number / SECONDS_OF_A_DAY, model_seconds, steps, seconds) for number in jobs_a_day]
    text = table(jobs_a_day, [figures(load, Costs.read(costs)) for load in loads])
    click.echo(text)
    if write:
        before, begin, rest = PAGE.read_text(encoding="utf-8").partition(BEGIN)
        PAGE.write_text(f"{before}{begin}\n{text}\n{END}{rest.partition(END)[2]}", encoding="utf-8")


def table(jobs_a_day: tuple[int, ...], columns: list[list[Figure]]) -> str:
    """The figures as Markdown, a column for each number of jobs."""
    rows = [[row[0].name, *(figure.row()[1] for figure in row)] for row in zip(*columns, strict=True)]
    head = ["jobs a day", *(f"{number:,}" for number in jobs_a_day)]
    return "\n".join(line(cells) for cells in [head, ["---"] * len(head), *rows]) + "\n"


def figures(load: Load, costs: Costs) -> list[Figure]:
    """How many workers and web processes it takes, how busy the shared parts are, and how long a submit takes."""
    # As many as keep them under the bound: these two are made more by starting more.
    web = math.ceil(load.rate * (LOOKS + 1) * costs.web_submit / BUSY)
    redis = costs.redis_submit + costs.redis_run + load.steps * costs.redis_step
    submits = list(run(load, costs, {"web": Part(web), "Redis": Part(1), "RabbitMQ": Part(1)}))
    return [
        Figure("workers", math.ceil(load.rate * load.model_seconds / 0.9), ""),
        Figure("web processes", web, ""),
        Figure("Redis: share of its one processor", round(load.rate * redis, 2), "", most=BUSY),
        Figure("RabbitMQ: share of one processor", round(load.rate * (costs.broker_submit + costs.broker_run), 2), "",
               most=BUSY),
        Figure("a submit, p99", round(1000 * percentile(submits, 99)), "ms"),
    ]  # fmt: skip


def run(load: Load, costs: Costs, parts: dict[str, Part]) -> Iterator[float]:
    """Seconds that each submit took, beside the visits of the workers."""
    chance = random.Random(1)  # noqa: S311, no secret
    events = [(now, number, "web", now) for number, now in enumerate(arrivals(load, chance))]
    number = len(events)
    while events:
        now, _, visit, came = heapq.heappop(events)
        part, seconds, following = visits(visit, costs)
        end = parts[part].serve(now, seconds)
        if visit == "submitted":
            yield end - came
            steps = [end + load.model_seconds * step / load.steps for step in range(load.steps)]
            for at, name in [*((at, "step") for at in steps), (end, "run"), (end, "delivered")]:
                # What comes later meets nobody any more.
                if at < load.seconds:
                    heapq.heappush(events, (at, number := number + 1, name, came))
        elif following:
            heapq.heappush(events, (end, number := number + 1, following, came))


def arrivals(load: Load, chance: random.Random) -> Iterator[float]:
    """When jobs come, at random."""
    now = 0.0
    while (now := now + chance.expovariate(load.rate)) < load.seconds:
        yield now


def visits(name: str, costs: Costs) -> tuple[str, float, str]:
    """Of one visit: to which part, for how many seconds, and which follows."""
    return {
        "web": ("web", costs.web_submit, "created"),
        "created": ("Redis", costs.redis_submit, "submitted"),
        "submitted": ("RabbitMQ", costs.broker_submit, ""),
        "step": ("Redis", costs.redis_step, ""),
        "run": ("Redis", costs.redis_run, ""),
        "delivered": ("RabbitMQ", costs.broker_run, ""),
    }[name]


if __name__ == "__main__":
    main()
