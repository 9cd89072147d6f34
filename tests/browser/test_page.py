"""What a visitor does on the page: hand in, watch, cancel, start from a picture, take home, come back."""

import io
import json
import re

import pytest
import redis
from PIL import Image
from playwright.sync_api import expect

from app.workers import WorkerRegistry, WorkerState
from tests.browser.visit import LONG
from tests.things import picture

RED = 255  # the seed of a red picture


def test_a_visitor_hands_in_a_prompt_and_sees_the_picture(page):
    page.hand_in("a red evening", seed=RED)
    page.see_stage("done")
    assert page.colour() == [255, 0, 0]
    assert page.see("#caption").text_content() == "a red evening"
    assert page.facts()["Seed"] == "255"
    assert page.tab.locator("#print").get_attribute("alt") == "a red evening"


def test_the_ticket_is_the_task(page, emptied):
    number = page.hand_in()
    page.see_stage("done")
    [task] = emptied.client.tasks()
    assert task["task_id"].upper().startswith(number)


def test_a_visitor_sees_how_far_the_picture_is(page):
    page.hand_in(steps=LONG)
    page.see_stage("developing")
    bar = page.see("#progress")
    first = bar.evaluate("bar => bar.value")
    expect(page.see("#steps-done")).to_have_text(re.compile(rf"Step \d+ of {LONG}"))
    expect(bar).not_to_have_js_property("value", first)
    assert 0 < bar.evaluate("bar => bar.value") < 1
    expect(page.frames().first).to_contain_text("%")
    page.tab.locator("#cancel").click()
    page.see_stage("failed")


def test_a_preview_comes_up_in_the_tray(page):
    page.hand_in(steps=LONG, seed=255)
    expect(page.tab.locator("#print")).to_have_attribute("src", re.compile("data:image/jpeg;base64,"))
    page.see_stage("developing")
    assert page.colour()[0] > 250
    page.tab.locator("#cancel").click()
    page.see_stage("failed")


def test_a_worker_that_comes_is_seen_without_a_reload(page, stack):
    option = page.tab.locator("#model option[value=no-worker]")
    expect(option).to_have_text("no-worker (no worker)")
    expect(option).to_be_disabled()
    page.set(seed=7)
    with redis.Redis.from_url(stack.settings["REDIS_URL"], decode_responses=True) as store:
        here = WorkerState(
            name="gen.nobody-1@test", queue="gen.nobody", version="1", state="ready", models=("no-worker",)
        )
        WorkerRegistry(store).announce(here)
        expect(option).to_have_text("no-worker")
        WorkerRegistry(store).leave(here.name)
    expect(page.tab.locator("#seed")).to_have_value("7")


def test_a_visitor_cancels(page, emptied):
    page.hand_in(steps=LONG)
    page.see_stage("developing")
    page.see("#cancel").click()
    page.see_stage("failed")
    expect(page.see("#ticket-state")).to_have_text("Canceled")
    [task] = emptied.client.tasks()
    assert task["error"]["code"] == "canceled"


def test_those_who_wait_are_told_so_and_have_their_turn(page):
    page.hand_in(steps=100)
    page.hand_in(steps=4)
    page.hand_in(steps=4)
    page.hand_in(steps=4)
    page.see_stage("done")
    expect(page.tab.locator(".film li[data-state=done]")).to_have_count(4)


def test_a_visitor_drops_a_picture_and_gets_one_made_from_it(page):
    page.drop(picture(colour="lime"))
    expect(page.see("#negative-name")).to_have_text("start.png")
    page.hand_in(seed=RED)
    page.see_stage("done")
    assert (page.colour(0, 0), page.colour(20, 20)) == ([0, 255, 0], [255, 0, 0])


def test_a_visitor_chooses_a_picture_and_takes_it_back(page):
    page.tab.locator("#file").set_input_files({"name": "a.png", "mimeType": "image/png", "buffer": picture()})
    page.see("#negative-remove").click()
    expect(page.tab.locator("#strength-field")).to_be_hidden()
    page.hand_in(seed=RED)
    page.see_stage("done")
    assert page.colour(60, 60) == [255, 0, 0]


def test_what_is_no_picture_is_refused_at_the_counter(page):
    page.tab.locator("summary").click()
    page.drop(b"words", "words.txt", "text/plain")
    expect(page.see("#refusal")).to_contain_text("words.txt is no picture")
    expect(page.see("#refusal")).to_be_in_viewport()


def test_a_file_that_only_claims_to_be_a_picture_is_doubted_and_fails_with_its_reason(page):
    page.drop(b"no picture at all")
    expect(page.see("#refusal")).to_contain_text("cannot be shown here: perhaps it is no picture")
    expect(page.tab.locator("#negative-picture")).to_be_hidden()
    page.hand_in()
    page.see_stage("failed")
    expect(page.see("#reason")).to_contain_text("no picture that can be read")


def test_a_visitor_takes_the_picture_home(page):
    page.hand_in("Ein Bär, rot", seed=RED)
    page.see_stage("done")
    with page.tab.expect_download() as waiting:
        page.see("#download").click()
    assert waiting.value.suggested_filename == "ein-bär-rot-255.png"
    saved = Image.open(io.BytesIO(waiting.value.path().read_bytes()))
    assert (saved.getpixel((0, 0)), saved.info["seed"]) == ((255, 0, 0), "255")


def test_again_makes_the_same_with_another_seed(page):
    page.hand_in("twice", seed=RED, steps=5)
    page.see_stage("done")
    page.see("#again").click()
    expect(page.frames()).to_have_count(2)
    page.see_stage("done")
    expect(page.see("#facts")).not_to_contain_text("Seed255")
    assert page.facts()["Steps"] == "5"
    assert page.see("#caption").text_content() == "twice"


def test_a_variation_is_made_from_the_print(page):
    page.hand_in(seed=RED)
    page.see_stage("done")
    page.see("#variation").click()
    expect(page.frames()).to_have_count(2)
    page.see_stage("done")
    assert "Distance" in page.facts()
    # `steady` paints over a quarter of its input and leaves the rest.
    assert page.colour(0, 0) == [255, 0, 0]
    assert page.colour(20, 20) != [255, 0, 0]


def test_adjust_brings_everything_back_to_the_counter(page):
    page.hand_in("once more, with feeling", seed=RED, steps=7, width=128)
    page.see_stage("done")
    page.tab.locator("#prompt").fill("")
    page.set(steps=3, width=64, seed="")
    page.see("#adjust").click()
    values = [page.tab.locator(f"#{name}").input_value() for name in ("prompt", "steps", "width", "seed")]
    assert values == ["once more, with feeling", "7", "128", "255"]
    expect(page.tab.locator("#prompt")).to_be_focused()


def test_adjust_keeps_the_mask_of_a_picture_that_was_painted_in_part(visit, emptied):
    wishes = {"model_version": "tiny-scenes-1", "input_image": True, "mask_image": True}
    task = emptied.client.submit("a star", **wishes)
    emptied.client.cancel(task["task_id"])
    page = visit()
    page.see_stage("failed")
    page.see("#adjust").click()
    with page.tab.expect_request("**/generate") as sent:
        page.tab.locator("#develop").click()
    body = sent.value.post_data_json
    assert (body["input_url"], body["mask_url"]) == (task["params"]["input_url"], task["params"]["mask_url"])
    page.see_stage("waiting")


def test_a_picture_that_is_too_large_is_refused_with_the_reason(page, emptied):
    page.drop(b"x" * 1_200_000)
    page.tab.route("**/generate", of_small_uploads)
    page.tab.locator("#prompt").fill("too large")
    page.tab.locator("#develop").click()
    expect(page.see("#refusal")).to_contain_text("The picture has 1.2 MB; at most 1.0 MB are taken.")
    page.see_stage("failed")


def of_small_uploads(route):
    """The ticket of a deployment that takes no more than a megabyte."""
    answer = route.fetch()
    route.fulfill(response=answer, body=json.dumps({**answer.json(), "upload_max_bytes": 1_000_000}))


def test_several_pictures_can_be_looked_at_one_by_one(page):
    page.hand_in(seed=RED, count=3)
    page.see_stage("done")
    page.tab.get_by_role("button", name="Picture 2, seed 256").click()
    expect(page.see("#facts")).to_contain_text("256")
    expect(page.tab.get_by_role("button", name="Picture 2, seed 256")).to_be_focused()
    assert page.colour() == [0, 1, 0]


def test_the_history_is_there_after_a_reload(page):
    page.hand_in("the first", seed=RED)
    page.see_stage("done")
    page.hand_in("the second", seed=0)
    page.see_stage("done")
    page.tab.reload()
    expect(page.frames()).to_have_count(2)
    expect(page.see("#caption")).to_have_text("the second")
    page.tab.get_by_role("button", name="the first").click()
    expect(page.see("#caption")).to_have_text("the first")
    assert page.colour() == [255, 0, 0]


def test_a_picture_that_is_being_made_is_watched_on_after_a_reload(page):
    page.hand_in(steps=200)
    page.see_stage("developing")
    page.tab.reload()
    page.see_stage("developing")
    page.see_stage("done")


def test_older_pictures_are_brought_when_asked_for(visit, emptied):
    for seed in range(26):
        emptied.client.generate("one of many", model_version="steady", num_inference_steps=1, seed=seed)
    page = visit()
    expect(page.frames()).to_have_count(24)
    page.see("#older").click()
    expect(page.frames()).to_have_count(26)
    expect(page.tab.locator("#older")).to_be_hidden()
    expect(page.frames().nth(24)).to_be_focused()


def test_a_deleted_picture_is_gone(page, emptied):
    page.hand_in("the first")
    page.see_stage("done")
    page.hand_in("the second")
    page.see_stage("done")
    page.see("#remove").dblclick()
    expect(page.frames()).to_have_count(1)
    expect(page.see("#caption")).to_have_text("the first")
    page.see("#remove").dblclick()
    page.see_stage("empty")
    assert list(emptied.client.tasks()) == []


def test_nothing_is_deleted_by_a_first_click(page, emptied):
    page.hand_in("the first")
    page.see_stage("done")
    page.see("#remove").click()
    expect(page.see("#remove")).to_have_text("Delete for good")
    page.see("#adjust").click()
    expect(page.see("#remove")).to_have_text("Delete")
    page.see("#remove").click()
    assert len(list(emptied.client.tasks())) == 1
    page.see("#remove").click()
    page.see_stage("empty")


def test_a_key_that_is_held_down_deletes_nothing(page, emptied):
    page.hand_in("the first")
    page.see_stage("done")
    page.see("#remove").focus()
    for _ in range(3):
        page.tab.keyboard.down("Enter")
    page.tab.keyboard.up("Enter")
    expect(page.see("#remove")).to_have_text("Delete for good")
    assert len(list(emptied.client.tasks())) == 1


def test_what_was_deleted_elsewhere_leaves_the_page_too(visit, emptied):
    page = visit(faults=["410"])
    page.hand_in("the first")
    page.see_stage("done")
    [task] = emptied.client.tasks()
    emptied.client.delete(task["task_id"])
    page.see("#remove").dblclick()
    page.see_stage("empty")


def test_nothing_starts_from_a_picture_that_was_deleted(page):
    page.drop(picture())
    page.hand_in("from a picture")
    page.see_stage("done")
    page.see("#adjust").click()
    expect(page.see("#negative-name")).to_have_text("the same input picture")
    page.see("#remove").dblclick()
    expect(page.tab.locator("#negative-name")).to_have_text("")
    page.hand_in("from nothing")
    page.see_stage("done")


@pytest.mark.parametrize("field", ["width", "count"])
def test_the_form_knows_the_limits_of_the_model(page, field):
    page.set(**{field: 100_000})
    page.tab.locator("#prompt").fill("too much")
    page.tab.locator("summary").click()
    page.tab.locator("#develop").click()
    # The field is shown, pointed at, and nothing was handed in.
    expect(page.tab.locator(f"#{field}")).to_be_focused()
    page.see_stage("empty")


def test_what_the_api_refuses_is_said_beside_its_field(visit, emptied):
    page = visit(faults=["422"])
    page.set(width=64)
    page.tab.locator("#width").evaluate("field => { field.max = 10000; field.value = 5000; }")
    page.tab.locator("#prompt").fill("too much")
    page.tab.locator("#develop").click()
    expect(page.see("#width-fault")).to_contain_text("at most 512")
    expect(page.tab.locator("#width")).to_have_attribute("aria-invalid", "true")


def test_an_example_fills_the_prompt(page):
    example = page.tab.locator(".example:visible").first
    words = example.text_content()
    example.click()
    expect(page.tab.locator("#prompt")).to_have_value(words)
    page.see("#more-examples").click()
    expect(page.tab.locator(".example:visible").first).not_to_have_text(words)


def test_small_pictures_are_shown_large_and_sharp(page):
    page.hand_in()
    page.see_stage("done")
    shown = page.picture()
    assert shown.evaluate("img => [img.naturalWidth, img.clientWidth]") == [64, 384]
    assert shown.evaluate("img => getComputedStyle(img).imageRendering") == "pixelated"
