"""Darkroom beside plain Celery, dramatiq, taskiq, arq, RQ, LitServe, BentoML and Ray Serve: same backends, same model.

    script/tools beside
    python -m bench.beside
    python -m bench.beside --only darkroom --only rq

Those named by `--only` are measured anew, and the others' figures kept in the file of `--json`; the table of
docs/performance.md is written from that file.
"""

import importlib.metadata
import json
import time
from pathlib import Path
from typing import Any

import click

from app import __version__
from bench.all import line, replaced
from bench.beside.contenders import NAMES, RIVALS, TOOLS, settings
from bench.beside.measure import KILLED, measured
from bench.rig import described, machine
from tests.backends import GIVEN
from tests.stack import ROOT

PAGE = ROOT / "docs/performance.md"
BEGIN, END = "<!-- beside: written by python -m bench.beside -->\n", "<!-- end of beside -->\n"
COLUMNS = ["", "A: overhead, p90", "B", "C: submits, p50, p99", f"kept of {KILLED} after kill -9", "8 at once"]


@click.command()
@click.option("--only", type=click.Choice(NAMES), multiple=True, help="This one; may be said repeatedly.")
@click.option("--jobs", default=60, show_default=True, help="Jobs of 50 ms in the line.")
@click.option("--seconds", default=4.0, show_default=True, help="Of each round of submits.")
@click.option("--patience", default=90.0, show_default=True, help="Seconds within which killed jobs must succeed.")
@click.option("--pictures", default=32, show_default=True, help="Asked for at once.")
@click.option("--json", "file", type=click.Path(path_type=Path), default=ROOT / "var/beside.json", help="Figures.")
def main(*, only: tuple[str, ...], file: Path, **sizes: Any) -> None:
    """Measure Darkroom and its rivals in one way, and write the table into docs/performance.md."""
    check()
    document = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
    for name in only or NAMES:
        click.echo(f"{name} …")
        document[name] = taken(name, sizes)
        file.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    PAGE.write_text(replaced(PAGE.read_text(encoding="utf-8"), table(document), BEGIN, END), encoding="utf-8")
    click.echo(table(document))


def check() -> None:
    """Raise a usage error for what is missing."""
    if not GIVEN["BROKER_URL"]:
        raise click.UsageError('first: script/services start; eval "$(script/services env)"')
    if not (TOOLS / "bin/python").exists():
        raise click.UsageError("first: script/tools beside")


def taken(name: str, sizes: dict[str, Any]) -> dict[str, Any]:
    """One contender's figures and what they depend on."""
    here, start = machine(), time.monotonic()
    figures = measured(name, **sizes)
    return {"version": version(name), "machine": here, "took_s": round(time.monotonic() - start), "figures": figures}


def version(name: str) -> str:
    """The release that was measured."""
    if name == "darkroom":
        return __version__
    [site] = TOOLS.glob("lib/python*/site-packages")
    [found] = importlib.metadata.distributions(name=RIVALS[name].package, path=[str(site)])
    return found.version


def table(document: dict[str, Any]) -> str:
    """The table, how each is run, and the machine, as Markdown."""
    names = [name for name in NAMES if name in document]
    rows = [line([f"{name} {document[name]['version']}", *cells(document[name]["figures"])]) for name in names]
    ways = [f"- {name}: {settings(name)}." for name in names]
    loads = ", ".join(f"{name} {document[name]['machine']['load_at_start']}" for name in names)
    where = described(document[names[-1]]["machine"] | {"beside_other_work": False})
    head = [line(COLUMNS), line(["---"] * len(COLUMNS))]
    return "\n".join([*head, *rows, "", *ways, "", f"{where}. Load when each began: {loads}."]) + "\n"


def cells(figures: dict[str, float]) -> list[str]:
    """A contender's cells after its name; empty for what it has not."""
    return [
        f"{figures['overhead_ms']:.1f}, {figures['overhead_p90_ms']:.1f} ms",
        f"{figures['share']:.3f}",
        f"{figures['rate']:.0f} /s, {figures['p50_ms']:.0f}, {figures['p99_ms']:.0f} ms" if "rate" in figures else "",
        f"{figures['kept']:.0f} in {figures['kept_seconds']:.0f} s",
        f"{figures['pictures_rate']:.2f} pictures/s" if "pictures_rate" in figures else "",
    ]


if __name__ == "__main__":
    main()
