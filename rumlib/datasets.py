"""Reading data: known data sets, folders of images, torch Datasets, labels of annotators, lists of what must be
forgotten.

    train, test = load("digits")             # real 8x8 digits, embedded; noise and flipped labels are known
    train, test = load("cifar10", root=...)  # Parquet or torchvision's files; also cifar100, ..., a folder
    train, test = load("cifar10", labels="random1")          # as one annotator labelled it (CIFAR-10N)
    train = from_dataset(my_dataset)         # any torch Dataset of (image, class) pairs
    train, test = gaussians()                # points in the plane around four centres, a class each
    mask = forget_ids("forget.csv", train)   # a deletion request: a column "id" with numbers of train.index
"""

from __future__ import annotations

import io
import os
import re
from collections.abc import Callable, Iterable
from dataclasses import replace
from operator import index as whole
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from rumlib.columns import columns, rows
from rumlib.data import Examples
from rumlib.device import as_seed, check_values

COUNT = "int [1, inf) or None"
DATASETS = ("digits", "cifar10", "cifar100", "fashion_mnist", "tiny_imagenet")
LABELS = {"random1": "random_label1", "random2": "random_label2", "random3": "random_label3", "aggre": "aggre_label",
          "worse": "worse_label", "clean": "clean_label"}    # their names in the published file
FLIPS = 0.05                                                 # of the digits


def load(name: str, *, root: str | Path | None = None, download: bool = False, classes: tuple[int, ...] | None = None,
         n: int | None = None, n_test: int | None = None, size: int | None = None, seed: int = 0,
         noise: float = 1.0, flips: float | None = None, labels: str | None = None) -> tuple[Examples, Examples]:
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
    flips     share of training labels moved to another class, drawn from `seed`: info["flipped"] says which, and
              info["clean"] holds the true labels. None: 0.05 of the digits, none of other data. 0: none
    labels    cifar10: the training labels that people gave, with the same info. "random1", "random2" and "random3" are
              of one annotator each, "aggre" is their majority, "worse" a wrong one of the three where there is one.
              They are read from cifar10n/CIFAR-10_human.pt (as published) or cifar10n/cifar10n.npz under `root`.
              Source: Wei et al., arXiv 2110.12088

    Raises ValueError for an unknown name and for labels of other data, and FileNotFoundError, saying where it looked,
    for missing files.

    >>> train, test = load("digits", n=100)
    >>> len(train), len(test), tuple(train.x.shape), sorted(train.info)
    (100, 500, (100, 1, 8, 8), ['clean', 'flipped', 'noise'])
    """
    seed = as_seed(seed)
    check_values("load", n=(n, COUNT), n_test=(n_test, COUNT), size=(size, COUNT))
    if classes is not None and (isinstance(classes, str) or not isinstance(classes, Iterable) or not list(classes)):
        raise ValueError(f"classes must be a tuple of one class or more, e.g. classes=(3, 5); got {classes!r}")
    if not isinstance(name, str | Path):
        raise TypeError(f"the name of a data set or the path of a folder is asked for; got {name!r}")
    if flips is not None:
        check_values("load", flips=(flips, "[0, 1)"))
    if labels is not None:
        _check_labels(name, labels, classes, flips)
    train, test = _load(name, root=root, download=download, classes=classes, n=n, n_test=n_test, size=size, seed=seed,
                        noise=noise, flips=FLIPS if flips is None else flips)
    if labels is not None:
        return _relabelled(train, labels, _root(root) / "cifar10n"), test
    return (_flipped(train, flips, seed) if flips and name != "digits" else train), test


def _load(name: str | Path, *, root, download, classes, n, n_test, size, seed, noise, flips):
    """(train, test) with the labels of the files, but for the digits."""
    select = dict(classes=classes, seed=seed, size=size)
    if name == "digits":
        train, test = _digits(noise, flips, seed)
        return _part(train, n=n, **select), _part(test, n=n_test, **select)
    if name not in DATASETS and not Path(name).is_dir():
        raise ValueError(f"unknown data set {name!r}; choose one of {', '.join(DATASETS)}, or give the path of a "
                         f"folder with train/<class>/* and test/<class>/*")
    if name not in DATASETS:
        train, test = _folder(Path(name), "train", n=n, **select), _folder(Path(name), "test", n=n_test, **select)
        if train.names != test.names:                        # else the same class would have another number
            raise ValueError(f"{name} has other classes in its two parts, e.g. "
                             f"{sorted({*train.names} ^ {*test.names})[:3]}: train/ and test/ need the same folders")
        return train, test
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

    Raises TypeError for what gives no pairs or whole classes, ValueError for too many or unequal images and for an item
    that cannot be read.
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
        item = dataset[k]
    except Exception as problem:                             # the dataset is not ours: it may raise anything
        raise ValueError(f"item {k} of the dataset cannot be read; dataset[{k}] raises "
                         f"{type(problem).__name__}: {problem}") from problem
    try:
        image, label = item
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

    check_values("digits", noise=(noise, "[0, inf)"))
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
    data = Examples(x, torch.where(flipped, other, y), info={"noise": spread, "flipped": flipped, "clean": y},
                    names=tuple("0123456789"))
    return data[order[:1297].sort().values], data[order[1297:].sort().values]


# -- Wrong labels -----------------------------------------------------------------------------------------------------


def _check_labels(name: str | Path, labels: str, classes: object, flips: float | None) -> None:
    known = [label for label in LABELS if label != "clean"]
    if name != "cifar10":
        raise ValueError(f"labels={labels!r} are of the images of cifar10; {name!r} has none from annotators")
    if labels not in known:
        raise ValueError(f"labels must be one of {', '.join(known)}, or None: those of the data set; got {labels!r}")
    if classes is not None or flips is not None:
        raise ValueError(f"labels={labels!r} go with all ten classes and without flips: leave out classes= and flips=")


def _relabelled(train: Examples, labels: str, folder: Path) -> Examples:
    """The training images of CIFAR-10 with the labels of annotators. The clean labels of the file prove its order."""
    paths = folder / "CIFAR-10_human.pt", folder / "cifar10n.npz"
    path = next((path for path in paths if path.exists()), None)
    if path is None:
        raise FileNotFoundError(f"the human labels of cifar10 were not found: looked for {paths[0].resolve()} and "
                                f"{paths[1].name} beside it. Get data/CIFAR-10_human.pt of the repository "
                                f"UCSC-REAL/cifar-10-100n (licence CC BY-NC 4.0), or point RUM_DATA or root= to it")
    names = [LABELS[name] if path.suffix == ".pt" else name for name in (labels, "clean")]
    given, clean = (torch.from_numpy(values) for values in columns(path, names).values())
    for name, values in zip(names, (given, clean), strict=True):
        if len(values) != 50_000 or values.is_floating_point() or int(values.min()) < 0 or int(values.max()) > 9:
            raise ValueError(f"{name!r} of {path} must be 50,000 whole numbers from 0 to 9, one for each training "
                             f"image; got {len(values):,} from {values.min():g} to {values.max():g}. Fetch it again"
                             if len(values) else f"{name!r} of {path} is empty. Fetch it again")
    if (differ := int((clean[train.index] != train.y).sum())):
        raise ValueError(f"the clean labels of {path} differ from those of the images for {differ} of {len(train)}: "
                         f"the images are of other data, or in another order than published")
    return _with_labels(train, given[train.index])


def _flipped(train: Examples, share: float, seed: int) -> Examples:
    """That share of the labels moved to another class, each equally likely."""
    random = torch.Generator().manual_seed(seed)
    rows = torch.randperm(len(train), generator=random)[:round(share * len(train))]
    classes, moved = max(len(train.names), int(train.y.max()) + 1), train.y.clone()
    moved[rows] = (moved[rows] + torch.randint(1, classes, rows.shape, generator=random)) % classes
    return _with_labels(train, moved)


def _with_labels(train: Examples, y: Tensor) -> Examples:
    return replace(train, y=y, info={**train.info, "flipped": y != train.y, "clean": train.y})


# -- Files ------------------------------------------------------------------------------------------------------------


def _parquet(path: Path, **select) -> Examples:
    """The layout of the Hugging Face hub: img = {bytes, path}, label. Only the images that are kept get decoded."""
    import pyarrow.parquet
    from PIL import Image

    if not path.exists():
        raise FileNotFoundError(f"{path} is missing beside {path.parent}/train.parquet")
    try:
        table = pyarrow.parquet.read_table(path, columns=["img", "label"])
        y = torch.tensor(table["label"].to_numpy())
        coded = table["img"].combine_chunks().field("bytes")
    except (pyarrow.ArrowException, AttributeError, KeyError, TypeError) as problem:
        raise ValueError(f"{path} is damaged, or does not have the columns img = {{bytes, path}} and label (whole "
                         f"numbers): {problem}") from problem

    def decode(rows):
        return _stack(path, rows, lambda i: torch.from_numpy(np.array(
            Image.open(io.BytesIO(coded[i].as_py())).convert("RGB")))).permute(0, 3, 1, 2)

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
    return _chosen(lambda rows: _stack(found[0], rows, lambda i: resize(pil_to_tensor(images[i][0]), [size, size])),
                   torch.tensor(images.targets), tuple(images.classes), **select)


def _stack(path: Path, rows: Tensor, read: Callable[[int], Tensor]) -> Tensor:
    """The images of these rows. Raises ValueError for one that is damaged, or of another size than the first."""
    from PIL import Image

    found = []
    for i in map(int, rows):
        try:
            found.append(read(i))
        except (OSError, TypeError, SyntaxError, Image.DecompressionBombError) as problem:
            raise ValueError(f"image {i} of {path} cannot be read: {problem}. Replace or remove it") from problem
        if found[0].shape != found[-1].shape:
            raise ValueError(f"image {i} of {path} has shape {tuple(found[-1].shape)}, the first "
                             f"{tuple(found[0].shape)}: bring them to one size")
    return torch.stack(found)


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
    wrong = next((line for line in lines if len(line) < 2 or line[1] not in images.class_to_idx), None)
    if wrong or not lines:
        raise ValueError(f"{folder / 'val' / 'val_annotations.txt'} must name an image and one of the classes of "
                         f"train/ in each line; got {wrong}")
    validation = [(folder / "val" / "images" / Path(file).name, images.class_to_idx[c]) for file, c, *_ in lines]
    both = []
    for samples in (images.samples, validation):
        def decode(rows, samples=samples):
            return _stack(folder, rows, lambda i: pil_to_tensor(images.loader(samples[i][0])))

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
    if names and len(y) and int(y.max()) >= len(names):
        raise ValueError(f"label {int(y.max())} is out of range: there are {len(names)} classes, "
                         f"{', '.join(names[:10])}")
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
    for line, (text,) in rows(path, [column]):
        if not re.fullmatch("[0-9]{1,18}", text):
            raise ValueError(f"ids in {path} must be whole numbers, those of examples.index; line {line} has {text!r}")
        if int(text) in found:
            raise ValueError(f"id {int(text)} stands twice in {path}, in lines {found[int(text)]} and {line}: name it "
                             f"once, or mend the one that is wrong")
        found[int(text)] = line
    if not found:
        raise ValueError(f"ids in {path} must be whole numbers, those of examples.index; there are none")
    return found
