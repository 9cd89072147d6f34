"""Every benchmark, one after the other; the results go into docs/performance.md, between its two markers.

    python -m bench.all --on services --json var/bench.json
    python -m bench.all --quick

On an idle machine of two cores this takes about a quarter of an hour. `--quick` takes a few minutes, to see that
everything works. What fails is left out of the results, and makes the command fail once the others are done. With
`--only` the others' results stay as they are on the page, and the page says which were taken apart from them.
"""

import itertools
import json
import re
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
    page = PAGE.read_text(encoding="utf-8")
    PAGE.write_text(replaced(page, merged(page, document) if only else results(document)), encoding="utf-8")
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
    head = [f"{circumstances(document)}.", "", line(["", *COLUMNS]), line(["---"] * (len(COLUMNS) + 1))]
    return "\n".join([*head, *itertools.chain(*rows(document).values())]) + "\n"


def circumstances(document: dict[str, Any]) -> str:
    """On which backends and what machine the figures were taken."""
    size = "A quick look, of few jobs each. " if document["quick"] else ""
    return f"{size}On {document['on']} backends: {described(document['machine'])}"


def rows(document: dict[str, Any]) -> dict[str, list[str]]:
    """The lines of the table by benchmark; only the first line of each bears its name."""
    return {
        name: [
            line([f"`{name}`" if number == 0 else "", *Figure(**figure).row()])
            for number, figure in enumerate(told["figures"])
        ]
        for name, told in document["benchmarks"].items()
    }


def merged(page: str, document: dict[str, Any]) -> str:
    """What stands between the page's markers, with these benchmarks' lines in the place of their former ones."""
    text = page.partition(BEGIN)[2].partition(END)[0].strip("\n")
    if "|" not in text:
        return results(document)
    head, _, rest = text.partition("\n| ---")
    dashes, *lines = rest.partition("\n\n")[0].splitlines()
    notes = [note for note in rest.partition("\n\n")[2].split("\n\n") if note]
    new = rows(document)
    table = shown(lines) | new
    ordered = [row for name in BENCHMARKS for row in table.get(name, [])]
    kept = [note for note in notes if not set(re.findall(r"`(\w+)`", note.partition(" apart")[0])) <= new.keys()]
    names = ", ".join(f"`{name}`" for name in new)
    # Its own machine, load and commit: the line above the table tells those of the others.
    note = f"{names} apart from the others. {circumstances(document)}."
    return "\n\n".join(["\n".join([head, f"| ---{dashes}", *ordered]), *kept, *([note] if new else [])]) + "\n"


def shown(lines: list[str]) -> dict[str, list[str]]:
    """The lines of a table by the benchmark that they tell of."""
    found: dict[str, list[str]] = {}
    name = ""
    for row in lines:
        name = (re.match(r"\| `(\w+)` ", row) or [name, name])[1]
        found.setdefault(name, []).append(row)
    return found


def line(cells: list[str]) -> str:
    """One line of a table."""
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def replaced(page: str, text: str, begin: str = BEGIN, end: str = END) -> str:
    """The page with this text between these markers."""
    before, _, rest = page.partition(begin)
    return f"{before}{begin}\n{text}\n{end}{rest.partition(end)[2]}"


if __name__ == "__main__":
    main()
