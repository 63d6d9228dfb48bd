"""Reading data: known data sets, folders of images, torch Datasets, lists of what must be forgotten, published scores.

    train, test = load("digits")             # real 8x8 digits, embedded; noise and flipped labels are known
    train, test = load("cifar10", root=...)  # Parquet or torchvision's files; also cifar100, ..., a folder
    train = from_dataset(my_dataset)         # any torch Dataset of (image, class) pairs
    train, test = gaussians()                # points in the plane around four centres, a class each
    mask = forget_ids("forget.csv", train)   # a deletion request: a column "id" with numbers of train.index
    columns(path, ["memorization", "y"])     # columns of numbers of a .npz or .csv file
"""

from __future__ import annotations

import csv
import io
import os
import re
import zipfile
import zlib
from array import array
from collections.abc import Callable, Iterator
from operator import index as whole
from pathlib import Path
from typing import BinaryIO, TextIO

import numpy as np
import torch
from torch import Tensor

from rumlib.data import Examples
from rumlib.device import as_seed, check_values

# What a file of one number per example may hold: the largest public set of images, ImageNet-21k, has 14 million.
MOST_VALUES, MOST_BYTES, LONGEST_LINE = 20_000_000, 2 ** 30, 2 ** 16
DATASETS = ("digits", "cifar10", "cifar100", "fashion_mnist", "tiny_imagenet")


def load(name: str, *, root: str | Path | None = None, download: bool = False, classes: tuple[int, ...] | None = None,
         n: int | None = None, n_test: int | None = None, size: int | None = None, seed: int = 0,
         noise: float = 1.0, flips: float = 0.05) -> tuple[Examples, Examples]:
    """Load (train, test).

    name      "digits", "cifar10", "cifar100", "fashion_mnist", "tiny_imagenet" (its validation images are the test
              set), or the path of a folder with ``train/<class>/*`` and ``test/<class>/*`` (or ``val/``)
    root      where the files are; else the environment variable RUM_DATA; else ``data``
    download  let torchvision fetch what is missing (needs a network)
    classes   keep these classes only, renumbered from 0 in the order given
    n, n_test keep a random (`seed`) part of that many images
    size      resize to this height and width
    noise     digits: image i gets Gaussian pixel noise of standard deviation noise * u_i^2, u_i uniform, then is
              clipped to [0, 1]; known as info["noise"]. 0: none
    flips     digits: share of training labels moved to another class; known as info["flipped"]. 0: none

    Raises ValueError for an unknown name and FileNotFoundError, saying where it looked, for missing files.

    >>> train, test = load("digits", n=100)
    >>> len(train), len(test), tuple(train.x.shape), sorted(train.info)
    (100, 500, (100, 1, 8, 8), ['flipped', 'noise'])
    """
    seed = as_seed(seed)
    select = dict(classes=classes, seed=seed, size=size)
    if name == "digits":
        train, test = _digits(noise, flips, seed)
        return _part(train, n=n, **select), _part(test, n=n_test, **select)
    if name not in DATASETS and not Path(name).is_dir():
        raise ValueError(f"unknown data set {name!r}; choose one of {', '.join(DATASETS)}, or give the path of a "
                         f"folder with train/<class>/* and test/<class>/*")
    if name not in DATASETS:
        return _folder(Path(name), "train", n=n, **select), _folder(Path(name), "test", n=n_test, **select)
    folder = _in_parquet(name, root)
    if folder is not None:
        return (_parquet(folder / "train.parquet", n=n, **select),
                _parquet(folder / "test.parquet", n=n_test, **select))
    if name == "tiny_imagenet":
        (read_train, *of_train), (read_test, *of_test) = _tiny_imagenet(_root(root))
        return _chosen(read_train, *of_train, n=n, **select), _chosen(read_test, *of_test, n=n_test, **select)
    train, test = _torchvision(name, _root(root), download)
    return _part(train, n=n, **select), _part(test, n=n_test, **select)


def source(name: str, *, root: str | Path | None = None) -> str:
    """What results on the data that `load` would read are to be called: the name of the data set, "CIFAR-10 (JPEG)"
    where its images have been through a code that loses detail."""
    import pyarrow.parquet

    folder = _in_parquet(name, root)
    if folder is None:
        return name
    first = next(pyarrow.parquet.ParquetFile(folder / "train.parquet").iter_batches(1, columns=["img"]))
    return "CIFAR-10 (JPEG)" if first["img"][0].as_py()["bytes"].startswith(b"\xff\xd8") else name


def _root(root: str | Path | None) -> Path:
    return Path(root or os.environ.get("RUM_DATA") or "data")


def _in_parquet(name: str, root: str | Path | None) -> Path | None:
    """The folder with the data set as Parquet files, if there is one."""
    found = [folder for folder in (_root(root) / name, _root(root)) if (folder / "train.parquet").exists()]
    return found[0] if name == "cifar10" and found else None


def from_dataset(dataset, *, limit: float = 4e9, index: Tensor | None = None) -> Examples:
    """The pairs (image, class) of a torch Dataset as Examples: in memory, in its order, its transform applied once.

    dataset  with a length; an image is a tensor (c, h, w), an array of that shape, or a PIL image; all of one shape
    limit    bytes that the images may take; they are counted before they are read
    index    (n,) who each example is; its position in the dataset if not given

    Raises TypeError for what gives no pairs or whole classes, ValueError for too many or unequal images.
    """
    if not hasattr(dataset, "__len__") or not hasattr(dataset, "__getitem__"):
        raise TypeError(f"{type(dataset).__name__} has no length or positions; give a map-style Dataset, or collect "
                        f"its images and make Examples(x, y)")
    if not len(dataset):
        raise ValueError("the dataset is empty")
    first = _pair(dataset, 0)[0]
    n, size = len(dataset), len(dataset) * first.nbytes
    if size > limit:
        raise ValueError(f"{n} images {tuple(first.shape)} of {first.dtype} take {size / 1e9:.3g} GB, more than "
                         f"limit={limit / 1e9:.3g} GB: take a part (torch.utils.data.Subset), make them smaller or "
                         f"uint8, or raise limit=")
    x, y = torch.empty((n, *first.shape), dtype=first.dtype), torch.empty(n, dtype=torch.int64)
    for k in range(n):
        image, y[k] = _pair(dataset, k)
        if (image.shape, image.dtype) != (first.shape, first.dtype):
            raise ValueError(f"image {k} is {tuple(image.shape)} {image.dtype}, the first is {tuple(first.shape)} "
                             f"{first.dtype}; bring them to one size and type by the transform of the dataset")
        x[k] = image
    return Examples(x, y, index, names=tuple(getattr(dataset, "classes", ())))


def _pair(dataset, k: int) -> tuple[Tensor, int]:
    from PIL.Image import Image
    from torchvision.transforms.v2.functional import pil_to_tensor

    try:
        image, label = dataset[k]
        image = pil_to_tensor(image) if isinstance(image, Image) else torch.as_tensor(image)
        return image, whole(label)
    except (TypeError, ValueError) as problem:
        raise TypeError(f"item {k} of the dataset must be an image and its class, a whole number: "
                        f"{problem}") from problem


def gaussians(n: int = 1000, n_test: int = 1000, *, spread: float = 0.5, seed: int = 0) -> tuple[Examples, Examples]:
    """(train, test): points x (4 n, 2) around (1, 1), (1, -1), (-1, 1) and (-1, -1), n and n_test of each class.

    The demonstration of class unlearning in the plane (Kodge, Saha and Roy, TMLR 2024): normal, with standard deviation
    `spread`. A model for them: ``mlp(shape=(2,), classes=4, hidden=(64, 64, 64, 64), norm=True)``.
    """
    check_values("gaussians", n=(n, "int [1, inf)"), n_test=(n_test, "int [1, inf)"), spread=(spread, "(0, inf)"))
    random = torch.Generator().manual_seed(as_seed(seed))
    centres = torch.tensor([[1.0, 1.0], [1.0, -1.0], [-1.0, 1.0], [-1.0, -1.0]])
    labels = [torch.arange(4 * size) % 4 for size in (n, n_test)]
    return tuple(Examples(centres[y] + spread * torch.randn(len(y), 2, generator=random), y) for y in labels)


def _digits(noise: float, flips: float, seed: int) -> tuple[Examples, Examples]:
    """scikit-learn's 1,797 real digits: 1,297 to train, 500 to test; split, noise and flips drawn from `seed`."""
    from sklearn.datasets import load_digits

    check_values("digits", noise=(noise, "[0, inf)"), flips=(flips, "[0, 1)"))
    images, labels = load_digits(return_X_y=True)
    x = torch.tensor(images, dtype=torch.float32).view(-1, 1, 8, 8) / 16
    y = torch.tensor(labels)
    random = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(x), generator=random)
    spread = noise * torch.rand(len(x), generator=random) ** 2
    if noise:
        x = (x + spread.view(-1, 1, 1, 1) * torch.randn(x.shape, generator=random)).clamp(0, 1)
    flipped = torch.rand(len(x), generator=random) < flips
    flipped[order[1297:]] = False                            # the test labels stay true
    other = (y + torch.randint(1, 10, y.shape, generator=random)) % 10
    data = Examples(x, torch.where(flipped, other, y), info={"noise": spread, "flipped": flipped},
                    names=tuple("0123456789"))
    return data[order[:1297].sort().values], data[order[1297:].sort().values]


def _parquet(path: Path, **select) -> Examples:
    """The layout of the Hugging Face hub: img = {bytes, path}, label. Only the images that are kept get decoded."""
    import pyarrow.parquet
    from PIL import Image

    if not path.exists():
        raise FileNotFoundError(f"{path} is missing beside {path.parent}/train.parquet")
    table = pyarrow.parquet.read_table(path, columns=["img", "label"])
    y = torch.tensor(table["label"].to_numpy())
    coded = table["img"].combine_chunks().field("bytes")

    def decode(rows):
        return torch.stack([torch.from_numpy(np.array(Image.open(io.BytesIO(coded[int(i)].as_py())).convert("RGB")))
                            for i in rows]).permute(0, 3, 1, 2)

    names = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
    return _chosen(decode, y, names, **select)


def _folder(root: Path, part: str, **select) -> Examples:
    """Images in one folder per class, by torchvision; all are brought to one size (default 32)."""
    from torchvision.datasets import ImageFolder
    from torchvision.transforms.v2.functional import pil_to_tensor, resize

    tried = [root / part] if part == "train" else [root / part, root / "val"]
    found = [folder for folder in tried if folder.is_dir()]
    if not found:
        raise FileNotFoundError(f"no folder {' or '.join(map(str, tried))}; "
                                f"a folder of images needs train/<class>/* and test/<class>/*")
    images = ImageFolder(str(found[0]))
    size = select["size"] or 32
    return _chosen(lambda rows: torch.stack([resize(pil_to_tensor(images[int(i)][0]), [size, size]) for i in rows]),
                   torch.tensor(images.targets), tuple(images.classes), **select)


def _tiny_imagenet(root: Path) -> list[tuple[Callable, Tensor, tuple[str, ...]]]:
    """(how to decode rows, labels, names) of training and validation images, 64x64: classes in the order of their
    names, images in that of their files and of val_annotations.txt."""
    from torchvision.datasets import ImageFolder
    from torchvision.transforms.v2.functional import pil_to_tensor

    folder = next((f for f in (root / "tiny-imagenet-200", root / "tiny_imagenet", root) if (f / "val").is_dir()), None)
    if folder is None or not (folder / "val" / "val_annotations.txt").exists():
        raise FileNotFoundError(f"tiny_imagenet was not found under {root.resolve()}: unpack tiny-imagenet-200.zip "
                                f"there (it cannot be fetched with download=True), or point RUM_DATA or root= to it")
    images = ImageFolder(str(folder / "train"))
    lines = [line.split("\t") for line in (folder / "val" / "val_annotations.txt").read_text().splitlines()]
    validation = [(folder / "val" / "images" / Path(file).name, images.class_to_idx[c]) for file, c, *_ in lines]
    both = []
    for samples in (images.samples, validation):
        def decode(rows, samples=samples):
            return torch.stack([pil_to_tensor(images.loader(samples[int(i)][0])) for i in rows])

        both.append((decode, torch.tensor([c for _, c in samples]), tuple(images.classes)))
    return both


def _torchvision(name: str, root: Path, download: bool) -> tuple[Examples, Examples]:
    """torchvision's own files. Those of CIFAR are pickles, read only after their published checksum was found right."""
    import torchvision.datasets as sets

    kind = {"cifar10": sets.CIFAR10, "cifar100": sets.CIFAR100, "fashion_mnist": sets.FashionMNIST}[name]
    old = root / kind.__name__ / "processed"
    if old.exists():
        raise ValueError(f"{old} holds pickles of an old torchvision, which are not read: delete it, and load with "
                         f"download=True")
    try:
        parts = [kind(str(root), train=train, download=download) for train in (True, False)]
    except RuntimeError as problem:
        layouts = f"{root / name}/train.parquet and test.parquet, or " if name == "cifar10" else ""
        raise FileNotFoundError(f"{name} was not found under {root.resolve()}: put there {layouts}torchvision's files, "
                                f"point RUM_DATA or root= to them, or load with download=True") from problem
    both = []
    for part in parts:
        x = torch.as_tensor(part.data)
        x = x.unsqueeze(1) if x.ndim == 3 else x.permute(0, 3, 1, 2)
        both.append(Examples(x.contiguous(), torch.as_tensor(part.targets), names=tuple(part.classes)))
    return both[0], both[1]


def _part(data: Examples, **select) -> Examples:
    """The chosen ones of examples that are in memory; `index` and `info` stay theirs."""
    chosen = _chosen(lambda rows: data.x[rows], data.y, data.names, **select)
    rows = chosen.index
    info = {name: values[rows] for name, values in data.info.items()}
    return Examples(chosen.x, chosen.y, data.index[rows], info, chosen.names)


def _chosen(decode, y: Tensor, names: tuple[str, ...], *, classes, n, size, seed) -> Examples:
    """Those of the images with labels `y` that are asked for; index stays the row in the whole data set."""
    if classes is not None and (len(set(classes)) != len(classes) or not set(classes) <= set(y.tolist())):
        raise ValueError(f"classes must be different ones of {sorted(set(y.tolist()))}; got {classes}")
    rows = torch.arange(len(y)) if classes is None else torch.isin(y, torch.tensor(classes)).nonzero()[:, 0]
    if n is not None and not 0 < n <= len(rows):
        raise ValueError(f"n={n} images were asked for; there are {len(rows)}")
    if n is not None:
        rows = rows[torch.randperm(len(rows), generator=torch.Generator().manual_seed(seed))[:n]].sort().values
    x, y = decode(rows), y[rows]
    if size is not None and x.shape[-1] != size:
        resized = torch.nn.functional.interpolate(x.float(), (size, size), mode="area")
        x = resized.round().to(x.dtype) if x.dtype == torch.uint8 else resized
    if classes is not None:
        y = torch.stack([y == c for c in classes]).int().argmax(0)
        names = tuple(names[c] for c in classes) if names else ()
    return Examples(x.contiguous(), y, rows, names=names)


def forget_ids(path: str | Path, examples: Examples, *, column: str = "id") -> Tensor:
    """Mask of the examples that a deletion request names: their numbers in `index`, in one column of a CSV file.

    path      the file: commas between fields, UTF-8, a line of names first, each id once. Empty fields at the end of
              lines, as spreadsheets write them, are passed over
    examples  n of them, those asked for with an index of their own
    column    the name above the ids

    Returns a bool tensor (n,); ``examples.index[mask]`` are the ids that were read. Raises FileNotFoundError, and
    ValueError with the number of the line: for rows longer or shorter than the first line, a column that is missing or
    named twice, ids that are no whole numbers, that come twice, or that no example or several have.
    """
    lines = _ids(Path(path), column)
    asked = torch.tensor(list(lines))
    held = examples.index[torch.isin(examples.index, asked)]
    known, times = held.unique(return_counts=True)
    unknown = [k for k in lines if k not in set(known.tolist())]
    if unknown:
        raise ValueError(f"{len(unknown)} ids of {path} belong to none of the {len(examples)} examples, e.g. "
                         f"{unknown[:3]} (line {lines[unknown[0]]})")
    if (times > 1).any():
        raise ValueError(f"id {int(known[times > 1][0])} of {path} belongs to {int(times.max())} examples: give each "
                         f"example an index of its own")
    return torch.isin(examples.index, asked)


def _ids(path: Path, column: str) -> dict[int, int]:
    """id -> the line it stands in."""
    if not path.is_file():
        raise FileNotFoundError(f"there is no list of ids {path}")
    found = {}
    for line, (text,) in _rows(path, [column]):
        if not re.fullmatch("[0-9]{1,18}", text):
            raise ValueError(f"ids in {path} must be whole numbers, those of examples.index; line {line} has {text!r}")
        if int(text) in found:
            raise ValueError(f"id {int(text)} stands twice in {path}, in lines {found[int(text)]} and {line}: name it "
                             f"once, or mend the one that is wrong")
        found[int(text)] = line
    if not found:
        raise ValueError(f"ids in {path} must be whole numbers, those of examples.index; there are none")
    return found


# -- Files of strangers: sizes are checked before memory is taken, and nothing is unpickled ---------------------------


def columns(path: Path, names: list[str]) -> dict[str, np.ndarray]:
    """Columns of numbers, (n,) each, of a .npz or .csv file. The others are not read: there may be gigabytes of them.

    Raises FileNotFoundError without the file, and ValueError for a file that is damaged, does not hold these columns
    exactly once, or claims to be larger than a file of scores can be.
    """
    if path.suffix not in (".npz", ".csv"):
        raise ValueError(f"published scores are read from .npz and .csv files; got {path.name}")
    if not path.is_file():
        raise ValueError(f"{path} is no regular file") if path.exists() else FileNotFoundError(f"there is no {path}")
    if path.suffix == ".csv":
        found = [array("d") for _ in names]
        for line, fields in _rows(path, names):
            for name, text, column in zip(names, fields, found, strict=True):
                try:
                    column.append(float(text))
                except ValueError:
                    raise ValueError(f"{name!r} of {path} must be one number per example; line {line} has "
                                     f"{text[:40]!r}") from None
        return {name: np.array(column) for name, column in zip(names, found, strict=True)}
    try:
        return _npz(path, names)
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError, SyntaxError,
            MemoryError, UnicodeError) as problem:
        raise ValueError(f"{path} is no file of arrays, or damaged: {str(problem)[:80]}. Fetch it again") from problem


def _npz(path: Path, names: list[str]) -> dict[str, np.ndarray]:
    with zipfile.ZipFile(path) as file:
        held = [name.removesuffix(".npy") for name in file.namelist()]
        for name in names:
            if held.count(name) != 1:
                raise ValueError(f"{path} has {'several' if name in held else 'no'} {name!r}; it has {_shown(held)}")
        members = {name: file.getinfo(f"{name}.npy") for name in names}
        if any(m.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED) for m in members.values()):
            raise zipfile.BadZipFile("compressed in a way that NumPy does not use")
        found = {}
        for name, member in members.items():
            with file.open(member) as stream:
                found[name] = _array(stream, member.file_size, f"{name!r} of {path}")
        return found


def _array(stream: BinaryIO, size: int, what: str) -> np.ndarray:
    """The numbers (n,) of a .npy file of that size. What its header claims is checked before memory is taken."""
    version = np.lib.format.read_magic(stream)
    if version not in ((1, 0), (2, 0)):
        raise ValueError(f"{what} has the format {version}, which is none of plain numbers")
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    try:
        shape, _, dtype = read(stream)
    except ValueError as problem:                            # of several lines
        raise ValueError(f"{what} has no header of an array, or a damaged one. Fetch it again") from problem
    if dtype.hasobject:
        raise ValueError(f"{what} holds Python objects, which are never unpickled")
    if len(shape) != 1 or dtype.kind not in "iuf" or dtype.itemsize > 8:
        raise ValueError(f"{what} must be one number per example; got {dtype} {str(shape)[:60]}")
    if not 0 <= shape[0] <= MOST_VALUES:
        raise ValueError(f"{what} claims {shape[0]:.3g} values; a file of scores has at most {MOST_VALUES:,}")
    wanted = shape[0] * dtype.itemsize
    content = stream.read(wanted + 1) if stream.tell() + wanted == size else b""
    if len(content) != wanted:
        raise ValueError(f"{what} claims {shape[0]} values and does not have that size: it is damaged. Fetch it again")
    return np.frombuffer(content, dtype).astype("f8" if dtype.kind == "f" else "i8")


def _rows(path: Path, names: list[str]) -> Iterator[tuple[int, list[str]]]:
    """(number of the line, fields under these names) of all lines of a CSV file that hold anything. Empty fields at the
    end of a line, as spreadsheets write them, are passed over."""
    if path.stat().st_size > MOST_BYTES:
        raise ValueError(f"{path} has {path.stat().st_size:.3g} bytes; a file of scores has at most {MOST_BYTES:,}")
    with path.open(newline="", encoding="utf-8-sig") as file:
        header, reader = [], csv.reader(_lines(file, path), skipinitialspace=True, strict=True)
        try:
            for row in reader:
                row = [field.strip() for field in row]
                while len(row) > len(header) and not row[-1]:
                    row.pop()
                if not header:
                    header, at = row, row and [_place(path, name, row) for name in names]
                elif any(row):
                    if len(row) != len(header):
                        raise ValueError(f"line {reader.line_num} of {path} has {len(row)} fields, the first line "
                                         f"names {len(header)}: put a field that holds a comma in quotes, and no field "
                                         f"less")
                    yield reader.line_num, [row[place] for place in at]
        except (csv.Error, UnicodeDecodeError) as problem:
            raise ValueError(f"{path} is no CSV file in UTF-8: line {reader.line_num + 1}: {problem}") from problem
    if not header:
        raise ValueError(f"{path} is no CSV file: it is empty")


def _place(path: Path, name: str, header: list[str]) -> int:
    alike = [column for column in header if column.casefold().split() == str(name).casefold().split()]
    if len(alike) > 1:
        raise ValueError(f"the column {name!r} of {path} is ambiguous: its first line names {alike}. Rename all but "
                         f"one")
    if name not in header:
        raise ValueError(f"{path} has no column {name!r}; its first line names {_shown(header)}. Ask for one of these "
                         f"(column=, key=, labels=), or put the names above, with commas between them")
    return header.index(name)


def _shown(names: list[str]) -> str:
    return ", ".join(repr(name[:30]) for name in names[:8]) + " ..." * (len(names) > 8)


def _lines(file: TextIO, path: Path) -> Iterator[str]:
    while line := file.readline(LONGEST_LINE):
        if len(line) == LONGEST_LINE:
            raise ValueError(f"{path} has a line of {LONGEST_LINE:,} characters or more: it is no table of numbers")
        yield line
