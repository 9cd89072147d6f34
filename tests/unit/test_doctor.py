"""What `darkroom doctor` says of an account in the picture store, against what Terraform lets each role do."""

import re

import pytest

from app import doctor
from app.errors import DarkroomError, StorageUnavailable
from app.storage import LocalStorage
from tests.stack import ROOT

IDENTITY = (ROOT / "infra/modules/identity/main.tf").read_text()
NEEDED = {
    "put": {"create"}, "get": {"get"}, "size": {"get", "list"}, "delete": {"delete"}, "download_url": {"sign"},
}  # fmt: skip


def granted(role):
    """The words of Terraform: `storage.objects.create` is `create`."""
    listed = re.search(rf"^    {role} += \[(.*)\]$", IDENTITY, re.MULTILINE)[1]
    signs = f'"{role}"' in re.search(r"signing += toset\((.*)\)", IDENTITY)[1]
    return {*re.findall(r"storage\.objects\.(\w+)", listed), *(["sign"] if signs else [])}


EVERY_RIGHT = [(role, right) for role in ("web", "worker", "courier") for right in sorted(granted(role))]


@pytest.fixture
def allow(monkeypatch):
    """`allow("get", …)`: an account with these rights and no others."""

    def only(*rights):
        for method, needed in NEEDED.items():
            if not needed <= set(rights):
                monkeypatch.setattr(LocalStorage, method, refused)

    def refused(*_):
        raise StorageUnavailable("Forbidden")

    return only


@pytest.mark.parametrize("role", ["web", "worker", "courier"])
def test_the_rights_that_a_role_is_given_are_enough_for_what_it_does(settings, allow, role):
    allow(*granted(role))
    assert doctor.storage(settings, role).endswith(f"lets the {role} role do its work")


@pytest.mark.parametrize(("role", "right"), EVERY_RIGHT)
def test_a_right_that_is_missing_is_found(settings, allow, role, right):
    allow(*granted(role) - {right})
    with pytest.raises(DarkroomError):
        doctor.storage(settings, role)
