"""Pictures of the page with the bundled model at work: docs/page.png for the README, the others in var/screenshots."""

import sys
import tempfile
from pathlib import Path

from app.models.tiny_scenes.grammar import example_prompts
from tests.backends import embedded
from tests.browser.chromium import chromium
from tests.stack import ROOT, Stack, until

MODEL = "tiny-scenes-1"
PROMPTS = [*example_prompts(11, seed=4), "a large yellow star on a purple background"]
DESKTOP, PHONE = {"width": 1280, "height": 1240}, {"width": 390, "height": 844}
PATIENCE = 180_000


def main(folder):
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as scratch, embedded(Path(scratch)) as settings:
        models = {"MODELS_FILE": str(ROOT / "config/models.yaml"), "WORKER_QUEUE": "gen.tiny"}
        with Stack(Path(scratch), **settings, **models) as stack, chromium() as browser:
            stack.start_all(MODEL)
            for seed, prompt in enumerate(PROMPTS):
                stack.client.wait(stack.client.generate(prompt, seed=seed)["task_id"], 60)
            take_all(browser, stack.url, folder)


def take_all(browser, url, folder):
    for scheme in ("light", "dark"):
        page = opened(browser, url, viewport=DESKTOP, color_scheme=scheme)
        page.screenshot(path=folder / f"desktop-{scheme}.png", full_page=True)
        phone = opened(browser, url, viewport=PHONE, device_scale_factor=2, color_scheme=scheme)
        phone.locator("#stage").scroll_into_view_if_needed()
        phone.screenshot(path=folder / f"phone-{scheme}.png")
        developing(page, folder / f"developing-{scheme}.png")
        developing(phone, folder / f"phone-developing-{scheme}.png")
    settings = opened(browser, url, viewport=DESKTOP)
    settings.locator("summary").click()
    settings.screenshot(path=folder / "settings.png", full_page=True)
    shown = opened(browser, url, viewport=DESKTOP)
    shown.screenshot(path=ROOT / "docs/page.png")


def opened(browser, url, **options):
    page = browser.new_context(**options).new_page()
    page.goto(url)
    page.locator("#stage[data-state=done]").wait_for(timeout=PATIENCE)
    page.wait_for_load_state("networkidle")
    return page


def developing(page, path):
    """The page while a picture with many steps is made."""
    page.locator("summary").click()
    page.locator("#steps").fill("100")
    page.locator("#count").fill("4")
    page.locator("summary").click()
    page.locator("#prompt").fill("a large teal fish on a brown background")
    page.locator("#develop").click()
    bar = page.locator("#progress")
    until(lambda: bar.evaluate("bar => bar.value > 0.4"), PATIENCE / 1000, "almost half developed")
    page.screenshot(path=path)
    page.locator("#cancel").click()
    page.locator("#stage[data-state=failed]").wait_for(timeout=PATIENCE)
    page.locator("#remove").dblclick()
    page.locator("#stage[data-state=done]").wait_for(timeout=PATIENCE)


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT / "var/screenshots")
