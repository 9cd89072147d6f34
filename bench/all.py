"""Every benchmark, one after the other; the results go into docs/performance.md, between its two markers.

    python -m bench.all --on services --json var/bench.json
    python -m bench.all --quick

On an idle machine of two cores this takes about a quarter of an hour. `--quick` takes a few minutes, to see that
everything works. What fails is left out of the results, and makes the command fail once the others are done.
"""

import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import click

from bench.rig import BACKENDS, COLUMNS, Figure, described, machine
from tests.stack import ROOT

PAGE = ROOT / "docs/performance.md"
BEGIN, END = "<!-- results: written by python -m bench.all -->\n", "<!-- end of results -->\n"

# Each benchmark with what makes a quick look of it.
BENCHMARKS = {
    "overhead": ["--jobs", "10"],
    "utilisation": ["--real", "6", "--sleeping", "20", "--nothing", "50", "--rounds", "1"],
    "submits": ["--seconds", "2", "--rounds", "1"],
    "start": ["--rounds", "1"],
    "memory": ["--jobs", "10"],
    "depth": ["--many", "20000", "--asks", "50", "--finished", "50"],
    "waiting_clients": ["--clients", "200"],
    "batching": ["--jobs", "12", "--most", "4", "--rounds", "1"],
}


@click.command()
@click.option("--on", type=click.Choice(list(BACKENDS)), default="embedded", show_default=True, help="Backends.")
@click.option("--quick", is_flag=True, help="A few jobs each: to see that everything works.")
@click.option("--only", type=click.Choice(list(BENCHMARKS)), multiple=True, help="This one; may be said repeatedly.")
@click.option("--json", "file", type=click.Path(path_type=Path), help="Write all figures into this file too.")
def main(*, on: str, quick: bool, only: tuple[str, ...], file: Path | None) -> None:
    """Run every benchmark and write the results into docs/performance.md."""
    here = machine()
    ran = {name: run(name, on, options if quick else []) for name, options in chosen(only).items()}
    told = {name: document for name, document in ran.items() if document}
    document = {"machine": here, "on": on, "quick": quick, "benchmarks": told}
    if file:
        file.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    PAGE.write_text(replaced(PAGE.read_text(encoding="utf-8"), results(document)), encoding="utf-8")
    if failed := ran.keys() - told.keys():
        raise click.ClickException(f"failed: {', '.join(sorted(failed))}")


def chosen(only: tuple[str, ...]) -> dict[str, list[str]]:
    """The benchmarks to run, all of them where none is named."""
    return {name: options for name, options in BENCHMARKS.items() if name in only or not only}


def run(name: str, on: str, options: list[str]) -> dict[str, Any] | None:
    """One benchmark in a process of its own; its document, None when it failed."""
    click.echo(f"\n{name} …")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "figures.json"
        command = [sys.executable, "-m", f"bench.{name}", "--on", on, "--json", str(path), *options]
        failed = subprocess.run(command, cwd=ROOT, check=False).returncode
        return None if failed else dict(json.loads(path.read_text(encoding="utf-8")))


def results(document: dict[str, Any]) -> str:
    """The machine and a table, as Markdown."""
    size = "A quick look, of few jobs each. " if document["quick"] else ""
    head = [f"{size}On {document['on']} backends: {described(document['machine'])}.", "", line(["", *COLUMNS])]
    rows = [
        line([f"`{name}`" if first else "", *Figure(**figure).row()])
        for name, told in document["benchmarks"].items()
        for first, figure in zip([True, *[False] * len(told["figures"])], told["figures"], strict=False)
    ]
    return "\n".join([*head, line(["---"] * (len(COLUMNS) + 1)), *rows]) + "\n"


def line(cells: list[str]) -> str:
    """One line of a table."""
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def replaced(page: str, text: str) -> str:
    """The page with this text between its markers."""
    before, _, rest = page.partition(BEGIN)
    return f"{before}{BEGIN}\n{text}\n{END}{rest.partition(END)[2]}"


if __name__ == "__main__":
    main()
