"""Which device computes. Random draws stay on the CPU, so that every device sees the same batches.

    pick()                                                   # what RUM_DEVICE names; else a GPU if there is one
    pick("cuda:1")                                           # that one, or an error
    finished()                                               # wait: a clock that is read now has measured the work
"""

from __future__ import annotations

import os

import torch

# Read when CUDA starts, so set before: a queue for each stream, or else those of many models wait for each other; and
# the workspaces with which cuBLAS gives the same result again where several streams use it.
os.environ.setdefault("CUDA_DEVICE_MAX_CONNECTIONS", "32")
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")


def pick(name: str = "auto") -> torch.device:
    """The device of that name, "cpu", "cuda", "cuda:1", "mps"; "auto": what the environment variable RUM_DEVICE names,
    or else a GPU if there is one, or else the CPU. Raises ValueError for one that is not there.

    On a CUDA device numbers must come out the same again, and those of fp32 must be those of fp32: cuDNN then chooses
    among deterministic algorithms, by rule and not by timing, and TF32 is off (training that may round uses bf16).
    """
    asked = os.environ.get("RUM_DEVICE", "auto") if name == "auto" else name
    there = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    kind, _, number = asked.partition(":")
    if asked == "auto":
        asked = kind = next(kind for kind, is_there in there.items() if is_there)
    if kind not in there or (number and not number.isdecimal()):
        raise ValueError(f"unknown device {asked!r}; choose one of auto, {', '.join(there)}, or cuda:<number>")
    if not there[kind] or (kind == "cuda" and int(number or 0) >= torch.cuda.device_count()):
        raise ValueError(f"there is no device {asked!r}: torch {torch.__version__} finds "
                         f"{', '.join(kind for kind, is_there in there.items() if is_there)} and "
                         f"{torch.cuda.device_count()} CUDA devices. Set RUM_DEVICE, or `device` of the profile, to "
                         f"auto or cpu, or install a torch for that device")
    if kind == "cuda":
        torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark = True, False
        torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    return torch.device(asked)


def finished() -> None:
    """Wait until a GPU has done what it was asked to."""
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()
