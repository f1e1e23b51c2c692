"""The recorder with a real disk: what is taken down comes back, and what is not is counted."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from eplbd.config import Record
from eplbd.core.assembly import Step
from eplbd.core.events import Note, OpenRecord, RecordPlacement, RecordSteps, Status
from eplbd.core.placement import Placement
from eplbd.core.topology import Topology
from eplbd.offline.formats import ascend
from eplbd.offline.formats.content import Context, Mapped
from eplbd.runtime.recorder import CHUNK_STEPS, Recorder, open_recorder
from eplbd.traces.placements import load_placement, placement_meta
from eplbd.traces.recording import Chunk, chunk_paths, load_chunks, load_meta

PLACEMENT = Placement.linear(2, 4, 2, 3)
OTHER = Placement(PLACEMENT.slots[:, ::-1].copy(), 4)


def opened(incarnation: str = "1", group: str = "g") -> OpenRecord:
    return OpenRecord(group, incarnation, Topology.single_node(2, 3), 2, 4, 1_000, "received")


def steps(first: int, count: int, epoch: int = 0, group: str = "g") -> RecordSteps:
    rng = np.random.default_rng(first)
    none = np.zeros(2, dtype=np.int64)
    made = tuple(
        Step(
            forward=forward,
            epoch=epoch,
            phase=2,
            dummy=forward % 5 == 0,
            torn=False,
            tokens=forward,
            heat=rng.integers(0, 100_000, (2, 4), dtype=np.int32),
            load=np.zeros((2, 2), dtype=np.int32),
            routed=none,
        )
        for forward in range(first, first + count)
    )
    return RecordSteps(group, made)


@contextmanager
def recording(
    folder: Path,
    max_bytes: int = 2**30,
    total_max_bytes: int = 2**32,
    say: Callable[[Note], None] = lambda _: None,
) -> Iterator[Recorder]:
    settings = Record(
        dir=str(folder / "traces"), max_bytes=max_bytes, total_max_bytes=total_max_bytes
    )
    with open_recorder(settings, say) as made:
        yield made


def lives(folder: Path) -> list[Path]:
    return sorted(path.parent for path in (folder / "traces").glob("*/*/meta.json"))


def chunks(life: Path) -> list[Chunk]:
    return [*load_chunks(life, load_meta(life))]


def test_steps_come_back_with_the_placements_they_ran_under(tmp_path: Path) -> None:
    told = [steps(10, 30), steps(40, 300, epoch=1)]
    with recording(tmp_path) as made:
        made.take(opened())
        made.take(RecordPlacement("g", 0, PLACEMENT, Status.IN_FORCE))
        made.take(told[0])
        made.take(RecordPlacement("g", 1, OTHER, Status.PLANNED))
        made.take(told[1])
    (life,) = lives(tmp_path)
    meta, found = load_meta(life), chunks(life)
    assert (meta.layers, meta.experts, meta.ranks, meta.expert_bytes) == (2, 4, 2, 1_000)
    assert [len(chunk) for chunk in found] == [CHUNK_STEPS, 330 - CHUNK_STEPS]
    wanted = [step for one in told for step in one.steps]
    for chunk in found:
        for i, step in enumerate(wanted[: len(chunk)]):
            assert (chunk.forward[i], chunk.epoch[i], chunk.tokens[i], chunk.dummy[i]) == (
                step.forward,
                step.epoch,
                step.tokens,
                step.dummy,
            )
            assert (chunk.counts[i] == step.heat).all()
        wanted = wanted[len(chunk) :]
    assert found[0].placements == {0: PLACEMENT, 1: OTHER}
    assert made.statistics().steps == 330
    assert made.statistics().failures == made.statistics().dropped_steps == 0


def test_the_newest_placements_are_files_in_both_forms(tmp_path: Path) -> None:
    with recording(tmp_path) as made:
        made.take(opened())
        for epoch, placement in ((0, PLACEMENT), (7, OTHER)):
            made.take(RecordPlacement("g", epoch, placement, Status.IN_FORCE))
        made.take(RecordPlacement("g", 8, PLACEMENT, Status.PLANNED))
        made.take(RecordPlacement("g", 7, PLACEMENT, Status.PROPOSED))
    (folder,) = (tmp_path / "traces").iterdir()
    for status, wanted in ((Status.IN_FORCE, OTHER), (Status.PROPOSED, PLACEMENT)):
        file = folder / f"{status}.npz"
        assert load_placement(file) == wanted
        assert placement_meta(file)["epoch"] == 7
        content = ascend.read(file.with_suffix(".json"), Context())
        assert isinstance(content, Mapped)
        assert content.placement == wanted


def test_each_life_has_a_folder_and_one_that_goes_on_is_continued(tmp_path: Path) -> None:
    for incarnation, first in (("1", 0), ("1", 50), ("2", 0)):
        with recording(tmp_path) as made:
            made.take(opened(incarnation))
            made.take(steps(first, 50))
    one, two = (chunks(life) for life in lives(tmp_path))
    assert [chunk.forward.tolist() for chunk in one] == [[*range(50)], [*range(50, 100)]]
    assert [chunk.forward.tolist() for chunk in two] == [[*range(50)]]


def test_a_new_life_in_one_run_closes_the_old(tmp_path: Path) -> None:
    with recording(tmp_path) as made:
        for incarnation, first in (("1", 0), ("2", 0), ("2", 10)):
            made.take(opened(incarnation))
            made.take(steps(first, 10))
    assert [sum(map(len, chunks(life))) for life in lives(tmp_path)] == [10, 20]


def test_lives_share_the_room_and_the_oldest_go(tmp_path: Path) -> None:
    room = 80_000
    for life in range(8):
        with recording(tmp_path, room) as made:
            made.take(opened(f"{life:03}"))
            for first in (0, CHUNK_STEPS, 2 * CHUNK_STEPS):
                made.take(steps(first, CHUNK_STEPS))
    kept = lives(tmp_path)
    size = sum(path.stat().st_size for life in kept for path in chunk_paths(life))
    assert size <= room
    assert 1 < len(kept) < 8
    assert [life.name[:3] for life in kept] == [f"{n:03}" for n in range(8)][-len(kept) :]


def test_a_full_queue_drops_and_counts(tmp_path: Path) -> None:
    made = Recorder(Record(dir=str(tmp_path / "traces")), None, queue_bytes=1_000)  # type: ignore[arg-type] # not asked
    made.take(opened())
    for first in range(0, 100, 10):
        made.take(steps(first, 10))
    fitting = 1_000 // (10 * 2 * 4 * 4)
    assert made.statistics().dropped_steps == 100 - 10 * fitting


def test_a_disk_that_refuses_is_said_once_and_counted(tmp_path: Path) -> None:
    (tmp_path / "traces").touch()
    notes: list[Note] = []
    with recording(tmp_path, say=notes.append) as made:
        made.take(opened())
        for first in range(0, 1_000, 100):
            made.take(steps(first, 100))
            made.take(RecordPlacement("g", first, PLACEMENT, Status.IN_FORCE))
    (note,) = (note for note in notes if note.event == "not recorded")
    assert any(why in str(note.fields) for why in ("File exists", "Not a directory"))
    assert made.statistics().failures > 1


def test_names_of_peers_do_not_leave_the_folder(tmp_path: Path) -> None:
    with recording(tmp_path) as made:
        made.take(opened("../../up", "../g"))
        made.take(steps(0, 10, group="../g"))
    (life,) = lives(tmp_path)
    assert sum(map(len, chunks(life))) == 10
    assert {path.name for path in tmp_path.iterdir()} == {"traces"}


@pytest.mark.timeout(30)
def test_taking_never_waits_for_the_disk(tmp_path: Path) -> None:
    """The thread is held up in a write; the loop's side goes on."""
    made = Recorder(Record(dir=str(tmp_path / "traces")), None, queue_bytes=10_000)  # type: ignore[arg-type] # not asked
    held = threading.Event()
    made._perform = lambda _: held.wait()  # type: ignore[method-assign,assignment]  # noqa: SLF001
    thread = threading.Thread(target=made.run, daemon=True)
    thread.start()
    for first in range(0, 10_000, 100):
        made.take(steps(first, 100))
    assert made.statistics().dropped_steps > 9_000
    held.set()
    made.stop()
    thread.join()
