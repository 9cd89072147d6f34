"""E: the memory of each process, idle and after some jobs.

    python -m bench.memory --jobs 40

RSS counts what processes share in each of them; USS is what would be free if the process ended.
"""

import click
import psutil

from bench.rig import TINY, Caller, Figure, benchmark, from_the_line, running
from tests.stack import Role, Stack


@benchmark
@click.option("--jobs", default=40, show_default=True, help="Of tiny-scenes-1.")
def main(on: str, jobs: int) -> list[Figure]:
    """RSS and USS of each process, idle with its models loaded, and what some jobs add."""
    with running(on, "web", "worker", "courier") as stack:
        caller = Caller(stack)
        caller.done(caller.submit(TINY))
        idle = held_by(stack)
        from_the_line(stack, caller, TINY, jobs)
        after = held_by(stack)
    return [figure for name in idle for figure in figures(name, idle[name], after[name], jobs)]


def figures(name: str, idle: tuple[float, float], after: tuple[float, float], jobs: int) -> list[Figure]:
    """RSS and USS in MB, each beside what it was before the jobs."""
    return [
        Figure(f"{name}, {kind} after {jobs} jobs", round(now), "MB", f"{before:.0f} MB idle")
        for kind, before, now in zip(("RSS", "USS"), idle, after, strict=True)
    ]


def held_by(stack: Stack) -> dict[str, tuple[float, float]]:
    """RSS and USS of every process in MB, by the role's name; its children are numbered."""
    return {name: sizes(process) for role in stack.roles for name, process in processes(role)}


def processes(role: Role) -> list[tuple[str, psutil.Process]]:
    """The role's own process and its children; without those that Python itself starts beside them."""
    children = [child for child in role.children if "tracker" not in " ".join(child.cmdline())]
    named = [(f"{role.name}, child {number}", child) for number, child in enumerate(children, 1)]
    return [(role.name, psutil.Process(role.process.pid)), *named]


def sizes(process: psutil.Process) -> tuple[float, float]:
    """RSS and USS in MB."""
    info = process.memory_full_info()
    return info.rss / 1e6, info.uss / 1e6


if __name__ == "__main__":
    main()
