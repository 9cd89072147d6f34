"""The documents say what the code does."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from app import settings
from app.models import load_catalogue

ROOT = Path(__file__).parents[2]


def test_the_table_of_settings_is_the_one_in_the_code():
    page = (ROOT / "config/README.md").read_text()
    assert page.startswith("# ")
    assert f"\n\n{settings.table()}\n\n" in page


PAGES = sorted(
    str(page.relative_to(ROOT))
    for folder in (".", "docs", "config", "app/models/tiny_scenes")
    for page in (ROOT / folder).glob("*.md")
)


def test_the_readme_leads_to_every_page():
    readme = (ROOT / "README.md").read_text()
    assert len(PAGES) > 12
    assert [page for page in PAGES if page != "README.md" and f"]({page})" not in readme] == []


@pytest.mark.parametrize("page", PAGES)
def test_every_link_leads_somewhere(page):
    links = re.findall(r"\]\(([^)#]+)\)", (ROOT / page).read_text())
    assert [link for link in links if "://" not in link and not (ROOT / page).parent.joinpath(link).exists()] == []


# Who runs the shell commands of a page; where nobody does, the words by which the page says so.
RUN = {
    "README.md": "tests/functional/test_server.py",
    "docs/api.md": "tests/functional/cli/test_commands.py",
    "docs/cli.md": "tests/functional/cli/test_commands.py",
    "docs/models.md": "tests/functional/test_server.py",
    "docs/operations.md": "tests/deploy/observability/test_on_the_running_stack.py",
    "docs/webhooks.md": "tests/functional/test_webhooks.py",
}
NOT_RUN = {
    "CONTRIBUTING.md": "How to change it",
    "docs/cloud.md": "What was never run",
    "docs/deploy.md": "`script/check-images` builds both images, brings",
    "docs/performance.md": "written by python -m bench.all",
    "docs/scale.md": "It is reckoned, not run",
}


@pytest.mark.parametrize("page", PAGES)
def test_shell_commands_are_run_by_a_test_or_the_page_says_what_they_are(page):
    text = (ROOT / page).read_text()
    assert (re.search(r"^ *```sh$", text, re.MULTILINE) is not None) == (page in RUN or page in NOT_RUN)
    if page in RUN:
        assert page in (ROOT / RUN[page]).read_text()
    else:
        assert NOT_RUN.get(page, "") in text


def test_the_page_of_models_has_the_catalogues_table():
    rows = re.findall(r"^\| `([^`]+)` \| `([^`]+)` \| ([^|]+) \|$", (ROOT / "docs/models.md").read_text(), re.MULTILINE)
    catalogue = load_catalogue(str(ROOT / "config/models.yaml")).all()
    assert rows == [(spec.model_version, spec.queue, ", ".join(spec.capabilities)) for spec in catalogue]


def test_every_module_has_its_place_in_the_picture_of_the_house():
    picture = (ROOT / "CONTRIBUTING.md").read_text()
    modules = {path.name for path in (ROOT / "app").glob("*.py")} - {"__init__.py", "__main__.py"}
    assert sorted(name for name in modules if name not in picture) == []


def written(pattern, *pages):
    return set(re.findall(pattern, "\n".join((ROOT / page).read_text() for page in pages), re.MULTILINE))


def read(*patterns):
    """The text of the files that match these patterns, as the code of the project."""
    return "\n".join(path.read_text() for pattern in patterns for path in ROOT.glob(pattern) if path.is_file())


def test_the_pages_name_only_commands_that_there_are():
    commands = written(r"python -m app (\w+)", *PAGES)
    told = subprocess.run([sys.executable, "-m", "app", "--help"], cwd=ROOT, capture_output=True, text=True, check=True)
    assert commands >= {"web", "worker", "courier"}
    assert sorted(command for command in commands if f"\n  {command} " not in told.stdout) == []


def test_the_pages_name_only_scripts_and_files_that_there_are():
    scripts = written(r"\b(?:infra/ci|script)/[\w-]+", *PAGES)
    assert scripts >= {"script/server", "script/test", "infra/ci/deploy-web"}
    assert sorted(script for script in scripts if not (ROOT / script).stat().st_mode & 0o111) == []
    files = written(r"\b(?:app|bench|charts|config|infra|tests)/[\w/.-]+\.\w+", *PAGES)
    assert sorted(file for file in files if not (ROOT / file).exists()) == []


# What a standard or the reader's own shell knows, and Darkroom does not.
OTHERS_NAMES = {"HF_TOKEN", "KIBANA_URL", "OTEL_TRACES_SAMPLER_ARG", "PROMETHEUS_URL", "SSL_CERT_FILE", "STATE_BUCKET"}


def test_the_pages_name_only_settings_and_variables_that_something_reads():
    names = written(r"\b[A-Z]+(?:_[A-Z]+)+\b", *PAGES) - OTHERS_NAMES
    code = read(
        "app/**/*.py",
        "bench/*.py",
        "tests/services/*.py",
        "compose.yaml",
        "script/*",
        "infra/ci/*",
        "infra/**/*.tf",
        "Dockerfile.*",
    )
    known = set(re.findall(r"\b[A-Z]+(?:_[A-Z]+)+\b", code)) | {str(row["name"]) for row in settings.rows()}
    assert len(names) > 50
    assert sorted(names - known) == []


def test_each_script_of_a_pipeline_reads_the_variables_that_the_page_sets_for_it():
    setting = r"[A-Z_]+=(?:\"[^\"]*\"|\S+) "
    calls = re.findall(rf"((?:\b{setting})+)(infra/ci/[\w-]+)", (ROOT / "docs/cloud.md").read_text())
    assert {script for _, script in calls} >= {"infra/ci/deploy-web", "infra/ci/cluster-secrets", "infra/ci/smoke"}
    for given, script in calls:
        asked = set(re.findall(r"\$\{?([A-Z_]+)", read(script, "infra/ci/common.sh")))
        assert set(re.findall(r"\b([A-Z_]+)=", given)) <= asked, script


def test_the_outputs_of_terraform_that_the_page_names_are_those_of_both_roots():
    named = written(r"(?:output -json |output `)(\w+)", "docs/cloud.md")
    assert named == {"helm_values", "observability_values", "ingress_address", "name_servers"}
    for root in ("dev", "prod"):
        assert named <= set(re.findall(r'^output "(\w+)"', read(f"infra/envs/{root}/*.tf"), re.MULTILINE))


def test_the_pages_name_only_metrics_that_are_told():
    metrics = written(r"\bdarkroom_[a-z_]+\b", *PAGES)
    assert metrics
    assert sorted(name for name in metrics if f'"{name}"' not in read("app/metrics.py")) == []


def test_operators_read_no_command_that_was_never_run_without_being_told_so():
    """Blocks in `sh` are run by test_on_the_running_stack.py; all others stand where it says that they are not."""
    programs = r"`(?:kubectl|docker|nvidia-smi|dmesg|systemctl|curl|redis-cli|rabbitmqctl) [^`]*`"
    told, _, unrun = (ROOT / "docs/operations.md").read_text().partition("## Commands that no test runs")
    assert re.findall(programs, told) == ["`curl -v`"]
    assert len(re.findall(programs, unrun)) > 5
    assert set(re.findall(r"^```(\w+)$", told, re.MULTILINE)) == {"sh"}
    seeing = (ROOT / "docs/observability.md").read_text()
    assert re.findall(programs, seeing) == []
    assert re.findall(r"No test runs these: .*\n\n```(\w+)$", seeing, re.MULTILINE) == ["console"]
    assert "```sh" not in seeing
