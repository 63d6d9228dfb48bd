"""A folder with a few images of ten classes and the labels that people gave to fifty thousand."""

import io

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import torch
from PIL import Image

N = 50_000
PUBLISHED = {"clean": "clean_label", "aggre": "aggre_label", "worse": "worse_label", "random1": "random_label1",
             "random2": "random_label2", "random3": "random_label3"}


def labels():
    """name -> (50,000,): `clean`, and the others with a share of wrong ones of their own."""
    random = np.random.default_rng(0)
    clean = random.integers(0, 10, N)
    found = {"clean": clean}
    for name, share in (("aggre", 0.1), ("worse", 0.4), ("random1", 0.2), ("random2", 0.2), ("random3", 0.2)):
        found[name] = np.where(random.random(N) < share, (clean + random.integers(1, 10, N)) % 10, clean)
    return found


def images(folder, y):
    """Parquet files of one-coloured images with these labels; two of them to test."""
    folder.mkdir(parents=True, exist_ok=True)
    for part, known in (("train", y), ("test", y[:2])):
        coded = []
        for k in range(len(known)):
            file = io.BytesIO()
            Image.fromarray(np.full((8, 8, 3), k, np.uint8)).save(file, "PNG")
            coded.append({"bytes": file.getvalue(), "path": str(k)})
        pyarrow.parquet.write_table(pa.table({"img": coded, "label": np.array(known)}), folder / f"{part}.parquet")


def as_published(folder, found):
    """What torch.save makes of NumPy arrays, under the published names."""
    folder.mkdir(parents=True, exist_ok=True)
    torch.save({PUBLISHED.get(name, name): values for name, values in found.items()}, folder / "CIFAR-10_human.pt")


def as_archive(folder, found):
    folder.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(folder / "cifar10n.npz", **{name: values.astype("u1") for name, values in found.items()})
