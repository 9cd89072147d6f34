"""The command line as a person's shell calls it."""

import os

from PIL import Image

from app.settings import Settings
from tests.stack import ROOT


def environment(stack, **more):
    """What a person's shell holds: none of the service's settings."""
    bare = {name: value for name, value in os.environ.items() if name.lower() not in Settings.model_fields}
    own = {"PYTHONPATH": str(ROOT), "DARKROOM_URL": stack.url, "DARKROOM_API_KEY": stack.key}
    return {**bare, **own, **more}


def size(path):
    with Image.open(path) as image:
        return image.size


def ended(done, status):
    assert done.returncode == status, f"{done.returncode}: {done.stdout}{done.stderr}"
    assert "Traceback" not in done.stderr
    return done
