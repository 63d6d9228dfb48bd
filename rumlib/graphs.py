"""Training steps that a GPU repeats by itself: recorded once as a CUDA graph, then replayed.

    step = Recorded(step)                                    # a function of batches; called like it
    with streams(device, 8) as places: ...                   # CUDA streams, for eight models side by side

A step of a small network is hundreds of kernels of a few microseconds each, and to launch them one by one takes the CPU
longer than they run. RUM_GRAPHS=off: every step is launched, as where a loss is not `recordable`. RUM_GRAPHS=on: also
on a CPU, where nothing can be recorded, steps run on copies of their batches: a rehearsal, for tests.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor

WARM_UP = 3                                                  # steps that run as they are, before one is recorded


def recordable(loss: Callable) -> Callable:
    """Mark a loss that may be recorded: all it does is done by tensors on the device, the same for every batch of one
    shape. It reads no value of a tensor (``.item()``, ``if loss > 1``, ``x[mask]``) and changes nothing in Python."""
    loss.recordable = True
    return loss


def should_record(loss: Callable, device: torch.device) -> bool:
    """Whether steps with this loss are recorded on this device. Raises ValueError for another RUM_GRAPHS than auto, on
    or off."""
    mode = os.environ.get("RUM_GRAPHS", "auto")
    if mode not in ("auto", "on", "off"):
        raise ValueError(f"RUM_GRAPHS must be auto, on or off; got {mode!r}")
    if _unrecorded.get():
        return False
    return getattr(loss, "recordable", False) and (mode == "on" or (mode == "auto" and device.type == "cuda"))


_unrecorded: ContextVar[bool] = ContextVar("every step is launched", default=False)


@contextmanager
def unrecorded() -> Iterator[None]:
    """Inside, every step is launched, so that what looks at its operations one by one sees those of all steps."""
    token = _unrecorded.set(True)
    try:
        yield
    finally:
        _unrecorded.reset(token)


@dataclass(eq=False)
class Recording:
    """What is known of one kind of batch."""

    calls: int = 0
    batch: tuple = ()                                        # where a replay reads: every batch is copied there
    replay: Callable | None = None
    returned: object = None


class Recorded:
    """A function of batches (tuples of tensors, numbers, None and such tuples), recorded for each kind of batch.

    A kind is the shapes and types of what a batch holds. The first calls of a kind run as they are and count: momentum
    has to exist before a step is recorded (the rule of the first step would be repeated for ever), and so do the
    workspaces of libraries. They run, are recorded and are replayed on one stream, the current one: graphs that were
    recorded on one stream share a workspace. What the function returned when it was recorded is returned by every
    replay. Numbers become tensors, since what is a number in a recording stays as it was.
    """

    def __init__(self, function: Callable[..., object], device: torch.device):
        self.function, self.device = function, device
        self.recordings: dict[tuple, Recording] = {}
        self.pool = None                                     # memory that the graphs share: one replays at a time

    def __call__(self, *batch) -> object:
        found = self.recordings.setdefault(kind(batch), Recording())
        found.calls += 1
        if found.calls <= WARM_UP:
            return self.function(*batch)
        if found.replay is None:
            self.record(found, batch)
        copy_into(found.batch, batch)
        found.replay()
        return found.returned

    def record(self, recording: Recording, batch: tuple) -> None:
        recording.batch = copied(batch, self.device)
        if self.device.type != "cuda":
            def replay():
                recording.returned = self.function(*recording.batch)

            recording.replay = replay
            return
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self.pool, stream=torch.cuda.current_stream(self.device)):
            recording.returned = self.function(*recording.batch)
        self.pool, recording.replay = graph.pool(), graph.replay


def kind(part) -> object:
    """Shapes and types of all that is in a batch."""
    if isinstance(part, tuple):
        return tuple(map(kind, part))
    return (part.shape, part.dtype) if isinstance(part, Tensor) else type(part)


def copied(part, device: torch.device):
    """A copy of a batch on the device, its numbers as tensors; None stays."""
    if isinstance(part, tuple):
        copies = [copied(inner, device) for inner in part]
        return type(part)(*copies) if hasattr(part, "_fields") else tuple(copies)
    if part is None:
        return None
    return part.to(device, copy=True) if isinstance(part, Tensor) else torch.tensor(part, device=device)


def copy_into(place, part) -> None:
    """Bring a batch to where the recorded step reads."""
    if isinstance(part, tuple):
        for inner_place, inner in zip(place, part, strict=True):
            copy_into(inner_place, inner)
    elif isinstance(part, Tensor):
        place.copy_(part, non_blocking=True)
    elif part is not None:
        place.fill_(part)


# -- Streams ----------------------------------------------------------------------------------------------------------


@contextmanager
def streams(device: torch.device, count: int) -> Iterator[list[AbstractContextManager]]:
    """`count` contexts. What is asked of a CUDA device inside one of them goes to a stream of its own: streams run side
    by side, after all that was asked before this block and before all that is asked after it. Elsewhere they do
    nothing."""
    if device.type != "cuda":
        yield [nullcontext()] * count
        return
    here, others = torch.cuda.current_stream(device), [_stream(device, k) for k in range(count)]
    for stream in others:
        stream.wait_stream(here)
    try:
        yield [torch.cuda.stream(stream) for stream in others]
    finally:
        for stream in others:
            here.wait_stream(stream)


@cache
def _stream(device: torch.device, number: int) -> torch.cuda.Stream:
    """Always the same: memory that one stream has given back is not at the disposal of another."""
    return torch.cuda.Stream(device)
