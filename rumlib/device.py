"""Which device computes, what a seed is and what a setting may be. Random draws stay on the CPU, so that every device
sees the same batches.

    pick()                                                   # what RUM_DEVICE names; else a GPU if there is one
    pick("cuda:1")                                           # that one, or an error
    send(x, device)                                          # without waiting for what the device is doing
    finished()                                               # wait: a clock that is read now has measured the work
    with torch.random.fork_rng(cuda_rng_devices()): ...      # leave the random state as it was, that of GPUs too
    with tf32(device): ...                                   # products of fp32 at the speed of TF32, on CUDA
    as_seed(np.int64(3))                                     # 3: integers of any type give the same draws
    with seeded(seed, "task") as random: ...                 # a generator of its own for each task
    check_values("me", lr=(lr, "(0, inf)"))                  # an error that names what is out of range
"""

from __future__ import annotations

import hashlib
import operator
import os
from collections.abc import Iterator
from contextlib import contextmanager
from math import inf
from numbers import Integral, Real

import torch
from torch import Tensor

# Read when CUDA starts, so set before: a queue for each stream, or else those of many models wait for each other; and
# the workspaces with which cuBLAS gives the same result again where several streams use it.
os.environ.setdefault("CUDA_DEVICE_MAX_CONNECTIONS", "32")
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")


def pick(name: str = "auto") -> torch.device:
    """The device of that name, "cpu", "cuda", "cuda:1", "mps"; "auto": what the environment variable RUM_DEVICE names,
    or else a GPU if there is one, or else the CPU. Raises ValueError for one that is not there.

    For a CUDA device this sets flags of torch, for the whole process: cuDNN chooses among deterministic algorithms, by
    rule and not by timing, and TF32 is off. All that is computed there must come out the same again, in fp32 as exact
    as that is (training that may round uses bf16, `predict` uses `tf32`). Models that train in turns on several streams
    could not set flags for themselves alone.
    """
    asked = os.environ.get("RUM_DEVICE", "auto") if name == "auto" else name
    count = {"cuda": torch.cuda.device_count, "mps": torch.mps.device_count, "cpu": torch.cpu.device_count}
    if asked == "auto":
        asked = next(kind for kind in count if count[kind]())
    kind, _, number = asked.partition(":")
    if kind not in count or (number and not number.isdecimal()):
        raise ValueError(f"unknown device {asked!r}; choose one of auto, {', '.join(count)}, or cuda:<number>")
    if int(number or 0) >= count[kind]():
        raise ValueError(f"there is no device {asked!r}: torch {torch.__version__} finds {count[kind]()} of that kind. "
                         f"Set RUM_DEVICE, or `device` of the profile, to auto or cpu, or install a torch for it")
    if kind == "cuda":
        torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark = True, False
        torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    return torch.device(asked)


@contextmanager
def tf32(device: torch.device) -> Iterator[None]:
    """Inside, a CUDA device rounds the factors of fp32 products to TF32, which is several times faster."""
    flags = (torch.backends.cuda.matmul, torch.backends.cudnn) if device.type == "cuda" else ()
    before = [flag.allow_tf32 for flag in flags]
    try:
        for flag in flags:
            flag.allow_tf32 = True
        yield
    finally:
        for flag, value in zip(flags, before, strict=True):
            flag.allow_tf32 = value


def as_seed(seed) -> int:
    """The seed as an int: whole numbers of Python, NumPy and torch (a tensor of one) that are equal draw the same.

    Raises TypeError for None, bool, floats and text, ValueError for a number that takes more than 64 bits.

    >>> as_seed(torch.tensor([3])), as_seed(-1)
    (3, -1)
    """
    try:
        number = None if getattr(seed, "dtype", type(seed)) in (bool, torch.bool) else operator.index(seed)
    except (TypeError, ValueError, RuntimeError):
        number = None
    if number is None:
        raise TypeError(f"seed must be one whole number, e.g. seed=0; got {seed!r:.80}")
    if not -2**63 <= number < 2**64:
        raise ValueError(f"seed must fit into 64 bits; got {number:.3e}: take a smaller one, e.g. seed=0")
    return number


def derive_seed(seed: int, *names: str | int) -> int:
    """A seed for the task called `names`: the same wherever and in whatever order tasks run.

    >>> derive_seed(0, "order")
    53803136683444137
    """
    names = [name if isinstance(name, str) else as_seed(name) for name in names]
    return int.from_bytes(hashlib.sha256(repr((as_seed(seed), *names)).encode()).digest()[:7], "big")


@contextmanager
def seeded(seed: int, *names: str | int) -> Iterator[torch.Generator]:
    """A generator for the task called `names`. What takes no generator (dropout, say) draws from a forked global
    state inside; the caller's random state is left as it was."""
    with torch.random.fork_rng(cuda_rng_devices()):
        torch.manual_seed(derive_seed(seed, *names, "global"))
        yield torch.Generator().manual_seed(derive_seed(seed, *names))


def send(x: Tensor, device: torch.device) -> Tensor:
    """The tensor on the device. To a GPU it goes from pinned memory: else the CPU would wait until all that was asked
    before has been done."""
    if device.type == "cuda" and x.device.type == "cpu":
        return x.pin_memory().to(device, non_blocking=True)
    return x.to(device)


def cuda_rng_devices() -> range:
    """The CUDA devices that have a random state. Where CUDA has not been started, it is not started for that."""
    return range(torch.cuda.device_count() if torch.cuda.is_initialized() else 0)


def finished() -> None:
    """Wait until a GPU has done what it was asked to."""
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()


# -- What is refused --------------------------------------------------------------------------------------------------


def check_fields(owner: object, **rules: str | tuple) -> None:
    """Raise ValueError for a field of `owner` that its rule does not allow (see `check_values`)."""
    check_values(type(owner).__name__, **{name: (getattr(owner, name), rule) for name, rule in rules.items()})


def check_values(owner: str, **asked: tuple[object, str | tuple]) -> None:
    """Raise ValueError for a value that its rule does not allow. A rule is a tuple of the values known, "bool", or an
    interval: ``alpha=(value, "[0, 1]")``, for a whole number ``k=(value, "int [1, inf)")``, and with " or None" at the
    end where None is allowed."""
    for name, (value, rule) in asked.items():
        if isinstance(rule, tuple):
            fits, words = value in rule, f"one of {', '.join(map(str, rule))}"
        elif rule == "bool":
            fits, words = isinstance(value, bool), "True or False"
        else:
            fits, words = _inside(value, rule)
        if not fits:
            raise ValueError(f"{owner}: {name} must be {words}; got {name}={value!r}")


def _inside(value: object, rule: str) -> tuple[bool, str]:
    """Whether a number is in the interval, and how errors name the interval."""
    optional = " or None" * rule.endswith(" or None")
    interval = rule.removesuffix(optional).removeprefix("int ")
    low, high = map(float, interval[1:-1].split(","))
    kind, called = (Integral, "a whole number") if rule.startswith("int ") else (Real, "a number")
    inside = (isinstance(value, kind) and not isinstance(value, bool)
              and (low < value or (low == value and interval[0] == "["))
              and (value < high or (value == high and interval[-1] == "]")))
    bound = f"{'at least' if interval[0] == '[' else 'above'} {low:g}" if high == inf else f"in {interval}"
    return inside or (value is None and bool(optional)), f"{called} {bound}{optional}"


def is_official(compat: str | None) -> bool:
    """Whether compat="official" was asked for. Raises ValueError for anything but that and None."""
    check_values("published behaviour", compat=(compat, (None, "official")))
    return compat is not None
