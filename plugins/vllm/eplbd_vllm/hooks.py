"""Where vLLM calls: the worker's wrapper, around loading, forwards, sleep and reloading.

Owns the wrapped methods of `WorkerWrapperBase`, through which every platform's worker is called,
and what of a scheduler's output a guest is told. It must not know what a guest does with it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import wraps
from typing import Protocol, cast

from eplbd.core.heat import PHASES
from eplbd_vllm.upstream import SchedulerOutput, Worker

_GUEST = "_eplbd_guest"
_WRAPPED = "_eplbd_wrapped"
_ALL, _PREFILL, _DECODE = (PHASES.index(name) for name in ("all", "prefill", "decode"))


class Visitor(Protocol):
    """What is told of a worker's life, on its main thread."""

    def before_forward(self) -> None:
        """A forward with experts begins: the same one on every rank."""
        ...

    def after_forward(self, tokens: int, *, dummy: bool, phase: int) -> None:
        """It was issued. tokens: of this rank, padding excluded. phase: index into `PHASES`."""
        ...

    def pause(self, *, lost: bool) -> None:
        """Weights are about to leave their places. lost: for good, they come back by reloading."""
        ...

    def resume(self, *, reloaded: bool) -> None:
        """Weights are back. reloaded: anew, each where it was when the engine started."""
        ...

    def leave(self) -> None:
        """The worker ends."""
        ...


class Wrapper(Protocol):
    """A `WorkerWrapperBase`."""

    worker: Worker


Invite = Callable[[Worker], Visitor | None]


@dataclass(frozen=True, slots=True)
class Call:
    """One call of a wrapped method: on whom, of what, with what."""

    wrapper: Wrapper
    original: Callable[..., object]
    args: tuple[object, ...]
    kwargs: dict[str, object]

    def go(self) -> object:
        """Make it."""
        return self.original(*self.args, **self.kwargs)

    def argument(self, name: str, default: object = None) -> object:
        """Return the first argument, however it was passed."""
        return self.args[0] if self.args else self.kwargs.get(name, default)


Around = Callable[[Call, Visitor | None], object]


def install(wrapper: type[Wrapper], invite: Invite) -> None:
    """Wrap the methods of `wrapper`, the class `WorkerWrapperBase`; a second call does nothing.

    invite: makes the visitor of a worker whose model was just loaded, or None.
    """
    if _WRAPPED in vars(wrapper):
        return
    setattr(wrapper, _WRAPPED, True)

    def loading(call: Call, guest: Visitor | None) -> object:
        result = call.go()
        if guest is None:
            seat(call.wrapper, invite(call.wrapper.worker))
        return result

    for name, around in (("load_model", loading), *_AROUND.items()):
        _replace(wrapper, name, around)


def guest_of(wrapper: Wrapper) -> Visitor | None:
    """Return the guest of a wrapped worker, None where there is none."""
    # Not getattr: the wrapper passes what it has not on to its worker.
    return cast("Visitor | None", vars(wrapper).get(_GUEST))


def seat(wrapper: Wrapper, guest: Visitor | None) -> None:
    """Have calls of this worker told to `guest` from now on."""
    setattr(wrapper, _GUEST, guest)


def _replace(wrapper: type[Wrapper], name: str, around: Around) -> None:
    """Put `around` where `name` is, or where the wrapper would have passed `name` to its worker."""
    own: Callable[..., object] | None = vars(wrapper).get(name)

    def method(self: Wrapper, *args: object, **kwargs: object) -> object:
        original = getattr(self.worker, name) if own is None else own.__get__(self)
        return around(Call(self, original, args, kwargs), guest_of(self))

    setattr(wrapper, name, method if own is None else wraps(own)(method))


def _executing(call: Call, guest: Visitor | None) -> object:
    if guest is None:
        return call.go()
    output = cast("SchedulerOutput", call.argument("scheduler_output"))
    tokens = output.total_num_scheduled_tokens
    if not tokens and not _runs_regardless(call.wrapper.worker):
        return call.go()
    phase = phase_of(output)  # the call may change the output
    guest.before_forward()
    result = call.go()
    guest.after_forward(tokens, dummy=not tokens, phase=phase)
    return result


def _idling(call: Call, guest: Visitor | None) -> object:
    if guest is None:
        return call.go()
    guest.before_forward()
    result = call.go()
    guest.after_forward(0, dummy=True, phase=_ALL)
    return result


def _pausing(call: Call, guest: Visitor | None) -> object:
    if guest is not None:
        guest.pause(lost=call.argument("level", 1) != 1)
    return call.go()


def _waking(call: Call, guest: Visitor | None) -> object:
    result = call.go()
    tags = cast("list[str] | None", call.argument("tags"))
    if guest is not None and (not tags or "weights" in tags):
        guest.resume(reloaded=False)
    return result


def _updating(call: Call, guest: Visitor | None) -> object:
    if guest is not None:
        guest.pause(lost=True)
    return call.go()


def _updated(call: Call, guest: Visitor | None) -> object:
    result = call.go()
    if guest is not None:
        guest.resume(reloaded=True)
    return result


def _reloading(call: Call, guest: Visitor | None) -> object:
    if guest is not None:
        guest.pause(lost=True)
    return _updated(call, guest)


def _leaving(call: Call, guest: Visitor | None) -> object:
    if guest is not None:
        guest.leave()
    return call.go()


_AROUND: dict[str, Around] = {
    "execute_model": _executing,
    "execute_dummy_batch": _idling,
    "sleep": _pausing,
    "wake_up": _waking,
    "start_weight_update": _updating,
    "finish_weight_update": _updated,
    "reload_weights": _reloading,
    "shutdown": _leaving,
}


def _runs_regardless(worker: Worker) -> bool:
    """Whether a step without tokens runs a dummy forward by itself, as one configuration's does."""
    parallel = worker.vllm_config.parallel_config
    return (
        parallel.data_parallel_size > 1
        and parallel.distributed_executor_backend == "external_launcher"
    )


def phase_of(output: SchedulerOutput) -> int:
    """Index into `PHASES` of what a step mostly is, in constant time."""
    requests, new = len(output.num_scheduled_tokens), len(output.scheduled_new_reqs)
    if new:
        return _PREFILL if new == requests else _ALL
    if not requests:
        return _ALL
    one_each = output.total_num_scheduled_tokens == requests
    return _DECODE if one_each or output.scheduled_spec_decode_tokens else _ALL
