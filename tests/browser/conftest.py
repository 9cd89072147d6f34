"""The page in a real Chromium, before a real stack with the model `steady`."""

import pytest

from tests.backends import embedded, skip_or_fail
from tests.browser.chromium import chromium, find
from tests.browser.visit import Visit
from tests.stack import Stack


def pytest_collection_modifyitems(items):
    for item in items:
        if "tests/browser/" in item.path.as_posix():
            item.add_marker(pytest.mark.browser)


@pytest.fixture(scope="session")
def stack(tmp_path_factory):
    """One web process, one worker, one courier, on what `script/server` bundles."""
    folder = tmp_path_factory.mktemp("page")
    with embedded(folder) as backend, Stack(folder, **backend, DEFAULT_MODEL_VERSION="steady") as stack:
        yield stack.start_all("steady")


# Playwright's event loop runs until the browser is closed; other modules' tests may want one of their own.
@pytest.fixture(scope="module")
def browser():
    if find() is None:
        skip_or_fail("needs Chromium: script/test installs it in CI")
    with chromium() as browser:
        yield browser


@pytest.fixture
def emptied(stack):
    """The stack without anybody's tasks."""
    client = stack.client
    tasks = [task["task_id"] for task in client.tasks()]
    for task_id in tasks:
        client.cancel(task_id)
    for task_id in tasks:
        client.wait(task_id, 60)
        client.delete(task_id)
    return stack


@pytest.fixture
def visit(browser, stack):
    """A function that opens the page for a new visitor; each visit must stay within the page's own bounds."""
    visits = []

    def open_page(url=stack.url, *, faults=(), **options):
        visits.append(Visit(browser, url, faults, **options))
        return visits[-1]

    yield open_page
    for one in visits:
        one.end()


@pytest.fixture
def page(visit, emptied):
    """The page in a wide window."""
    return visit()
