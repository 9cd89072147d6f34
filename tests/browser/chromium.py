"""Chromium as the distribution ships it, driven by Playwright.

Playwright speaks the DevTools protocol to any Chromium, so that no driver of the same version is wanted and no browser
is downloaded; it waits for what it clicks, and gives each test a profile of its own.
"""

import contextlib
import shutil

from playwright.sync_api import sync_playwright

# The first draws no window that nobody sees, and takes two thirds of the time.
NAMES = ("chromium-headless-shell", "chromium", "chromium-browser", "google-chrome")
# --no-sandbox: containers forbid its system calls. The rest keeps it from calling home.
FLAGS = [
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync",
]  # fmt: skip


def find():
    """The path of an installed Chromium, None without one."""
    return next((path for name in NAMES if (path := shutil.which(name))), None)


@contextlib.contextmanager
def chromium():
    """A running browser without a window."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=find(), args=FLAGS, headless=True)
        try:
            yield browser
        finally:
            browser.close()
