"""How the page behaves: at the keyboard, to a screen reader, on a phone, by night, and towards the rest of the web."""

import re
import time

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import expect

from tests.backends import embedded
from tests.browser.visit import LONG
from tests.stack import Stack, until
from tests.things import picture

SCHEMES = ["light", "dark"]
PHONE = {"viewport": {"width": 390, "height": 844}, "is_mobile": True, "has_touch": True, "device_scale_factor": 3}

# Colours of the style sheet that stand on each other, and the contrast that the WCAG ask of them (level AA):
# 4.5 for words, 3 for what shows where a control is.
PAIRS = [
    ("--ink", "--room", 4.5), ("--ink", "--card", 4.5), ("--soft", "--room", 4.5), ("--soft", "--card", 4.5),
    ("--red", "--room", 4.5), ("--red", "--card", 4.5), ("--on-button", "--button", 4.5), ("--room", "--ink", 4.5),
    ("--film-ink", "--film", 4.5), ("--film-edge", "--film", 4.5), ("--bath-ink", "--bath", 4.5),
    ("--control", "--room", 3), ("--control", "--card", 3), ("--button", "--room", 3),
]  # fmt: skip


def assert_accessible(page):
    """axe-core finds nothing, by the rules of WCAG 2.2 AA and by its own advice."""
    # Colours that are still on their way would be judged as they are at that moment.
    page.tab.emulate_media(reduced_motion="reduce")
    found = Axe().run(page.tab)
    assert found.response["violations"] == [], found.generate_report()


# ---- the keyboard and the screen reader


def focus(page):
    return page.tab.evaluate("document.activeElement.id || document.activeElement.textContent.trim()")


def tab_to(page, wanted, backwards=False):
    """Press Tab until the element with this id has the focus."""
    for _ in range(60):
        page.tab.keyboard.press("Shift+Tab" if backwards else "Tab")
        if focus(page) == wanted:
            return
    raise AssertionError(f"Tab does not come to {wanted}, but to {focus(page)}")


def test_everything_can_be_done_with_the_keyboard(page):
    expect(page.tab.locator("#model")).not_to_have_value("")
    page.tab.keyboard.press("Tab")
    assert focus(page) == "Skip to the prompt"
    page.tab.keyboard.press("Enter")
    expect(page.tab.locator("#prompt")).to_be_focused()
    page.tab.keyboard.type("from the keyboard")
    page.tab.keyboard.press("Enter")
    page.see_stage("done")
    expect(page.see("#caption")).to_have_text("from the keyboard")
    tab_to(page, "again")
    page.tab.keyboard.press("Enter")
    expect(page.frames()).to_have_count(2)
    page.see_stage("done")
    expect(page.tab.locator(".film li[data-state=done]")).to_have_count(2)
    for _ in range(3):
        page.tab.keyboard.press("Tab")
    with page.tab.expect_download():
        tab_to(page, "download", backwards=True)
        page.tab.keyboard.press("Enter")
    before = page.tab.locator("#ticket-number").text_content()
    page.frames().last.focus()
    page.tab.keyboard.press("Enter")
    expect(page.tab.locator("#ticket-number")).not_to_have_text(before)
    expect(page.tab.locator("#stage-title")).to_be_focused()


def test_a_running_picture_can_be_canceled_with_the_keyboard(page):
    page.hand_in(steps=LONG)
    page.see_stage("developing")
    tab_to(page, "cancel")
    page.tab.keyboard.press("Enter")
    page.see_stage("failed")
    expect(page.tab.locator("#stage-title")).to_be_focused()


def test_shift_and_enter_begin_a_new_line(page):
    page.tab.locator("#prompt").fill("one")
    page.tab.locator("#prompt").press("Shift+Enter")
    page.tab.keyboard.type("two")
    expect(page.tab.locator("#prompt")).to_have_value("one\ntwo")
    page.see_stage("empty")


def test_a_screen_reader_is_told_what_happens(page):
    page.hand_in("heard, not seen", steps=100)
    page.see_news("Ticket")
    page.see_news("Ready: heard, not seen")


@pytest.mark.parametrize("scheme", SCHEMES)
def test_axe_finds_no_fault_in_any_state_of_the_page(visit, emptied, scheme):
    page = visit(color_scheme=scheme)
    expect(page.tab.locator("#model")).not_to_have_value("")
    assert_accessible(page)
    page.drop(picture())
    page.hand_in(seed=1, count=2)
    page.see_stage("done")
    page.picture()
    assert_accessible(page)
    # axe-core may be at it for half a minute where others are at work too.
    page.hand_in(steps=LONG, count=4)
    page.see_stage("developing")
    assert_accessible(page)
    page.tab.locator("#cancel").click()
    page.see_stage("failed")
    assert_accessible(page)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_words_and_controls_stand_out_from_what_is_behind_them(visit, scheme):
    page = visit(color_scheme=scheme)
    weak = {(ink, ground): ratio for ink, ground, least in PAIRS if (ratio := contrast(page, ink, ground)) < least}
    assert weak == {}


def contrast(page, ink, ground):
    lighter, darker = sorted((luminance(page, ink), luminance(page, ground)), reverse=True)
    return round((lighter + 0.05) / (darker + 0.05), 2)


def luminance(page, name):
    """The relative luminance of a colour of the palette, as the WCAG define it."""
    colour = page.tab.evaluate(
        """name => {
            const probe = document.body.appendChild(document.createElement("i"));
            probe.style.color = `var(${name})`;
            const colour = getComputedStyle(probe).color;
            probe.remove();
            return colour;
        }""",
        name,
    )
    parts = [int(part) / 255 for part in re.findall(r"\d+", colour)[:3]]
    red, green, blue = (part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


# ---- places


@pytest.mark.parametrize("width", [320, 390, 768])
def test_a_narrow_page_does_not_scroll_sideways(visit, emptied, width):
    page = visit(**{**PHONE, "viewport": {"width": width, "height": 844}})
    page.hand_in("averyveryverylongwordthatnobodywouldwritebutsomebodydoes" * 3, count=3)
    page.see_stage("done")
    assert page.tab.evaluate("document.documentElement.scrollWidth") == width


def test_a_phone_shows_the_tray_after_handing_in(visit, emptied):
    page = visit(**PHONE)
    page.hand_in()
    page.see_stage("done")
    expect(page.tab.locator("#paper")).to_be_in_viewport()


def test_light_and_dark_follow_the_system_until_the_visitor_chooses(visit):
    page = visit(color_scheme="dark")
    night = background(page)
    button = page.tab.get_by_role("button", name="Colours: auto")
    button.click()
    expect(page.tab.get_by_role("button", name="Colours: light")).to_be_visible()
    day = background(page)
    assert day != night
    page.tab.reload()
    assert background(page) == day


def background(page):
    return page.tab.evaluate("getComputedStyle(document.body).backgroundColor")


# ---- bounds


def test_the_page_may_load_and_do_only_what_it_names(stack, page):
    answer = page.context.request.get(stack.url)
    policy = dict(part.strip().split(" ", 1) for part in answer.headers["content-security-policy"].split(";"))
    assert policy == {
        "default-src": "'none'",
        "script-src": "'self'",
        "style-src": "'self'",
        "img-src": "'self' blob: data:",
        "connect-src": "'self'",
        "form-action": "'self'",
        "frame-ancestors": "'none'",
        "base-uri": "'none'",
    }


def test_the_bounds_hold_in_the_browser(visit):
    page = visit(faults=["Content Security Policy"])
    page.tab.evaluate("document.body.append(Object.assign(document.createElement('script'), {textContent: 'bad = 1'}))")
    assert page.tab.evaluate("typeof bad") == "undefined"


def test_a_prompt_is_text_and_nothing_else(page):
    page.hand_in("<img src=x onerror=alert(1)>")
    page.see_stage("done")
    expect(page.see("#caption")).to_have_text("<img src=x onerror=alert(1)>")


def test_the_page_works_under_another_name_of_the_same_service(visit, stack, emptied):
    page = visit(stack.url.replace("127.0.0.1", "localhost"))
    page.drop(picture(colour="lime"))
    page.hand_in(seed=255)
    page.see_stage("done")
    assert page.colour() == [0, 255, 0]


def test_the_reference_of_the_api_is_there_and_complains_of_nothing(visit, stack):
    page = visit(f"{stack.url}/docs")
    expect(page.tab.get_by_text("Accept a picture to be made")).to_be_visible()


def test_a_service_that_is_away_is_said_to_be_so(visit, emptied):
    page = visit(faults=["ERR_FAILED", "ERR_INTERNET_DISCONNECTED"])
    expect(page.tab.locator("#model")).not_to_have_value("")
    page.context.set_offline(True)
    page.tab.locator("#prompt").fill("into the void")
    page.tab.locator("#develop").click()
    expect(page.see("#refusal")).to_contain_text("does not answer")
    page.context.set_offline(False)
    page.tab.locator("#develop").click()
    page.see_stage("done")


def test_who_waits_is_told_that_the_service_is_away_and_when_it_is_back(visit, emptied):
    page = visit(faults=["ERR_FAILED"])
    page.context.route("**/events", lambda route: route.abort())
    page.hand_in()
    expect(page.see("#away")).to_contain_text("does not answer")
    page.context.unroute("**/events")
    page.see_stage("done")
    expect(page.tab.locator("#away")).to_be_empty()


def test_a_page_that_was_opened_while_the_service_was_away_fills_when_it_is_back(visit, emptied):
    page = visit(faults=["ERR_FAILED"])
    page.context.route("**/models", lambda route: route.abort())
    page.tab.reload()
    expect(page.see("#refusal")).to_contain_text("does not answer")
    page.context.unroute("**/models")
    expect(page.tab.locator("#model")).not_to_have_value("")
    expect(page.tab.locator("#refusal")).to_be_empty()
    page.hand_in(seed=255)
    page.see_stage("done")


def test_a_finished_picture_stays_as_it_is_while_another_develops(page):
    page.hand_in("two stars", count=2)
    page.see_stage("done")
    page.hand_in("a long night", steps=LONG)
    page.frames().nth(1).click()
    page.see_stage("done")
    second = page.tab.locator("#strip button").nth(1)
    second.focus()
    second.evaluate("button => { button.isMine = true; }")
    other, steps = page.frames().first, set()
    until(lambda: len(steps.add(other.text_content()) or steps) > 3, 30, "the other one goes on")
    assert second.evaluate("button => button.isMine && button === document.activeElement")


def test_a_picture_whose_address_has_lapsed_is_asked_for_anew(visit, emptied):
    page = visit(faults=["403"])
    page.hand_in(seed=255)
    page.see_stage("done")
    before, lapsed = page.colour(), set()

    def lapse(route):
        """The addresses that were told with the history are good no more."""
        told = route.fetch()
        lapsed.update(
            image["url"].rpartition("/files/")[2] for task in told.json()["tasks"] for image in task["images"]
        )
        route.fulfill(response=told)

    page.context.route("**/tasks?**", lapse)
    page.context.route("**/files/**", lambda route: refuse_or_go_on(route, lapsed))
    page.tab.reload()
    assert page.colour() == before
    assert lapsed
    until(
        lambda: page.frames().first.locator("img").evaluate("img => img.naturalWidth > 0"),
        30,
        "it is in the history too",
    )


def refuse_or_go_on(route, lapsed):
    if route.request.url.rpartition("/files/")[2] not in lapsed:
        return route.continue_()
    # An address that is signed within the same second is the same.
    second = int(time.time())
    until(lambda: int(time.time()) > second, 5, "the clock goes on")
    return route.fulfill(status=403)


# ---- keys


@pytest.fixture(scope="module")
def locked(tmp_path_factory):
    """A stack that works for those who have a key, a key, and one of a low rate."""
    from app.keys import new_key

    folder = tmp_path_factory.mktemp("locked")
    (key, caller), (slow, slow_caller) = new_key("visitor", rate=""), new_key("slow", rate="1/second")
    keys = folder / "keys.yaml"
    keys.write_text(
        "".join(f"{line}\n" for line in ("callers:", *(f"  - {c.model_dump_json()}" for c in (caller, slow_caller))))
    )
    settings = {"API_KEYS_FILE": str(keys), "DEFAULT_MODEL_VERSION": "steady"}
    with embedded(folder) as backend, Stack(folder, key=key, **backend, **settings) as stack:
        yield stack.start_all("steady"), key, slow


def test_who_has_no_key_is_asked_for_one_and_then_comes_in(visit, locked):
    stack, key, _ = locked
    page = visit(stack.url, faults=["401"])
    expect(page.see("#door")).to_contain_text("those who have a key")
    assert_accessible(page)
    # Nothing is behind the door without a key.
    page.tab.keyboard.press("Escape")
    page.see("#door")
    page.tab.locator("#key").fill("a wrong one")
    page.tab.keyboard.press("Enter")
    expect(page.see("#door-reason")).to_contain_text("Try another")
    page.tab.locator("#key").fill(key)
    page.tab.keyboard.press("Enter")
    page.hand_in()
    page.see_stage("done")
    page.picture()


def test_a_key_lasts_as_long_as_the_tab_and_can_be_forgotten(visit, locked):
    stack, key, _ = locked
    page = visit(stack.url, faults=["401"])
    page.see("#door")
    page.tab.locator("#key").fill(key)
    page.tab.keyboard.press("Enter")
    page.see("#forget-key")
    page.tab.reload()
    page.see("#forget-key").click()
    page.see("#door")
    until(lambda: page.tab.evaluate("sessionStorage.length + localStorage.length") == 0, 10, "nothing is kept")


def test_a_key_of_a_low_rate_makes_the_page_slow_and_nothing_worse(visit, locked):
    stack, _, slow = locked
    page = visit(stack.url, faults=["401", "429"])
    page.see("#door")
    page.tab.locator("#key").fill(slow)
    page.tab.keyboard.press("Enter")
    expect(page.tab.locator("#model")).not_to_have_value("")
    page.drop(picture())
    page.hand_in()
    page.see_stage("done")
    expect(page.tab.locator("#refusal")).to_be_empty()
