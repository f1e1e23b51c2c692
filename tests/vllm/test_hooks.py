"""What a guest is told of a worker's life, over a class that is called as vLLM's wrapper is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import cast

import pytest

from eplbd.core.heat import PHASES
from eplbd_vllm import hooks
from eplbd_vllm.hooks import Visitor, guest_of, install, phase_of
from eplbd_vllm.upstream import SchedulerOutput


class Recorder:
    """A guest that writes down what it is told."""

    def __init__(self) -> None:
        self.told: list[object] = []

    def before_forward(self) -> None:
        self.told.append("before")

    def after_forward(self, tokens: int, *, dummy: bool, phase: int) -> None:
        self.told.append((tokens, dummy, PHASES[phase]))

    def pause(self, *, lost: bool) -> None:
        self.told.append(("pause", lost))

    def resume(self, *, reloaded: bool) -> None:
        self.told.append(("resume", reloaded))

    def leave(self) -> None:
        self.told.append("leave")


PLAIN = SimpleNamespace(data_parallel_size=1, distributed_executor_backend="mp")
SPMD = SimpleNamespace(data_parallel_size=2, distributed_executor_backend="external_launcher")


class Worker:
    """Of any platform: what the wrapper passes on arrives here."""

    def __init__(self, parallel: SimpleNamespace) -> None:
        self.calls: list[str] = []
        self.vllm_config = SimpleNamespace(parallel_config=parallel)

    def __getattr__(self, name: str) -> Callable[..., str]:
        def call(*_: object, **__: object) -> str:
            self.calls.append(name)
            return f"{name} done"

        return call


class Wrapper:
    """As `WorkerWrapperBase`: some methods of its own, the rest passed on."""

    def __init__(self, parallel: SimpleNamespace) -> None:
        self.worker = Worker(parallel)

    def __getattr__(self, name: str) -> Callable[..., str]:
        return getattr(self.worker, name)  # type: ignore[no-any-return]  # see Worker

    def execute_model(self, scheduler_output: object) -> str:
        return self.worker.execute_model(scheduler_output)

    def shutdown(self) -> None:
        self.worker.shutdown()


def loaded(guest: object, parallel: SimpleNamespace = PLAIN) -> Wrapper:
    """A wrapper whose model was loaded, with this guest; wrapped twice, which must not show."""
    own = {"execute_model": Wrapper.execute_model, "shutdown": Wrapper.shutdown}
    kind = type("Fresh", (Wrapper,), dict(own))
    for _ in range(2):
        install(kind, lambda _: cast("Visitor | None", guest))
    wrapper: Wrapper = kind(parallel)
    assert wrapper.load_model() == "load_model done"
    return wrapper


@dataclass
class Step:
    """A scheduler's output."""

    num_scheduled_tokens: dict[str, int] = field(default_factory=dict)
    scheduled_new_reqs: list[str] = field(default_factory=list)
    scheduled_spec_decode_tokens: dict[str, list[int]] = field(default_factory=dict)

    @property
    def total_num_scheduled_tokens(self) -> int:
        return sum(self.num_scheduled_tokens.values())


def test_every_forward_is_framed_dummies_included() -> None:
    recorder = Recorder()
    wrapper = loaded(recorder)
    decode = Step({"a": 1, "b": 1})
    assert wrapper.execute_model(decode) == "execute_model done"
    assert wrapper.execute_model(scheduler_output=decode) == "execute_model done"
    assert wrapper.execute_dummy_batch() == "execute_dummy_batch done"
    step = ["before", (2, False, "decode")]
    assert recorder.told == [*step, *step, "before", (0, True, "all")]


def test_a_step_without_tokens_is_no_forward() -> None:
    recorder = Recorder()
    wrapper = loaded(recorder)
    wrapper.execute_model(Step())
    assert recorder.told == []


def test_a_step_without_tokens_is_a_dummy_where_the_runner_makes_it_one() -> None:
    recorder = Recorder()
    wrapper = loaded(recorder, SPMD)
    wrapper.execute_model(Step())
    assert recorder.told == ["before", (0, True, "all")]


@pytest.mark.parametrize(
    ("step", "phase"),
    [
        (Step({"a": 1, "b": 1}), "decode"),
        (Step({"a": 3, "b": 3}, scheduled_spec_decode_tokens={"a": [1, 2]}), "decode"),
        (Step({"a": 7}, ["a"]), "prefill"),
        (Step({"a": 7, "b": 1}, ["a"]), "all"),
        (Step({"a": 7, "b": 1}), "all"),
    ],
)
def test_phases(step: Step, phase: str) -> None:
    assert PHASES[phase_of(cast("SchedulerOutput", step))] == phase


def test_sleep_reload_and_shutdown() -> None:
    recorder = Recorder()
    wrapper = loaded(recorder)
    wrapper.sleep()
    wrapper.wake_up(["kv_cache"])
    wrapper.wake_up(["weights"])
    wrapper.sleep(2)
    wrapper.wake_up()
    wrapper.reload_weights()
    wrapper.start_weight_update()
    wrapper.finish_weight_update()
    wrapper.shutdown()
    assert recorder.told == [
        ("pause", False),
        ("resume", False),
        ("pause", True),
        ("resume", False),
        ("pause", True),
        ("resume", True),
        ("pause", True),
        ("resume", True),
        "leave",
    ]
    assert wrapper.worker.calls == [
        "load_model",
        "sleep",
        "wake_up",
        "wake_up",
        "sleep",
        "wake_up",
        "reload_weights",
        "start_weight_update",
        "finish_weight_update",
        "shutdown",
    ]


def test_a_worker_without_a_guest_is_called_as_before() -> None:
    wrapper = loaded(None)
    assert guest_of(cast("hooks.Wrapper", wrapper)) is None
    assert wrapper.execute_model(Step({"a": 1})) == "execute_model done"
    assert wrapper.execute_dummy_batch() == "execute_dummy_batch done"
    assert wrapper.sleep(1) == "sleep done"
