"""A receiver that takes notes, and the outbox as a test looks at it and lets its time pass."""

import base64
import json

from app.egress import Answer, Egress
from app.webhooks import OUTBOX, Dispatcher

SECRET = "whsec_" + base64.b64encode(b"a secret of the tests only").decode()
OTHER = "whsec_" + base64.b64encode(b"another secret of the tests").decode()
URL = "https://hooks.example/in?token=sesame"


class Recorder(Egress):
    """An egress that notes what it is given; it answers with the next status, or raises the next error."""

    def __init__(self, *answers):
        self.answers = list(answers)
        self.sent = []

    def post(self, url, body, headers, seconds):
        self.sent.append((url, json.loads(body), headers))
        answer = self.answers.pop(0) if self.answers else 204
        if isinstance(answer, Exception):
            raise answer
        return answer if isinstance(answer, Answer) else Answer(answer)


def deliver(services, *answers):
    """One round of a dispatcher, to its end; what it sent."""
    recorder = Recorder(*answers)
    dispatcher = Dispatcher(services, recorder)
    dispatcher.dispatch()
    dispatcher.close()
    return recorder.sent


def entries(services):
    return dict(services.redis.zrange(OUTBOX, 0, -1, withscores=True))


def time_passes(services):
    """As if the next try of everything were due, and every lease over."""
    for entry in entries(services):
        task_id, _, event = entry.rpartition(".")
        services.redis.hdel(f"job:{task_id}", f"webhook_lease:{event}")
        services.redis.zadd(OUTBOX, {entry: 1})
