"""Previews are sent to those who look, not too often, and never at the job's cost."""

import base64
import io
import json
import threading

import pytest
from PIL import Image

from app import previews
from app.jobs import EVENTS
from app.previews import Previews, Window
from app.services import build
from tests.stack import free_port

TASK = "task-1"


@pytest.fixture
def clock(monkeypatch):
    """A clock that goes on only when it is told."""
    now = [100.0]
    monkeypatch.setattr(previews.time, "monotonic", lambda: now[0])
    return now


@pytest.fixture
def heard(services):
    """The previews that were sent, as pictures."""
    with services.redis.pubsub() as subscription:
        subscription.subscribe(EVENTS)
        subscription.get_message(timeout=5)

        def read():
            found = []
            while message := subscription.get_message(timeout=0.2):
                event = json.loads(message["data"])
                assert event["task_id"] == TASK
                found.append(Image.open(io.BytesIO(base64.b64decode(event["preview"]))))
            return found

        yield read


def look(size=(1024, 512)):
    return Image.new("RGB", size, "red")


def refused():
    raise AssertionError("nobody asked for this")


def test_who_looks_gets_a_small_jpeg(services, clock, heard):
    sent = Previews(services.redis)
    window = Window(sent, TASK)
    sent.ask_for(TASK)
    clock[0] += previews.PAUSE
    window.offer(look)
    [picture] = heard()
    assert (picture.format, picture.size) == ("JPEG", (256, 128))
    assert picture.getpixel((0, 0))[0] > 200
    assert set(services.redis.scan_iter()) == {f"preview:{TASK}"}, "nothing is stored"
    assert 0 < services.redis.ttl(f"preview:{TASK}") <= previews.ASKED_SECONDS


def test_nothing_is_looked_at_while_nobody_looks(services, clock, heard):
    window = Window(Previews(services.redis), TASK)
    clock[0] += 10
    window.offer(refused)
    assert heard() == []


def test_there_are_pauses_between_previews_and_none_at_the_very_start(services, clock, heard):
    sent = Previews(services.redis)
    window = Window(sent, TASK)
    sent.ask_for(TASK)
    for _ in range(101):
        window.offer(look)
        clock[0] += previews.PAUSE / 50
    assert len(heard()) == 2


def test_a_look_that_takes_long_makes_the_pauses_longer(services, clock, heard):
    sent = Previews(services.redis)
    window = Window(sent, TASK)
    sent.ask_for(TASK)

    def slow():
        clock[0] += 1
        return look()

    for _ in range(50):
        clock[0] += previews.PAUSE
        window.offer(slow)
    assert len(heard()) == 2


def test_the_model_does_not_wait_for_a_store_that_is_away(settings, clock):
    away = settings.model_copy(update={"redis_url": f"redis://127.0.0.1:{free_port()}/0"})
    window = Window(build(away, "worker").previews, TASK)
    clock[0] += 10
    model = threading.Thread(target=window.offer, args=[refused], daemon=True)
    model.start()
    model.join(20)
    assert not model.is_alive()


def test_a_look_that_fails_is_the_last_one_and_harms_nothing(services, clock, heard):
    sent, tried = Previews(services.redis), []
    window = Window(sent, TASK)
    sent.ask_for(TASK)

    def broken():
        tried.append(1)
        raise RuntimeError("this family packs its latents in another way")

    for _ in range(5):
        clock[0] += 10
        window.offer(broken)
    assert (len(tried), heard()) == (1, [])
