"""The conformance kit for policy authors: `check_policy` asks a policy everything at once.

Owns made-up problems and the laws that every answer keeps. Knows policies only by the contract of
`eplbd.hookspecs`. Meant for an author's test suite; the daemon does not use it.
"""

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import msgspec
import numpy as np
from numpy.typing import NDArray

from eplbd.core.heat import Budget, Heat
from eplbd.core.placement import Placement, validate
from eplbd.core.topology import Topology
from eplbd.errors import PlacementError
from eplbd.hookspecs import Policy
from eplbd.plugins import Plugin, name_of


@dataclass(frozen=True, slots=True)
class Problem:
    """A question with a name for error messages."""

    name: str
    heat: Heat
    topology: Topology
    current: Placement
    budget: Budget


def check_policy(
    policy: type[Policy],
    options: Mapping[str, object] | None = None,
    *,
    deadline_s: float = 5.0,
    large: bool = True,
) -> None:
    """Ask a policy about made-up heat and topologies, and hold every answer to the contract.

    Args:
        policy: the class, as it is registered.
        options: values for `[policy.options]`, where the class declares `Options`.
        deadline_s: the time that each answer may take; the first one compiles for nothing.
        large: include a model of 58 layers x 256 experts on 32 ranks.

    Raises:
        AssertionError: one sentence: which problem, which law, what was answered.
        PolicyError: the class itself does not keep the contract's form.
    """
    make = _maker(policy, dict(options or {}))
    asked = make()
    for problem in problems(large=large, deadline_s=deadline_s):
        if problem.name == "small":  # a compiler's time is not the answer's
            _ask(make(), problem)
        started = time.perf_counter()
        answer = _ask(asked, problem)
        elapsed_s = time.perf_counter() - started
        _require(
            problem, elapsed_s <= deadline_s, f"took {elapsed_s:.2f} s, allowed are {deadline_s:g}"
        )
        _check_placement(problem, answer)
        _check_budget(problem, answer)
        _require(problem, _ask(asked, problem) == answer, "the second answer differs; use no state")
        _require(
            problem,
            _ask(make(), problem) == answer,
            "a fresh instance answers differently; seed it",
        )


def problems(*, large: bool = True, deadline_s: float = 5.0) -> Iterator[Problem]:
    """The problems of `check_policy`, cheapest first, each from its own fixed seed."""
    shapes = {  # layers, experts, slots per rank, nodes of the ranks
        "small": (2, 8, 3, (0, 0, 0, 0)),
        "one rank": (2, 4, 4, (0,)),
        "no redundant slots": (2, 16, 4, (0, 0, 0, 0)),
        "two slots per rank": (3, 8, 2, (0,) * 8),
        "fewer experts than some ranks would like": (2, 6, 2, (0, 0, 0, 0)),
        "every rank holds everything": (2, 4, 4, (0, 0, 0)),
        "more redundant slots than ranks": (2, 32, 8, (0,) * 8),
        "odd sizes": (3, 30, 5, (0,) * 7),
        "two nodes": (2, 16, 5, (0, 0, 1, 1)),
        "uneven nodes": (2, 30, 7, (3, 3, 0, 3, 1)),
        "a node for every rank": (2, 16, 5, (0, 1, 2, 3)),
        "interleaved nodes": (2, 16, 5, (1, 0, 1, 0)),
    }
    kinds: dict[str, Callable[[NDArray[np.int32]], object]] = {
        "skewed heat": np.shape,  # as it is
        "no heat": lambda steps: steps.fill(0),
        "all heat on one expert": _one_expert,
        "a layer without heat": lambda steps: steps[:, 0].fill(0),
        "counts beyond 32 bits in sum": lambda steps: np.maximum(steps, 1 << 30, out=steps),
    }
    for shape, (layers, experts, per_rank, node_of) in shapes.items():
        for seed, (kind, change) in enumerate(kinds.items()):
            name = shape if seed == 0 else f"{shape}, {kind}"
            steps = _heat(layers, experts, 8, seed, change)
            yield from _questions(
                name, steps, Topology(len(node_of), per_rank, node_of), deadline_s
            )
    one = Topology.single_node(4, 3)
    yield from _questions("a window of one step", _heat(2, 8, 1, 9), one, deadline_s)
    yield from _questions("an empty window", _heat(2, 8, 0, 9), one, deadline_s)
    if large:
        nodes = tuple(rank // 8 for rank in range(32))
        budget = Budget(None, None, deadline_s, 1)
        current = Placement.linear(58, 256, 32, 9)
        heat = _heat(58, 256, 64, 0)
        yield Problem("58 x 256 on 32 x 9", heat, Topology(32, 9, nodes), current, budget)


def _questions(name: str, heat: Heat, topology: Topology, deadline_s: float) -> Iterator[Problem]:
    """One problem from two placements in force, with and without a budget."""
    _, layers, experts = heat.steps.shape
    linear = Placement.linear(layers, experts, topology.ranks, topology.slots_per_rank)
    turned = Placement(np.roll(linear.slots[:, ::-1], 1, axis=2), experts)
    free = Budget(None, None, deadline_s, 1000)
    yield Problem(name, heat, topology, linear, free)
    yield Problem(f"{name}, ranks turned round", heat, topology, turned, free)
    for budget, what in (
        (Budget(0, None, deadline_s, 1000), "no moves allowed"),
        (Budget(4, None, deadline_s, 1000), "4 moves allowed"),
        (Budget(None, 3500, deadline_s, 1000), "bytes for 3 moves"),
        (Budget(9, 0, deadline_s, 1000), "no bytes allowed"),
    ):
        yield Problem(f"{name}, {what}", heat, topology, linear, budget)


def _heat(
    layers: int,
    experts: int,
    steps: int,
    seed: int,
    change: Callable[[NDArray[np.int32]], object] | None = None,
) -> Heat:
    """Poisson counts around a lognormal popularity, read-only."""
    rng = np.random.default_rng(seed)
    popularity = rng.lognormal(0.0, 1.0, (layers, experts))
    tokens = 200 * experts * popularity / popularity.sum(1, keepdims=True)
    counts = rng.poisson(tokens, (steps, layers, experts)).astype(np.int32)
    if change is not None:
        change(counts)
    counts.setflags(write=False)
    return Heat(counts, "all")


def _one_expert(steps: NDArray[np.int32]) -> None:
    steps.fill(0)
    steps[:, :, -1] = 100_000


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
    before = problem.heat.steps.copy(), problem.current.slots.copy()
    answer: object = policy.propose(problem.heat, problem.topology, problem.current, problem.budget)
    same = np.array_equal(before[0], problem.heat.steps)
    same &= np.array_equal(before[1], problem.current.slots)
    _require(problem, same, "changed its inputs; copy before writing")
    kind = type(answer).__name__
    _require(problem, isinstance(answer, Placement), f"returned {kind}, expected eplbd.Placement")
    assert isinstance(answer, Placement)  # noqa: S101  # said above; this is for the type checker
    return answer


def _check_placement(problem: Problem, answer: Placement) -> None:
    current = problem.current
    _require(
        problem,
        answer.experts == current.experts,
        f"says {answer.experts} experts, expected {current.experts}",
    )
    try:
        validate(
            answer.slots,
            experts=current.experts,
            topology=problem.topology,
            layers=current.layers,
        )
    except PlacementError as error:
        raise AssertionError(f"{problem.name}: {error}") from error


def _check_budget(problem: Problem, answer: Placement) -> None:
    moves = int((answer.hosts() & ~problem.current.hosts()).sum())
    budget = problem.budget
    for limit, cost, unit in (
        (budget.moves, moves, "moves"),
        (budget.bytes, moves * budget.expert_bytes, "bytes"),
    ):
        if limit is not None:
            _require(problem, cost <= limit, f"needs {cost} {unit}, allowed are {limit}")


def _require(problem: Problem, law: bool, sentence: str) -> None:  # noqa: FBT001  # an assertion
    if not law:
        raise AssertionError(f"{problem.name}: {sentence}")
