"""Look for frames that eplbd cannot take: `python -m tests.fuzz`.

Coverage-guided (atheris, which is libFuzzer for Python), one process per target, of which each gets
its share of `--frames`. What is found is written to `--keep` with its traceback, and the exit
status is 1; an input that was repaired belongs into `tests/fuzz/found`, where the tests replay it.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import click
import msgspec

from tests.fuzz.reached import Reached, reached
from tests.fuzz.targets import TARGETS, Report, target_of

REPOSITORY = Path(__file__).resolve().parents[2]
EDGES = re.compile(rb"cov: (\d+) ft: (\d+) corp: (\d+)")


@dataclass(frozen=True)
class Outcome:
    """What came of one target. finding: file of the input at fault; story: its traceback."""

    target: str
    report: Report | None
    edges: int
    features: int
    corpus: list[bytes]
    finding: Path | None
    story: str


def fuzz(
    target: str, frames: int, *, seed: int, keep: Path, root: Path = REPOSITORY, seconds: float
) -> Outcome:
    """Fuzz one target of the sources in `root`; TimeoutExpired where that takes `seconds`."""
    with tempfile.TemporaryDirectory() as folder:
        corpus = Path(folder) / "corpus"
        corpus.mkdir()
        for number, data in enumerate(target_of(target).seeds()):
            (corpus / f"seed{number}").write_bytes(data)
        done = subprocess.run(
            [sys.executable, "-m", "tests.fuzz.child", target, str(frames), corpus, str(seed)],
            cwd=root,
            env={"PYTHONPATH": str(root), "PATH": "/usr/bin:/bin", "OMP_NUM_THREADS": "1"},
            capture_output=True,
            timeout=seconds,
            check=False,
        )
        found = [path for path in Path(folder).iterdir() if path.is_file()]
        kept = None
        if found:
            keep.mkdir(parents=True, exist_ok=True)
            kept = Path(shutil.copy(found[0], keep / f"{target}-{found[0].name}"))
        counted = EDGES.findall(done.stderr)
        edges, features = (int(counted[-1][0]), int(counted[-1][1])) if counted else (0, 0)
        inputs = [path.read_bytes() for path in corpus.iterdir()]
    said = done.stdout.splitlines()
    report = msgspec.json.decode(said[-1], type=Report) if said and not done.returncode else None
    story = "" if report else _traceback(done.stderr.decode(errors="replace"))
    return Outcome(target, report, edges, features, inputs, kept, story)


def _traceback(log: str) -> str:
    """The part of libFuzzer's report that is about us."""
    lines = [line for line in log.splitlines() if not line.startswith(("#", "INFO", "WARNING"))]
    return "\n".join(lines[-60:])


def _line(outcome: Outcome, lines: Reached) -> str:
    if outcome.report is None:
        return f"{outcome.target}: FOUND {outcome.finding}\n{outcome.story}"
    report = outcome.report
    return (
        f"{report.target}: {report.frames} frames in {report.inputs} inputs, "
        f"{report.seconds:.0f} s, {report.frames / report.seconds:.0f} frames/s; "
        f"{outcome.edges} edges, {outcome.features} features, {len(outcome.corpus)} inputs kept; "
        f"memory {report.rss_begin_kib // 1024} to {report.rss_kib // 1024} MiB\n{lines}"
    )


@click.command()
@click.argument("targets", nargs=-1, type=click.Choice(TARGETS))
@click.option("--frames", default=1_000_000, show_default=True, help="Over all targets.")
@click.option("--seconds", default=3_600.0, show_default=True, help="At most, per target.")
@click.option("--seed", default=1, show_default=True)
@click.option(
    "--keep",
    default=REPOSITORY / ".make" / "fuzz",
    type=click.Path(path_type=Path),
    help="Where an input that was found goes.",
)
def main(targets: Sequence[str], frames: int, seconds: float, seed: int, keep: Path) -> None:
    """Throw hostile frames at the decoders and at a session."""
    chosen = targets or TARGETS
    failed = False
    for target in chosen:
        share = max(1, frames // len(chosen))
        outcome = fuzz(target, share, seed=seed, keep=keep, seconds=seconds)
        failed |= outcome.report is None
        lines = reached(target, outcome.corpus) if outcome.report else Reached({})
        click.echo(_line(outcome, lines))
    sys.exit(failed)


if __name__ == "__main__":
    main()
