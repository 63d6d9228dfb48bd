"""Images and labels as tensors that remember who they are.

    train, test = load("digits")             # real 8x8 digits, embedded; noise and flipped labels are known
    train, test = load("cifar10", root=...)  # Parquet or torchvision's files; also cifar100, ..., a folder
    train = from_dataset(my_dataset)         # any torch Dataset of (image, class) pairs
    train, test = gaussians()                # points in the plane around four centres, a class each
    forget, retain = train.split(mask)       # mask: True where the point must go
    forget, retain = train.split_classes(3)  # whole classes
    everything = forget + retain
    train.info["flipped"]                    # planted truth travels with the examples
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from rumlib.device import send

# -- Examples ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Examples:
    """A set of labelled images, in memory.

    x      (n, channels, height, width), uint8 in 0..255 or float in [0, 1] (any finite float is accepted)
    y      (n,) int64, class numbers from 0; y, index and info stay on the CPU, where examples are chosen
    index  (n,) int64, who each example is: its row in the data set it came from; 0..n-1 if not given
    info   further facts, one value per example, e.g. ``noise`` and ``flipped`` of the digits
    names  names of the classes, if there are any

    Raises ValueError or TypeError, naming the value and the remedy, for tensors that do not fit this description.
    """

    x: Tensor
    y: Tensor
    index: Tensor | None = None
    info: Mapping[str, Tensor] = field(default_factory=dict)
    names: tuple[str, ...] = ()

    def __post_init__(self):
        x, y = torch.as_tensor(self.x), torch.as_tensor(self.y)
        if x.ndim < 2:
            raise ValueError(f"x must be images (n, channels, height, width) or rows (n, d); got {tuple(x.shape)}")
        if x.dtype != torch.uint8 and not x.is_floating_point():
            raise TypeError(f"x must be float or uint8; got {x.dtype}. Convert it, e.g. x.float() / 255")
        if x.is_floating_point() and not x.isfinite().all():
            row = int((~x.isfinite()).flatten(1).any(1).nonzero()[0])
            raise ValueError(f"x holds NaN or infinite values, first in row {row}; remove or repair such examples")
        if y.is_floating_point() or y.dtype == torch.bool or y.shape != (len(x),):
            raise ValueError(f"y must hold {len(x)} whole class numbers, shape ({len(x)},); "
                             f"got {y.dtype} of shape {tuple(y.shape)}")
        if len(y) and int(y.min()) < 0:
            raise ValueError(f"labels must count from 0; got {int(y.min())}")
        index = torch.arange(len(x)) if self.index is None else torch.as_tensor(self.index)
        if index.shape != (len(x),):
            raise ValueError(f"index must hold one number for each of the {len(x)} examples; "
                             f"got shape {tuple(index.shape)}")
        for name, values in self.info.items():
            if len(values) != len(x):
                raise ValueError(f"info[{name!r}] holds {len(values)} values for {len(x)} examples")
        # The one place where a frozen field is set: tensors given as arrays or lists become tensors.
        for name, value in (("x", x), ("y", y.long().cpu()), ("index", index.long().cpu())):
            object.__setattr__(self, name, value)

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, rows) -> Examples:
        """The examples at `rows`: a bool mask (n,), positions, or a slice."""
        info = {name: values[rows] for name, values in self.info.items()}
        return Examples(self.x[rows], self.y[rows], self.index[rows], info, self.names)

    def __add__(self, other: Examples) -> Examples:
        if self.x.dtype != other.x.dtype or self.x.shape[1:] != other.x.shape[1:]:
            raise TypeError(f"images of one kind only can be joined; got {tuple(self.x.shape[1:])} {self.x.dtype} and "
                            f"{tuple(other.x.shape[1:])} {other.x.dtype}")
        info = {name: torch.cat([self.info[name], other.info[name]]) for name in self.info if name in other.info}
        return Examples(torch.cat([self.x, other.x]), torch.cat([self.y, other.y]),
                        torch.cat([self.index, other.index]), info, self.names or other.names)

    def split(self, mask: Tensor) -> tuple[Examples, Examples]:
        """(forget, retain): the examples where the bool `mask` (n,) is True, and all others."""
        mask = torch.as_tensor(mask).cpu()
        if mask.dtype != torch.bool:
            raise TypeError(f"mask must be bool, True where the point must go; got {mask.dtype}")
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
        for unknown in set(classes) - set(known):
            raise ValueError(f"class {unknown} is not in the data; there are {known}")
        return self.split(torch.isin(self.y, torch.tensor(classes, dtype=torch.int64)))

    def to(self, device) -> Examples:
        """The same examples with their images on the device."""
        return Examples(self.x.to(device), self.y, self.index, self.info, self.names)

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


def as_input(x: Tensor, weight: Tensor | None = None) -> Tensor:
    """Images as a model sees them: on the device and in the dtype of its `weight` (float32), uint8 scaled to [0, 1]."""
    device, dtype = (weight.device, weight.dtype) if weight is not None else (x.device, torch.float32)
    x = send(x, device)                                      # first, so that bytes travel and not floats
    return x.to(dtype).div_(255) if x.dtype == torch.uint8 else x.to(dtype)


def augment(x: Tensor, generator: torch.Generator) -> Tensor:
    """Each image (n, c, h, w) shifted by up to an eighth of its height over a zero border and mirrored at random."""
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


# -- Loading ----------------------------------------------------------------------------------------------------------




def check_disjoint(forget: Examples, retain: Examples) -> None:
    """Raise ValueError where the retain set still holds examples of the forget set: the same index and the same content.

    A model retrained on such a set knows what it should have forgotten, and every comparison with it is wrong.
    """
    shared = torch.isin(forget.index, retain.index)
    if not shared.any():
        return
    at = dict(zip(retain.index.tolist(), range(len(retain)), strict=True))
    rows = [at[index] for index in forget.index[shared].tolist()]
    same = (forget.x[shared].cpu() == retain.x[rows].cpu()).flatten(1).all(1)
    if same.any():
        raise ValueError(f"the retain set still holds {int(same.sum())} examples of the forget set, e.g. index "
                         f"{int(forget.index[shared][same][0])}: take both from examples.split(mask)")
