"""Which tokens each rank computes in which step, and how they are routed if a trace says so.

Owns the schedule: topics or windows by step number, slices by rank, so that all ranks agree without
a word. It must not know the model behind the tokens.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from eplbd.core.messages import Dispatch
from eplbd.demo.experts import tensor_seed
from eplbd.demo.model import Batch
from eplbd.demo.shape import Shape
from eplbd.demo.text import TOPICS, read_topic
from eplbd.demo.trace import sample
from eplbd.traces.archive import HeatTrace


@dataclass(frozen=True, slots=True)
class Schedule:
    """How traffic changes: `steps` forwards of one topic (or trace window), then the next one."""

    steps: int = 150
    seed: int = 0


class Traffic:
    """The batches of one rank; deterministic in (shape, schedule, trace) and the step number.

    With a trace, the text only feeds the embeddings: routing is drawn from the trace's windows.
    """

    def __init__(
        self,
        shape: Shape,
        dispatch: Dispatch,
        rank: int,
        schedule: Schedule,
        trace: HeatTrace | None = None,
    ) -> None:
        self.shape = shape
        self._schedule = schedule
        self._trace = trace
        self._blocks = (
            range(shape.ranks) if dispatch is Dispatch.REPLICATED else range(rank, rank + 1)
        )
        self._texts = [torch.from_numpy(read_topic(t, shape.vocabulary)) for t in TOPICS]

    def label(self, step: int) -> str:
        """What the traffic of a step is called: its topic or the trace's label of its window."""
        if self._trace is not None:
            return self._trace.label(self._window(self._trace, step))
        return TOPICS[self._turn(step) % len(TOPICS)].name

    def batch(self, step: int) -> Batch:
        """This rank's tokens of a step."""
        shape = self.shape
        text = self._texts[self._turn(step) % len(self._texts)]
        step_tokens = shape.ranks * shape.tokens
        first = step * step_tokens % (len(text) - shape.context - step_tokens + 1)
        window = text[first : first + shape.context + step_tokens]
        blocks = window.unfold(0, shape.context + shape.tokens, shape.tokens)[self._slice]
        index = torch.arange(step_tokens).view(shape.ranks, -1)[self._slice].flatten()
        return Batch(blocks, index, self._routing(step))

    def dummy(self) -> Batch:
        """A step of an idle rank: no tokens, but it dispatches.

        With replicated dispatch all ranks must be idle in the same step, as they share all tokens.
        """
        none = torch.zeros(0, dtype=torch.int64)
        ids = torch.zeros(len(self._blocks), self.shape.context, dtype=torch.int64)
        return Batch(ids, none)

    @property
    def _slice(self) -> slice:
        return slice(self._blocks.start, self._blocks.stop)

    def _turn(self, step: int) -> int:
        return step // self._schedule.steps

    def _window(self, trace: HeatTrace, step: int) -> int:
        return self._turn(step) % trace.windows

    def _routing(self, step: int) -> torch.Tensor | None:
        """`[layers, tokens, topk]` of this rank's tokens; every rank draws for all of them."""
        trace, shape = self._trace, self.shape
        if trace is None:
            return None
        rng = np.random.default_rng((tensor_seed(self._schedule.seed), step))
        chosen = sample(trace, self._window(trace, step), shape.ranks * shape.tokens, rng)
        mine = chosen.reshape(trace.layers, shape.ranks, shape.tokens, -1)[:, self._slice]
        return torch.from_numpy(np.ascontiguousarray(mine).reshape(trace.layers, -1, trace.topk))
