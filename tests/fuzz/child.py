"""One fuzzer's process: instrument eplbd, give libFuzzer a target, stop after so many frames.

`python -m tests.fuzz.child TARGET FRAMES CORPUS SEED`; started by `tests.fuzz.__main__`. libFuzzer
never returns and leaves without Python's farewells, so the last word is a line of JSON on the
standard output, and then `_exit`. What it says itself is on the standard error.
"""

from __future__ import annotations

import os
import resource
import sys
import time
from pathlib import Path

import atheris
import msgspec

from tests.fuzz.targets import Report, Target, target_of

INSTRUMENTED = ["eplbd.core", "eplbd.wire"]
INPUT_S = 20
"""An input that takes longer is a finding: most take less than a hundredth."""
INPUT_BYTES_MAX = 1 << 17
ADDRESSES_BYTES = 3 << 30
"""Beyond it an allocation fails, and that is a finding: an input is some kilobytes."""
GROWTH_MB = 1_024


def load(target: str) -> Target:
    """The target, all of eplbd that it uses instrumented."""
    with atheris.instrument_imports(include=INSTRUMENTED):
        return target_of(target)


class Run:
    """The function that libFuzzer calls."""

    def __init__(self, name: str, target: Target, frames_max: int) -> None:
        self._name, self._target, self._frames_max = name, target, frames_max
        self._inputs = self._frames = self._rss_begin_kib = 0
        self._began = time.monotonic()

    def __call__(self, data: bytes) -> None:
        self._inputs += 1
        self._frames += self._target.take(data)
        if self._inputs == 1_000:
            self._rss_begin_kib = _rss_kib()
        if self._frames >= self._frames_max:
            self._leave()

    def _leave(self) -> None:
        report = Report(
            self._name,
            self._inputs,
            self._frames,
            time.monotonic() - self._began,
            self._rss_begin_kib or _rss_kib(),
            _rss_kib(),
        )
        sys.stderr.flush()
        os.write(1, msgspec.json.encode(report) + b"\n")
        os._exit(0)


def _rss_kib() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def main(name: str, frames: int, corpus: Path, seed: int) -> None:
    """Fuzz until so many frames were taken, or something is found."""
    target = load(name)
    from tests.fuzz.mutation import Mutator

    def bytewise(data: bytes, most: int) -> bytes:
        # Late bound: `Setup` puts another function in its place.
        changed: bytes = atheris.Mutate(data, most)
        return changed

    mutator = Mutator(target.phrases(), bytewise)
    resource.setrlimit(resource.RLIMIT_AS, (ADDRESSES_BYTES, ADDRESSES_BYTES))
    flags = [
        f"-seed={seed}",
        f"-max_len={INPUT_BYTES_MAX}",
        f"-timeout={INPUT_S}",
        f"-rss_limit_mb={GROWTH_MB}",
        f"-artifact_prefix={corpus.parent}/",
    ]
    atheris.Setup([name, *flags, str(corpus)], Run(name, target, frames), custom_mutator=mutator)
    atheris.Fuzz()


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), Path(sys.argv[3]), int(sys.argv[4]))
