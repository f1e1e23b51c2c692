"""`eplbd-vllm doctor`: one line per check, and status 1 for trouble alone."""

import pytest

pytest.importorskip("torch")

from eplbd.errors import ConfigError
from eplbd_vllm import doctor

pytestmark = pytest.mark.slow


def rows(told: str) -> dict[str, str]:
    """Check to status."""
    table = told.partition("\n\n")[0].splitlines()
    return {line[8:].partition("  ")[0]: line[:8].strip() for line in table}


def test_a_machine_without_an_engine_says_so(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EPLBD_SOCKET", "ipc:///nowhere/w.sock")
    monkeypatch.setattr(doctor, "_vllm", lambda: "")
    assert doctor.main(["doctor"]) == 0
    told = capsys.readouterr().out
    found = rows(told)
    assert [*found] == [*doctor.CHECKS]
    assert found["adapter"] == found["daemon"] == "absent"
    assert found["staging"] == found["transport, direct"] == found["transport, host"] == "ok"
    assert "nothing to balance on this machine" in told


def test_a_release_that_is_not_known_is_trouble(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(doctor, "CHECKS", {"adapter": doctor.CHECKS["adapter"]})
    monkeypatch.setattr(doctor, "_vllm", lambda: "0.1.0")
    assert doctor.main(["doctor"]) == 1
    assert "vLLM 0.1.0 is not among the releases" in capsys.readouterr().out


@pytest.mark.parametrize("error", [ConfigError("a fault"), RuntimeError("a fault"), OSError("x")])
def test_whatever_a_check_meets_is_one_line(error: Exception) -> None:
    def check() -> str:
        raise error

    finding = doctor.run("anything", check)
    assert (finding.status, finding.text) == ("trouble", str(error))
