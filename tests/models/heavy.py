"""A model that takes a moment to load, and room that two of its kind do not have together."""

import time

from tests.models.steady import Steady

LOAD_SECONDS = 0.3


class Heavy(Steady):
    weights_bytes = 100


def load(spec, device):
    time.sleep(LOAD_SECONDS)
    return Heavy()
