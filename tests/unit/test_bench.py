"""The benchmarks are commands, and docs/performance.md tells of them as they are."""

import importlib
import re
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from bench import all as every
from bench import scale
from bench.beside import __main__ as beside
from bench.beside import contenders
from bench.rig import Figure

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs/performance.md").read_text()

# What the others are made of, or start.
PARTS = {"bare", "bare_route", "bare_script", "faulty_store", "load", "rig", "sleeping"}
COMMANDS = sorted({path.stem for path in (ROOT / "bench").glob("*.py")} - PARTS)


@pytest.mark.parametrize("name", COMMANDS)
def test_every_benchmark_says_what_it_measures_and_takes(name):
    told = CliRunner().invoke(importlib.import_module(f"bench.{name}").main, ["--help"])
    assert told.exit_code == 0
    assert len(told.output.splitlines()) > 5


def test_the_page_shows_how_to_run_each_benchmark_and_no_other():
    shown = re.findall(r"python -m bench\.(\w+)(.*?)(?:`|$)", PAGE, re.MULTILINE)
    assert {name for name, _ in shown} == {*every.BENCHMARKS, "all", "beside"}
    known = {name: options(command_of(name)) for name, _ in shown}
    assert [(n, o) for n, rest in shown for o in re.findall(r"--\w+", rest) if o not in known[n]] == []


def command_of(name: str) -> click.Command:
    return importlib.import_module("bench.beside.__main__" if name == "beside" else f"bench.{name}").main


def options(command: click.Command) -> set[str]:
    return {name for option in command.params for name in option.opts}


@pytest.mark.parametrize("name", every.BENCHMARKS)
def test_a_quick_look_names_options_that_there_are(name):
    known = options(importlib.import_module(f"bench.{name}").main)
    assert [o for o in every.BENCHMARKS[name] if o.startswith("--") and o not in known] == []


def test_new_results_take_the_place_of_the_old_ones_and_leave_the_rest_of_the_page():
    once = every.replaced(PAGE, "| first |\n")
    twice = every.replaced(once, "| second |\n")
    assert "| first |" in once
    assert "| first |" not in twice
    assert twice.replace("| second |", "| first |") == once
    assert once.partition(every.BEGIN)[0] == PAGE.partition(every.BEGIN)[0]
    assert once.partition(every.END)[2] == PAGE.partition(every.END)[2]


def test_a_figure_says_whether_its_goal_is_met():
    assert Figure("x", 12, "ms", most=12).goal == "at most 12: met"
    assert Figure("x", 0.9, "", least=0.97).goal == "at least 0.97: missed"
    assert Figure("x", 1, "").goal == ""


def test_the_page_on_scale_shows_what_is_reckoned_from_the_measured_costs():
    told = CliRunner().invoke(scale.main, ["--jobs-a-day", "1000000", "--seconds", "20"])
    assert told.exit_code == 0
    page = (ROOT / "docs/scale.md").read_text()
    shown = {cells[1].strip(): cells[2].strip() for row in page.splitlines() if len(cells := row.split("|")) > 3}
    reckoned = {cells[1].strip(): cells[2].strip() for row in told.output.splitlines() if (cells := row.split("|"))[1:]}
    assert reckoned == {name: shown[name] for name in reckoned}
    assert len(reckoned) > 5


def test_a_part_that_is_asked_for_more_than_it_can_makes_submits_wait():
    costs = scale.Costs(0.001, 0.01, 0, 0, 0.001, 0)
    calm, crowded = (scale.figures(scale.Load(rate, 1, 1, 10), costs) for rate in (10, 150))
    assert [figure.goal.split(": ")[1] for figure in (calm[2], crowded[2])] == ["met", "missed"]
    assert calm[-1].value < 40
    assert crowded[-1].value > 1000


def ran(name: str, value: float) -> dict:
    here = {
        "cores": 2, "cpu": "a processor", "memory_gb": 8, "system": "Linux", "python": "3.11", "versions": {},
        "commit": "abc1234", "load_at_start": 0.1, "beside_other_work": False,
    }  # fmt: skip
    told = {"figures": [{"name": "first", "value": value, "unit": "ms"}, {"name": "next", "value": 2, "unit": "ms"}]}
    return {"machine": here, "on": "services", "quick": False, "benchmarks": {name: told}}


def test_one_benchmark_taken_apart_leaves_the_results_of_the_others():
    page = every.replaced(PAGE, every.results(ran("overhead", 1)))
    for value in (7, 8):
        page = every.replaced(page, every.merged(page, ran("depth", value)))
    shown = page.partition(every.BEGIN)[2].partition(every.END)[0]
    assert "| `overhead` | first | 1 ms |" in shown
    assert "| `depth` | first | 8 ms |" in shown
    assert "7 ms" not in shown
    assert shown.count("`depth` apart from the others.") == 1
    assert shown.count("| next |") == 2


def test_each_rival_has_its_module_is_locked_and_has_a_row_that_leaves_empty_what_it_has_not():
    modules = {path.stem for path in (ROOT / "bench/beside/rivals").glob("with_*.py")}
    assert modules == {f"with_{name}" for name in contenders.RIVALS}
    lock = (ROOT / "requirements/beside.txt").read_text()
    assert [r.package for r in contenders.RIVALS.values() if f"\n{r.package}==" not in lock] == []
    least = {"overhead_ms": 1, "overhead_p90_ms": 2, "share": 0.9, "kept": 20, "kept_seconds": 9}
    shown = beside.table({"ray": {"version": "2", "machine": ran("overhead", 1)["machine"], "figures": least}})
    assert "| ray 2 | 1.0, 2.0 ms | 0.900 |  | 20 in 9 s |  |" in shown


@pytest.mark.parametrize("path", sorted((ROOT / "bench/beside/rivals").glob("*.py")), ids=lambda path: path.stem)
def test_what_a_rival_runs_imports_nothing_of_darkroom(path):
    assert re.findall(r"^\s*(?:from|import) (?:app|tests|bench\.rig)\b", path.read_text(), re.MULTILINE) == []
