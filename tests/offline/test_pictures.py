"""Plots and the report: files that are whole, that need no network, and that say what came out."""

import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from eplbd.cli import main
from eplbd.core.placement import Placement
from eplbd.offline.measure import moved
from eplbd.offline.report import choose
from eplbd.offline.settings import Options
from eplbd.offline.simulation import run
from eplbd.offline.terms import Terms
from eplbd.traces.archive import HeatTrace, save_trace
from eplbd.traces.placements import save_placement
from tests.offline.makings import skewed

pytestmark = pytest.mark.slow

FAULTY = """
from eplbd import hookimpl
class Faulty:
    name = "faulty"
    eplbd_api = 1
    def propose(self, heat, topology, current, budget):
        if topology.ranks == 2:
            return current
        raise ValueError("<b>no idea</b>")
@hookimpl
def eplbd_register_policies(register):
    register(Faulty)
"""


def call(*arguments: object) -> tuple[int, str]:
    result = CliRunner().invoke(main, [str(argument) for argument in arguments])
    return result.exit_code, result.output


def saved(folder: Path, sigma: float = 1.2, rows: int = 24) -> Path:
    path = folder / "trace.npz"
    heat = skewed(rows, 3, 32, sigma=sigma, tokens=800).astype(np.int64)
    meta = {"window": "<script>alert(1)</script>", "rows": "steps"}
    save_trace(path, HeatTrace(heat, 4, ("",) * rows, meta))
    return path


class Page(HTMLParser):
    """What a browser would fetch or run, and the text that it would show."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.fetched: list[str] = []
        self.tags: list[str] = []
        self.shown = ""
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        for name, value in attrs:
            if name in {"src", "href", "xlink:href"} and not (value or "").startswith(
                ("#", "data:")
            ):
                self.fetched.append(f"{tag} {name}={value}")

    def handle_data(self, data: str) -> None:
        self.shown += data


def reported(folder: Path, *arguments: object, sigma: float = 1.2) -> tuple[str, Page]:
    out = folder / "report.html"
    path = saved(folder, sigma)
    code, output = call("simulate", path, "--ranks", 4, "--report", out, *arguments)
    assert code == 0, output
    text = out.read_text(encoding="utf-8")
    return text, Page(text)


def test_the_report_is_one_file_with_its_conclusion_first(tmp_path: Path) -> None:
    text, page = reported(tmp_path, "--policy", "greedy,random", "--step-ms", 20)
    assert page.fetched == []
    assert "script" not in page.tags
    assert "<script>alert(1)</script>" in page.shown, "the trace's own words are shown as text"
    assert not re.search(r"url\(\s*['\"]?https?:", text)
    assert page.tags.count("svg") == 4
    heading = page.shown.index("greedy would take")
    assert heading < page.shown.index("Policies side by side") < page.shown.index("Method")
    for word in ("hold", "random", "of every 20 ms forward"):
        assert word in page.shown


def test_the_report_recommends_nothing_on_noise(tmp_path: Path) -> None:
    _, page = reported(tmp_path, sigma=0.0)
    assert "No policy tried here is worth enabling" in page.shown
    assert "Leave the placement alone" in page.shown


def test_failures_are_in_the_report_as_text(tmp_path: Path) -> None:
    module = tmp_path / "faulty.py"
    module.write_text(FAULTY, encoding="utf-8")
    _, page = reported(tmp_path, "--policy", "greedy,faulty", "--module", module)
    assert "faulty failed 11 time(s)" in page.shown
    assert "ValueError: <b>no idea</b>" in page.shown
    assert "greedy would take" in page.shown


def test_of_policies_as_good_the_one_that_moves_less_is_recommended(tmp_path: Path) -> None:
    options = Options(trace=saved(tmp_path), ranks=4, policy="greedy,random")
    simulation = run(options)
    choice = choose(simulation, Terms())
    assert choice.best.policy == "greedy"
    assert simulation.off is not None
    assert choice.against.par_total == min(
        simulation.off.par_total, simulation.results[0].par_total
    )
    assert choice.saved == pytest.approx(1 - choice.best.par_total / choice.against.par_total)
    assert choice.saved_ms == pytest.approx(50 * 0.3 * choice.saved)


@pytest.mark.parametrize("suffix", [".png", ".svg"])
def test_traces_and_placements_are_drawn(tmp_path: Path, suffix: str) -> None:
    path, out = saved(tmp_path), tmp_path / f"out{suffix}"
    linear = Placement.linear(3, 32, 4, 9)
    turned = Placement(np.roll(linear.slots, 1, axis=1), 32)
    save_placement(tmp_path / "a.npz", linear)
    save_placement(tmp_path / "b.npz", turned)
    sizes = []
    for arguments in (
        (path, out),
        (path, out, "--ranks", 4, "--policy", "greedy"),
        (tmp_path / "a.npz", out),
        (tmp_path / "a.npz", out, "--against", tmp_path / "b.npz"),
    ):
        code, output = call("plot", *arguments)
        assert code == 0, output
        octets = out.read_bytes()
        assert octets.startswith(b"\x89PNG" if suffix == ".png" else b"<?xml")
        sizes.append(len(octets))
    assert len(set(sizes)) == 4, "four different pictures"
    if suffix == ".svg":
        assert f"Moves: {moved(linear, turned)} experts" in out.read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("{trace}", "out.pdf"), "a plot is written as .png or .svg"),
        (("{trace}", "out.png", "--against", "{trace}"), "the input is a trace"),
        (("{a}", "out.png", "--against", "{trace}"), "expected a placement"),
        (("{a}", "out.png", "--against", "{b}"), "is of another shape"),
        (("{a}", "/absent/out.png"), "cannot be written"),
        (("absent.npz", "out.png"), "absent.npz"),
    ],
)
def test_what_cannot_be_drawn_is_one_sentence(
    tmp_path: Path, arguments: tuple[str, ...], said: str
) -> None:
    save_placement(tmp_path / "a.npz", Placement.linear(3, 32, 4, 9))
    save_placement(tmp_path / "b.npz", Placement.linear(3, 32, 4, 8))
    names = {"trace": saved(tmp_path), "a": tmp_path / "a.npz", "b": tmp_path / "b.npz"}
    code, output = call("plot", *(argument.format(**names) for argument in arguments))
    assert code == 1
    assert said in output
    assert "Traceback" not in output
