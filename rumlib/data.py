"""Labelled examples as tensors, with the index of each: what is trained on, forgotten and retained.

    train = Examples(x, y)                   # any tensors; `rumlib.datasets` reads known data sets and files
    forget, retain = train.split(mask)       # mask: True where the point must go
    forget, retain = train.split_classes(3)  # whole classes
    everything = forget + retain
    train.info["flipped"]                    # further facts, one per example, go along
    check_disjoint(forget, retain)           # refuses a retain set that still holds the forget set
    for batch in shuffled(train, 64, random): ...            # one epoch: batch.x, batch.y, batch.rows
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from rumlib.device import send

IDS = (torch.int8, torch.int16, torch.int32, torch.int64)    # what an index, labels and tokens may be given as


class Batch(NamedTuple):
    """A part of an epoch: x (batch, ...) as a model sees it, y (batch,), and the rows of both in their examples."""

    x: Tensor
    y: Tensor
    rows: Tensor


@dataclass(frozen=True, eq=False)
class Examples:
    """A set of labelled examples, in memory. Arrays and lists become tensors.

    x      images (n, channels, height, width), uint8 in 0..255 or float in [0, 1] (any finite float is accepted); rows
           (n, d) of floats; or tokens (n, d) of integers, which go unscaled to a model that begins with nn.Embedding
    y      (n,) int64, class numbers from 0; y, index and info stay on the CPU, where examples are chosen
    index  (n,) int64, the number of each example in the data set it came from; 0..n-1 if not given. It may repeat, as
           in the sum of two sets that are each numbered from 0; what looks examples up by it refuses that
    info   further facts, one value per example, e.g. ``noise`` and ``flipped`` of the digits
    names  names of the classes, if there are any

    Raises ValueError or TypeError, naming the value and the remedy, for tensors that do not fit this description.

    >>> forget, retain = Examples(torch.rand(5, 1, 8, 8), [0, 1, 2, 0, 1]).split([True, False, False, True, False])
    >>> len(forget), retain.index.tolist()
    (2, [1, 2, 4])
    """

    x: Tensor
    y: Tensor
    index: Tensor | None = None
    info: Mapping[str, Tensor] = field(default_factory=dict)
    names: tuple[str, ...] = ()

    def __post_init__(self):
        x, y = check_inputs(as_tensor(self.x, "x")), as_tensor(self.y, "y, the class numbers,")
        if y.dtype not in (*IDS, torch.uint8) or y.shape != (len(x),):
            raise ValueError(f"y must hold {len(x)} whole class numbers, shape ({len(x)},); got {y.dtype} of shape "
                             f"{tuple(y.shape)}" + "; of one-hot rows take y.argmax(1)" * (y.ndim == 2))
        if len(y) and int(y.min()) < 0:
            raise ValueError(f"labels must count from 0; got {int(y.min())}")
        index = torch.arange(len(x)) if self.index is None else as_tensor(self.index, "index")
        if index.dtype not in IDS:
            raise TypeError(f"index must hold whole numbers of at most 64 bits with a sign; got {index.dtype}: number "
                            f"the examples 0..{len(x) - 1}, and keep names in a list beside them")
        if index.shape != (len(x),):
            raise ValueError(f"index must hold one number for each of the {len(x)} examples; "
                             f"got shape {tuple(index.shape)}")
        if not isinstance(self.info, Mapping):
            raise TypeError(f"info maps names to one value per example, e.g. {{'flipped': flipped}}; got {self.info!r}")
        info = {name: as_tensor(values, f"info[{name!r}]") for name, values in self.info.items()}
        for name, values in info.items():
            if values.shape[:1] != x.shape[:1]:
                raise ValueError(f"info[{name!r}] holds values of shape {tuple(values.shape)} for {len(x)} examples")
        # The one place where a frozen field is set: tensors given as arrays or lists become tensors.
        for name, value in (("x", x), ("y", y.long().cpu()), ("index", index.long().cpu()), ("info", info)):
            object.__setattr__(self, name, value)

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, rows) -> Examples:
        """The examples at `rows`: a bool mask (n,), positions, or a slice."""
        if isinstance(rows, list) and rows:                  # of floats torch would make whole numbers
            rows = as_tensor(rows, "rows")
        try:
            index = self.index[rows]
        except IndexError as problem:
            raise ValueError(f"there are no such rows of {len(self)} examples: {problem}. Give a bool mask of that "
                             f"length, positions below it, or a slice") from problem
        if not index.ndim:
            raise TypeError(f"one position gives no set of examples; take examples[{rows}:{int(rows) + 1}]")
        if index.ndim > 1:
            raise ValueError(f"rows are a bool mask, positions (n,) or a slice; they give shape {tuple(index.shape)}")
        info = {name: values[rows] for name, values in self.info.items()}
        return Examples(self.x[rows], self.y[rows], index, info, self.names)

    def __add__(self, other: Examples) -> Examples:
        if not isinstance(other, Examples):
            return NotImplemented
        if self.x.dtype != other.x.dtype or self.x.shape[1:] != other.x.shape[1:]:
            raise TypeError(f"images of one kind only can be joined; got {tuple(self.x.shape[1:])} {self.x.dtype} and "
                            f"{tuple(other.x.shape[1:])} {other.x.dtype}")
        info = {name: torch.cat([self.info[name], other.info[name]]) for name in self.info if name in other.info}
        return Examples(torch.cat([self.x, other.x]), torch.cat([self.y, other.y]),
                        torch.cat([self.index, other.index]), info, self.names or other.names)

    def split(self, mask: Tensor) -> tuple[Examples, Examples]:
        """(forget, retain): the examples where the bool `mask` (n,) is True, and all others."""
        mask = as_tensor(mask, "mask").cpu()
        if mask.dtype != torch.bool:
            raise TypeError(f"mask must be bool, True where the point must go; got {mask.dtype}. Of ids make a mask: "
                            f"torch.isin(examples.index, torch.tensor(ids))")
        if mask.shape != (len(self),):
            raise ValueError(f"mask must have one entry for each of the {len(self)} examples; "
                             f"got shape {tuple(mask.shape)}")
        if not mask.any() or mask.all():
            empty = "forget" if not mask.any() else "retain"
            raise ValueError(f"the {empty} set is empty: mask is True for {int(mask.sum())} of {len(self)} examples")
        return self[mask], self[~mask]

    def split_classes(self, *classes: int) -> tuple[Examples, Examples]:
        """(forget, retain): the examples of these classes, and all others."""
        known = sorted(set(self.y.tolist()))
        for unknown in classes:
            if unknown not in known:
                raise ValueError(f"class {unknown!r} is not in the data; there are {known}. Give several as "
                                 f"split_classes(3, 5)")
        return self.split(torch.isin(self.y, torch.tensor(classes, dtype=torch.int64)))

    def to(self, device) -> Examples:
        """The same examples with their images on the device."""
        return replace(self, x=self.x.to(device))

    @cached_property
    def digest(self) -> str:
        """Hash of images, labels and order: equal exactly when the content is equal."""
        return digest(self.x, self.y, self.index)

    def __repr__(self) -> str:
        return f"Examples({len(self)} of {tuple(self.x.shape[1:])} {self.x.dtype}, {self.digest})"


def digest(*tensors: Tensor) -> str:
    """A short SHA-256 of the content, shape and dtype of tensors."""
    total = hashlib.sha256()
    for tensor in tensors:
        array = np.ascontiguousarray(tensor.detach().cpu().numpy())
        total.update(f"{array.dtype}{array.shape}".encode())
        total.update(array.tobytes())
    return total.hexdigest()[:16]


def label_hash(y: Tensor) -> str:
    """Hash of labels in their order, which proves the order of published values: the first 16 hexadecimal digits of the
    SHA-256 of y as little-endian int64 (in NumPy: ``sha256(y.astype("<i8").tobytes())``)."""
    return hashlib.sha256(torch.as_tensor(y).cpu().numpy().astype("<i8").tobytes()).hexdigest()[:16]


def as_tensor(values, what: str) -> Tensor:
    """Tensors, arrays, lists and columns of tables as a tensor. Raises TypeError for text and other objects."""
    try:
        return torch.as_tensor(np.array(values) if hasattr(values, "to_numpy") else values)
    except (TypeError, ValueError, RuntimeError, OverflowError) as problem:
        raise TypeError(f"{what} must be a tensor, or an array or list of numbers; got {type(values).__name__}: "
                        f"{problem}") from problem


def check_inputs(x: Tensor) -> Tensor:
    """The same x, if it can be images, rows or tokens."""
    if x.layout != torch.strided or x.is_meta:
        raise TypeError(f"x must be a dense tensor in memory; got {x.layout} on {x.device}. Convert it, x.to_dense()")
    if x.ndim < 2:
        raise ValueError(f"x must be images (n, channels, height, width) or rows (n, d); got {tuple(x.shape)}")
    if x.dtype != torch.uint8 and not x.is_floating_point() and not (x.dtype in IDS and x.ndim == 2):
        raise TypeError(f"x must be float or uint8, or whole numbers (n, d) that are tokens; got {x.dtype} of shape "
                        f"{tuple(x.shape)}. Convert it, e.g. x.float() / 255")
    if x.is_floating_point() and not x.isfinite().all():
        row = int((~x.isfinite()).flatten(1).any(1).nonzero()[0])
        raise ValueError(f"x holds NaN or infinite values, first in row {row}; remove or repair such examples")
    return x


def check_disjoint(forget: Examples, retain: Examples) -> None:
    """Refuse a retain set that still holds the forget set: a model retrained on it knows what it should have forgotten,
    and every comparison with that model is wrong.

    forget, retain  sets of the same data; a shared number in `index` is no overlap by itself, since two sets may each
                    be numbered from 0. 16 values of each example are looked at, and all of them where these agree

    Raises ValueError for examples of one index and one content (x and y) in both sets, and for a forget set whose
    content is all in `retain` under whatever index. Single exact duplicates are legitimate, and are not refused.
    """
    if not len(forget) or forget.x.shape[1:] != retain.x.shape[1:]:
        return
    of_index, order = forget.index.sort(stable=True)
    at = torch.searchsorted(of_index, retain.index).clamp(max=len(forget) - 1)
    rows = ((of_index[at] == retain.index) & (forget.y[order[at]] == retain.y)).nonzero()[:, 0]
    at = order[at[rows]]
    both = at[_equal(forget.x[at.to(forget.x.device)], retain.x[rows.to(retain.x.device)])]
    if len(both):
        raise ValueError(f"the retain set still holds {len(both)} examples of the forget set, e.g. index "
                         f"{int(forget.index[both[0]])}: take both from examples.split(mask)")
    if (len(forget) > 1 or of_index[0] in retain.index) and _all_held(forget, retain):
        raise ValueError(f"all {len(forget)} examples of the forget set are in the retain set too, under another index "
                         f"(e.g. {int(forget.index[0])}): take both from examples.split(mask), or forget all copies")


def _all_held(examples: Examples, by: Examples) -> bool:
    """Whether all contents are in the other set: found by a few values in the middle, then by all. Mostly the first
    example is not, and ends the search."""
    own, other = examples.x.flatten(1).to(by.x.device), by.x.flatten(1)
    middle = slice(max(own.shape[1] // 2 - 8, 0), own.shape[1] // 2 + 8)
    few = other[:, middle].contiguous()
    for x, y in zip(own, examples.y, strict=True):
        rows = (by.y == y).nonzero()[:, 0].to(few.device)
        rows = rows[_equal(few[rows], x[middle]).to(few.device)]
        if not _equal(other[rows], x).any():
            return False
    return True


def _equal(a: Tensor, b: Tensor) -> Tensor:
    """(n,) on the CPU, where the rows of both are equal."""
    return (a == b.to(a.device)).flatten(1).all(1).cpu()


# -- As a model sees them ---------------------------------------------------------------------------------------------


def as_input(x: Tensor, weight: Tensor | None = None) -> Tensor:
    """Inputs as a model sees them: on the device of its `weight`. uint8 is scaled to [0, 1], that and floats get the
    dtype of the weight (float32); other whole numbers are tokens and stay as they are."""
    device, dtype = (weight.device, weight.dtype) if weight is not None else (x.device, torch.float32)
    x = send(x, device)                                      # first, so that bytes travel and not floats
    if x.dtype == torch.uint8:
        return x.to(dtype).div_(255)
    return x.to(dtype) if x.is_floating_point() else x


def augment(x: Tensor, generator: torch.Generator) -> Tensor:
    """Each image (n, c, h, w) shifted by up to an eighth of its height over a zero border and mirrored at random.

    Raises ValueError for what are no images.
    """
    if x.ndim != 4:
        raise ValueError(f"only images (n, channels, height, width) can be shifted and mirrored; x is "
                         f"{tuple(x.shape)}: set augment=False")
    n, channels, h, w = x.shape
    pad = h // 8
    padded = torch.nn.functional.pad(x, (pad, pad, pad, pad))
    top, left = send(torch.randint(0, 2 * pad + 1, (2, n), generator=generator), x.device)
    mirrored = send(torch.rand(n, generator=generator), x.device) < 0.5
    column = torch.arange(w, device=x.device).expand(n, w)
    column = torch.where(mirrored[:, None], w - 1 - column, column) + left[:, None]     # (n, w)
    row = torch.arange(h, device=x.device) + top[:, None]                               # (n, h)
    pixel = (row * (w + 2 * pad))[:, :, None] + column[:, None, :]                      # (n, h, w), in a padded image
    return padded.flatten(2).gather(2, pixel.flatten(1)[:, None].expand(-1, channels, -1)).view(x.shape)


def shuffled(examples: Examples, size: int, random: torch.Generator, *, weight: Tensor | None = None,
             mirror: bool = False) -> Iterator[Batch]:
    """One epoch of `examples` in random order, as a model with this `weight` sees them and on its device."""
    device = examples.x.device if weight is None else weight.device
    order = torch.randperm(len(examples), generator=random)
    at, order, y = send(order, examples.x.device), send(order, device), send(examples.y, device)     # once an epoch
    for part, rows in zip(cut(at, size), cut(order, size), strict=True):
        x = examples.x.index_select(0, part)                 # a tenth of the time of x[part]
        yield Batch(as_input(augment(x, random) if mirror else x, weight), y[rows], rows)


def cut(order: Tensor, size: int) -> list[Tensor]:
    """Positions (..., n) in batches. A last batch of one joins the one before it: BatchNorm cannot use it."""
    sizes = [size] * batch_count(order.shape[-1], size)
    sizes[-1] = order.shape[-1] - sum(sizes[:-1])
    return list(order.split(sizes, dim=-1))


def batch_count(n: int, size: int) -> int:
    """How many batches `cut` makes of n examples."""
    return -(-n // size) - (n % size == 1 and n > size)
