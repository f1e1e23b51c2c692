"""The entry point, where it is to do nothing: switched off, or in an environment without vLLM."""

from __future__ import annotations

import sys
from importlib.util import find_spec

import pytest

from eplbd_vllm.plugin import register
from eplbd_vllm.settings import DISABLE


@pytest.fixture(autouse=True)
def without_vllm() -> None:
    if find_spec("vllm") is not None:
        pytest.skip("vLLM is installed here: its own tests say what the plugin does to it")


def test_switched_off_it_looks_at_nothing_and_says_nothing(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv(DISABLE, "1")
    before = set(sys.modules)
    register()
    assert set(sys.modules) == before
    assert caplog.records == []


def test_what_it_meets_is_one_line_and_never_reaches_the_engine(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.delenv(DISABLE, raising=False)
    register()
    (record,) = caplog.records
    assert record.getMessage() == "eplbd: serving without it: No module named 'vllm'"
