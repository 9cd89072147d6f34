"""docs/cloud.md: its tables are right."""

import math
import re

import pytest
import yaml

from tests.deploy.programs import ROOT

PAGE = (ROOT / "docs/cloud.md").read_text()


def cells(heading):
    """The first cell of each row of a section's table."""
    section = PAGE.partition(f"\n## {heading}\n")[2].partition("\n## ")[0]
    return [row.split("|")[1].strip() for row in re.findall(r"^\|.*", section, re.MULTILINE)][2:]


def test_every_module_has_its_row():
    assert set(cells("What Terraform makes")) == {path.name for path in (ROOT / "infra/modules").iterdir()} - {"stack"}


def test_every_credential_of_the_jenkinsfile_has_its_row():
    asked = set(re.findall(r"credentialsId: '([\w-]+)'", (ROOT / "Jenkinsfile").read_text()))
    assert asked == set(re.findall(r"`([\w-]+)`", " ".join(cells("Jenkins"))))


def test_the_secrets_that_production_names_are_told():
    values = yaml.safe_load((ROOT / "charts/darkroom/values-production.yaml").read_text())
    for secret in (values["apiKeys"]["secret"], values["webhooks"]["secret"], values["redis"]["external"]["secret"]):
        assert re.search(rf"\b{secret}\b", PAGE)


@pytest.mark.parametrize(("pictures", "row"), [(1000, "1 000"), (10_000, "10 000"), (100_000, "100 000")])
def test_the_sizes_are_what_the_rule_gives(pictures, row):
    told = re.search(rf"^\| {row} \| (\d+) GPUs? \| (\d+) GPUs? \| (\d+) GPUs? \|$", PAGE, re.MULTILINE).groups()
    assert [int(number) for number in told] == [
        math.ceil(pictures * seconds / (86_400 * 0.6)) for seconds in (3, 10, 30)
    ]
