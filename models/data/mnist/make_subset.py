"""Cut a small, class-balanced subset out of the full MNIST idx files.

usage: python make_subset.py FOLDER [OUT]

FOLDER holds the four full files under their standard names, plain or with .gz. OUT is where the
subset goes (default: beside this script). Needs the standard library only.

The first 600 training and the first 100 test digits of every class are taken, in file order, and
the order of the original file is kept. The same input always gives the same bytes.
"""

import gzip
import struct
import sys
from pathlib import Path

CLASSES = 10
PER_CLASS = {"train": 600, "t10k": 100}
IMAGES_MAGIC = 0x0803  # unsigned byte, three dimensions
LABELS_MAGIC = 0x0801  # unsigned byte, one dimension


def read(folder, name):
    plain = folder / name
    if plain.exists():
        return plain.read_bytes()
    return gzip.decompress((folder / (name + ".gz")).read_bytes())


def read_images(folder, split):
    data = read(folder, f"{split}-images-idx3-ubyte")
    magic, count, rows, columns = struct.unpack_from(">4I", data)
    size = rows * columns
    if magic != IMAGES_MAGIC or len(data) != 16 + count * size:
        sys.exit(f"{split} images: not an idx3 file of bytes, or cut short")
    images = [data[16 + i * size : 16 + (i + 1) * size] for i in range(count)]
    return images, rows, columns


def read_labels(folder, split):
    data = read(folder, f"{split}-labels-idx1-ubyte")
    magic, count = struct.unpack_from(">2I", data)
    if magic != LABELS_MAGIC or len(data) != 8 + count:
        sys.exit(f"{split} labels: not an idx1 file of bytes, or cut short")
    return data[8:]


def write(path, data):
    # No file name and no time in the header, so the bytes depend on the data alone.
    with path.open("wb") as raw:
        with gzip.GzipFile(filename="", mode="wb", compresslevel=9, fileobj=raw, mtime=0) as out:
            out.write(data)
    print(f"{path.name}: {path.stat().st_size} bytes")


def first_of_each_class(labels, per_class):
    taken = [0] * CLASSES
    kept = []
    for index, label in enumerate(labels):
        if taken[label] < per_class:
            taken[label] += 1
            kept.append(index)
    if min(taken) < per_class:
        sys.exit(f"a class has fewer than {per_class} digits: {taken}")
    return kept


def main():
    if len(sys.argv) not in (2, 3):
        sys.exit(__doc__)
    folder = Path(sys.argv[1])
    out = Path(sys.argv[2]) if len(sys.argv) == 3 else Path(__file__).resolve().parent
    out.mkdir(parents=True, exist_ok=True)
    for split, per_class in PER_CLASS.items():
        images, rows, columns = read_images(folder, split)
        labels = read_labels(folder, split)
        if len(images) != len(labels):
            sys.exit(f"{split}: {len(images)} images but {len(labels)} labels")
        kept = first_of_each_class(labels, per_class)
        header = struct.pack(">4I", IMAGES_MAGIC, len(kept), rows, columns)
        write(out / f"{split}-images-idx3-ubyte.gz", header + b"".join(images[i] for i in kept))
        header = struct.pack(">2I", LABELS_MAGIC, len(kept))
        write(out / f"{split}-labels-idx1-ubyte.gz", header + bytes(labels[i] for i in kept))


if __name__ == "__main__":
    main()
