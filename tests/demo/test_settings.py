"""The demo's settings: whatever is asked for has a shape, and a daemon would start on its file."""

import json
from pathlib import Path

import numpy as np
import pytest

from eplbd.config import load
from eplbd.demo.settings import EXPERTS_PER_RANK, TOPIC_STEPS, Options, daemon_config, plan_of
from eplbd.errors import ConfigError


def test_the_daemons_file_is_one_it_takes(tmp_path: Path) -> None:
    file = tmp_path / "eplbd.toml"
    file.write_text(daemon_config(tmp_path))
    config = load(file).config
    assert config.daemon.socket == f"ipc://{tmp_path}/workers.sock"
    assert config.daemon.state_dir == str(tmp_path / "state")
    assert config.log.format == "json"
    assert config.epoch.experts_per_rank == EXPERTS_PER_RANK
    assert config.balance.min_steps < config.balance.window_steps < TOPIC_STEPS


def test_a_path_too_long_for_a_socket_is_refused() -> None:
    with pytest.raises(ConfigError, match="set TMPDIR"):
        daemon_config(Path("/tmp") / ("x" * 100))  # noqa: S108 - nothing is written


@pytest.mark.parametrize("ranks", range(2, 17))
def test_any_number_of_ranks_has_room_for_every_expert_and_some_twice(ranks: int) -> None:
    shape = plan_of(Options(ranks=ranks)).shape
    assert shape.ranks == ranks
    assert shape.slots >= shape.experts + 2 * ranks


def test_four_ranks_are_the_model_as_it_is_described() -> None:
    plan = plan_of(Options())
    assert plan.title == "4 ranks x 10 slots, 6 layers of 32 experts, top-4, topics of real text"
    assert plan.topic_steps == TOPIC_STEPS


@pytest.mark.parametrize(("windows", "topic_steps"), [(2, 175), (84, 4), (400, 4)])
def test_a_trace_is_visited_as_a_whole_where_that_is_possible(
    tmp_path: Path, windows: int, topic_steps: int
) -> None:
    file = tmp_path / "deep.npz"
    heat = np.full((windows, 9, 16), 10)
    labels = np.array([""] * windows)
    np.savez(file, heat=heat, topk=np.array(2), labels=labels, meta=np.array(json.dumps({})))
    plan = plan_of(Options(trace=file))
    assert (plan.shape.layers, plan.shape.experts, plan.shape.topk) == (6, 16, 2)
    assert plan.topic_steps == topic_steps
    assert plan.title.endswith(f"{windows} windows of deep.npz, 6 of 9 layers")
