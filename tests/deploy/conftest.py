"""What the tests of scripts share: programs that take notes, and a call of a script of infra/ci."""

import pytest

from tests.deploy.programs import ROOT, run

NOTE = """#!/usr/bin/env bash
note=$(basename "$0")$(printf ' %q' "$@"); echo "$note" >>"$NOTES"
"""


@pytest.fixture
def path(tmp_path):
    """Puts programs on PATH that note how they were called, then do what their text says."""
    (tmp_path / "bin").mkdir()

    def put(**programs):
        for name, text in programs.items():
            program = tmp_path / "bin" / name
            program.write_text(NOTE + text)
            program.chmod(0o755)

    return put


@pytest.fixture
def script(tmp_path):
    """Runs a script of infra/ci; the result has `.notes`, a line a call."""

    def call(name, *arguments, check=True, **environ):
        environ = {
            "PATH": f"{tmp_path}/bin:/usr/local/bin:/usr/bin:/bin",
            "HOME": str(tmp_path),
            "NOTES": str(tmp_path / "notes"),
            "TMPDIR": str(tmp_path),
            "VERSION": "1.2.3-abcdef0",
            **environ,
        }
        (tmp_path / "notes").write_text("")
        done = run(ROOT / "infra/ci" / name, *arguments, check=check, env=environ)
        done.notes = (tmp_path / "notes").read_text().splitlines()
        return done

    return call
