"""The conformance kit for policy authors: `check_policy` asks a policy everything at once.

Owns the laws that every answer keeps. Knows policies only by the contract of `eplbd.hookspecs`.
Meant for an author's test suite; the daemon does not use it.
"""

import time
from collections.abc import Callable, Mapping
from dataclasses import replace

import msgspec
import numpy as np

from eplbd.core.placement import Placement, par, rank_load, validate
from eplbd.errors import PlacementError
from eplbd.hookspecs import Policy
from eplbd.plugins import Plugin, name_of, needs_of
from eplbd.probes import Problem, problems

__all__ = ["LAWS", "Problem", "check_policy", "problems"]

LAWS = {
    "answer": "every question is answered, with a Placement of the experts that there are",
    "placement": "it has the shape of `current`, every expert in every layer, and none twice on a "
    "rank unless `current` has such ranks",
    "shares": "it has shares only where `budget.weighted` says so; they sum to 1 for each expert",
    "budget": "it needs no more moves and bytes than allowed",
    "deadline": "it comes in time",
    "inputs": "what the policy is given is left as it was",
    "repeatable": "the same question has the same answer, whatever was asked before",
    "fresh": "and a fresh instance gives it too",
    "gain": "a policy that balances leaves nothing slower, and moves nothing for nothing",
}
"""What `check_policy` holds an answer to. A failure names the problem, then the law in brackets."""

_SLACK = 1e-9
"""Sums of the same loads in another order may differ by this share."""


def check_policy(
    policy: type[Policy],
    options: Mapping[str, object] | None = None,
    *,
    deadline_s: float = 5.0,
    large: bool = True,
    balances: bool = True,
) -> None:
    """Ask a policy about made-up heat and topologies, and hold every answer to `LAWS`.

    Args:
        policy: the class, as it is registered.
        options: values for `[policy.options]`, where the class declares `Options`.
        deadline_s: the time that each answer may take; the first one compiles for nothing.
        large: include a model of 58 layers x 256 experts on 32 ranks.
        balances: hold it to the law `gain`; false for a policy that does not look at the heat.

    Raises:
        AssertionError: one sentence: which problem, which law, what was answered.
        PolicyError: the class itself does not keep the contract's form.
    """
    make = _maker(policy, dict(options or {}))
    needs_shares = "shares" in needs_of(policy)
    asked = make()
    for made in problems(large=large, deadline_s=deadline_s):
        problem = made
        if needs_shares:
            problem = replace(made, budget=replace(made.budget, weighted=True))
        if problem.name == "small":  # a compiler's time is not the answer's
            _ask(make(), problem)
        started = time.perf_counter()
        answer = _ask(asked, problem)
        elapsed_s = time.perf_counter() - started
        late = f"took {elapsed_s:.2f} s, allowed are {deadline_s:g}"
        _require(problem, "deadline", elapsed_s <= deadline_s, late)
        _check_placement(problem, answer)
        _check_budget(problem, answer)
        if balances:
            _check_gain(problem, answer)
        same = _ask(asked, problem) == answer
        _require(problem, "repeatable", same, "the second answer differs; use no state")
        same = _ask(make(), problem) == answer
        _require(problem, "fresh", same, "a fresh instance answers differently; seed it")


def _maker(policy: type[Policy], options: dict[str, object]) -> Callable[[], Policy]:
    name_of(policy, Plugin(policy.__module__, policy.__module__))
    declared: type[msgspec.Struct] | None = getattr(policy, "Options", None)
    make: Callable[..., Policy] = policy
    if declared is None:
        if options:
            raise AssertionError(f"{policy.__qualname__} declares no Options, got {options}")
        return make
    return lambda: make(msgspec.convert(options, declared))


def _ask(policy: Policy, problem: Problem) -> Placement:
    """An answer, once the inputs are known to be as they were."""
    heat, current = problem.heat, problem.current
    before = heat.steps.copy(), current.slots.copy(), current.parts()
    try:
        answer: object = policy.propose(heat, problem.topology, current, problem.budget)
    except Exception as error:
        what = f"raised {type(error).__name__}: {error}"
        raise AssertionError(f"{problem.name} [answer]: {what}") from error
    same = np.array_equal(before[0], heat.steps)
    same &= np.array_equal(before[1], current.slots)
    same &= np.array_equal(before[2], current.parts())
    _require(problem, "inputs", same, "changed its inputs; copy before writing")
    kind = type(answer).__name__
    is_one = isinstance(answer, Placement)
    _require(problem, "answer", is_one, f"returned {kind}, expected eplbd.Placement")
    assert isinstance(answer, Placement)  # noqa: S101  # said above; this is for the type checker
    return answer


def _check_placement(problem: Problem, answer: Placement) -> None:
    current = problem.current
    counted = f"says {answer.experts} experts, expected {current.experts}"
    _require(problem, "answer", answer.experts == current.experts, counted)
    law = "placement"
    try:
        validate(
            answer.slots,
            experts=current.experts,
            topology=problem.topology,
            layers=current.layers,
            allow_duplicates=current.has_duplicates,
        )
        law = "shares"
        if answer.shares is not None:
            answer = _settled(problem, answer)
    except PlacementError as error:
        raise AssertionError(f"{problem.name} [{law}]: {error}") from error
    even = problem.budget.weighted or answer.shares is None
    _require(problem, "shares", even, "gives shares, but the engine takes none (budget.weighted)")


def _settled(problem: Problem, answer: Placement) -> Placement:
    return validate(
        answer.slots,
        experts=answer.experts,
        topology=problem.topology,
        layers=answer.layers,
        allow_duplicates=True,
        shares=answer.shares,
    )


def _check_budget(problem: Problem, answer: Placement) -> None:
    moves = int(answer.moves_from(problem.current).sum())
    budget = problem.budget
    for limit, cost, unit in (
        (budget.moves, moves, "moves"),
        (budget.bytes, moves * budget.expert_bytes, "bytes"),
    ):
        if limit is not None:
            needs = f"needs {cost} {unit}, allowed are {limit}"
            _require(problem, "budget", cost <= limit, needs)


def _check_gain(problem: Problem, answer: Placement) -> None:
    """By whichever measure the policy goes: one that gets better is enough.

    One that does not mind ranks' speeds goes by their loads, another one by their times.
    """
    current = problem.current
    if current.shares is not None and answer.shares is None:
        return  # it thinks of even splits only, and cannot know what these shares are worth
    was, now = _slowness(problem, current), _slowness(problem, answer)
    worse = all(b > a * (1 + _SLACK) for a, b in zip(was, now, strict=True))
    figures = f"PAR {was[0]:.4f} before, {now[0]:.4f} after, in sum over the window"
    _require(problem, "gain", not worse, f"makes it worse: {figures}")
    moves = int(answer.moves_from(current).sum())
    better = any(b < a * (1 - _SLACK) for a, b in zip(was, now, strict=True))
    nothing = f"moves {moves} experts and gains nothing: {figures}"
    _require(problem, "gain", better or not moves, nothing)


def _slowness(problem: Problem, placement: Placement) -> tuple[float, ...]:
    """PAR of the window's sum, mean over layers; hottest ranks' loads, summed over all steps.

    And the spread of the window's loads, which tells two hottest ranks from one. The same of times,
    where they are other than loads.
    """
    heat, speed = problem.heat, np.array(problem.topology.speed)
    load, steps = rank_load(placement, heat.total), rank_load(placement, heat.steps)
    found: list[float] = []
    for slowed in (1.0,) if (speed == speed[0]).all() else (1.0, speed):
        hottest = (steps / slowed).max(axis=-1).sum()
        found += [par(load / slowed).mean(), hottest, np.square(load / slowed).sum()]
    return tuple(map(float, found))


def _require(problem: Problem, law: str, kept: bool, sentence: str) -> None:  # noqa: FBT001
    if not kept:
        raise AssertionError(f"{problem.name} [{law}]: {sentence}")
