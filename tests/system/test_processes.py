"""What processes that are started here find in their environment."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from mfrl.system.processes import SINGLE_THREADED, environment


def in_a_child(name: str) -> str:
    code = f"import os; print(os.environ.get({name!r}))"
    return subprocess.check_output([sys.executable, "-c", code], text=True).strip()


def test_variables_hold_in_the_block_and_in_what_it_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MFRL_THERE", "before")
    monkeypatch.delenv("MFRL_NOT_THERE", raising=False)
    before = dict(os.environ)
    with environment({"MFRL_THERE": None, "MFRL_NOT_THERE": "now", **SINGLE_THREADED}):
        assert in_a_child("MFRL_THERE") == "None"
        assert in_a_child("MFRL_NOT_THERE") == "now"
        assert in_a_child("OMP_NUM_THREADS") == "1"
    assert dict(os.environ) == before
