"""Images: reads files or Parquet columns, yields a document for each image, and later its pixels.

A document's text is the SHA-256 of the encoded image: equal images are held out together, as equal texts are, and what
is collected later are the images that the table was made of, or an error.
"""

from __future__ import annotations

import bisect
import hashlib
import io
import itertools
import math
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from pipeline.tokens.document import CorpusFile, Document, Piece
from pipeline.tokens.files import find_files, open_file
from pipeline.tokens.patches import ImageInput
from schemas.corpus import ImagesCorpus
from schemas.errors import CorpusError, MismatchError, MissingError

Pixels = NDArray[np.float32]

_GROUPS_KEPT = 2
_FILTERS = {
    "nearest": Image.Resampling.NEAREST,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
}


def image_groups(corpus: ImagesCorpus, file: CorpusFile) -> Iterator[tuple[int, int, int]]:
    """``(start, stop, bytes)`` of what is read at once of a file: all of an image file, a row group of Parquet."""
    if not corpus.image_field:
        yield 0, file.size_bytes, file.size_bytes
        return
    with _parquet(corpus, file) as parquet:
        for group in range(parquet.metadata.num_row_groups):
            yield group, group + 1, parquet.metadata.row_group(group).total_byte_size


def read_images(corpus: ImagesCorpus, piece: Piece) -> Iterator[Document]:
    """Documents named by their file, in Parquet ``FILE@ROW``; images are looked at, but not decoded.

    Raises:
        CorpusError: what is no image, or no Parquet file with such a column.
    """
    for name, data in _encoded(corpus, piece):
        try:
            with Image.open(io.BytesIO(data)) as image:
                image.verify()
        except (UnidentifiedImageError, OSError, SyntaxError, ValueError) as error:
            where = f"corpus image {name} in {piece.file.url}"
            raise CorpusError(f"{where} cannot be read: {error}; leave it out") from error
        yield Document(name, hashlib.sha256(data).hexdigest())


def num_images(corpus: ImagesCorpus, files: Sequence[CorpusFile]) -> int:
    """Images of all files; of Parquet from the footers alone."""
    if not corpus.image_field:
        return len(files)
    total = 0
    for file in files:
        with _parquet(corpus, file) as parquet:
            total += parquet.metadata.num_rows
    return total


class ImageSource:
    """The images of a corpus by the names that its table has for them; of Parquet some row groups stay in memory."""

    def __init__(self, corpus: ImagesCorpus) -> None:
        """Lists the files. Raises MissingError, CorpusError."""
        self._corpus = corpus
        self._files: dict[str, list[CorpusFile]] = {}
        for file in find_files(corpus.urls):
            name = file.name.encode("utf-8", "surrogateescape").decode("utf-8", "replace")
            self._files.setdefault(name, []).append(file)
        self._groups: OrderedDict[tuple[str, int], dict[int, bytes]] = OrderedDict()

    def read(self, name: str, sha256: str) -> bytes:
        """The encoded image whose SHA-256's own SHA-256 (a document's, as the table has it) is ``sha256``.

        Raises:
            MissingError: no file of the name. MismatchError: another image is there now.
        """
        path, _, row = name.rpartition("@") if self._corpus.image_field else (name, "", "0")
        for file in self._files.get(path, []):
            data = self._row(file, int(row)) if self._corpus.image_field else _whole(file)
            if hashlib.sha256(hashlib.sha256(data).hexdigest().encode()).hexdigest() == sha256:
                return data
        if path not in self._files:
            raise MissingError(f"image {name} of the token table is not at {list(self._corpus.urls)} any more")
        raise MismatchError(
            f"image {name} at {list(self._corpus.urls)} is not the one that the token table was made of; restore it, "
            "or collect into another store with another tokens.output"
        )

    def _row(self, file: CorpusFile, row: int) -> bytes:
        with _parquet(self._corpus, file) as parquet:
            sizes = [parquet.metadata.row_group(group).num_rows for group in range(parquet.metadata.num_row_groups)]
        ends = [*itertools.accumulate(sizes)]
        group = bisect.bisect_right(ends, row)
        key = (file.url, group)
        if key not in self._groups:
            first = ends[group] - sizes[group]
            found = _encoded(self._corpus, Piece(file, group, group + 1))
            self._groups[key] = {first + index: data for index, (_, data) in enumerate(found)}
            while len(self._groups) > _GROUPS_KEPT:
                self._groups.popitem(last=False)
        return self._groups[key][row]


def pixels(data: bytes, image: ImageInput, *, name: str) -> Pixels:
    """float32 [3, size, size]: decoded as RGB, resized and cropped by Pillow, (value / 255 - mean) / std.

    Raises:
        CorpusError: an image that does not decode.
    """
    try:
        with Image.open(io.BytesIO(data)) as opened:
            picture = _fitted(opened.convert("RGB"), image)
    except (OSError, SyntaxError, ValueError) as error:
        raise CorpusError(f"corpus image {name} does not decode: {error}; leave it out") from error
    values: Any = np.asarray(picture, dtype=np.float32) / np.float32(255)
    values = (values - np.array(image.mean, np.float32)) / np.array(image.std, np.float32)
    return np.ascontiguousarray(values.transpose(2, 0, 1))


def _fitted(picture: Image.Image, image: ImageInput) -> Image.Image:
    resample, size = _FILTERS[image.resample], image.size
    if image.fit == "stretch":
        return picture.resize((size, size), resample)
    width, height = picture.size
    shorter = min(width, height)
    # As torchvision's Resize and CenterCrop: the longer side is rounded down, the margin to even.
    sides = [int(image.resized * side / shorter) for side in (width, height)]
    picture = picture.resize((sides[0], sides[1]), resample)
    left, top = (round((side - size) / 2) for side in sides)
    return picture.crop((left, top, left + size, top + size))


def _encoded(corpus: ImagesCorpus, piece: Piece) -> Iterator[tuple[str, bytes]]:
    if not corpus.image_field:
        yield piece.file.name, _whole(piece.file)
        return
    with _parquet(corpus, piece.file) as parquet:
        row = sum(parquet.metadata.row_group(group).num_rows for group in range(piece.start))
        for group in range(piece.start, piece.stop):
            column = parquet.read_row_group(group, columns=[corpus.image_field], use_threads=False).column(0)
            for value in column.to_pylist():
                data = value.get("bytes") if isinstance(value, dict) else value
                if not isinstance(data, bytes):
                    raise CorpusError(f"corpus file {piece.file.url}: row {row} of {corpus.image_field!r} has no image")
                yield f"{piece.file.name}@{row}", data
                row += 1


def _whole(file: CorpusFile) -> bytes:
    with open_file(file) as stream:
        return stream.read()


@contextmanager
def _parquet(corpus: ImagesCorpus, file: CorpusFile) -> Iterator[Any]:
    with open_file(file) as stream:
        try:
            parquet = pq.ParquetFile(stream)
        except (pa.ArrowInvalid, OSError) as error:
            raise CorpusError(
                f"corpus file {file.url} cannot be read as Parquet: {error}; "
                "leave corpus.image_field out if it is an image"
            ) from error
        names = list(parquet.schema_arrow.names)
        if corpus.image_field not in names:
            raise CorpusError(f"corpus file {file.url} has no column {corpus.image_field!r}; its columns are {names}")
        yield parquet


def require_crop(image: ImageInput) -> None:
    """Raises ValueError where the part that is kept would reach beyond the resized image."""
    if image.fit == "crop" and image.resized < image.size:
        raise ValueError(f"images resized to {image.resized} pixels cannot be cropped to {image.size}")
    if image.size % image.patch_size or math.prod((image.size, image.patch_size)) == 0:
        raise ValueError(f"images of {image.size} pixels are no whole number of patches of {image.patch_size}")
