"""Hugging Face datasets, streamed: reads a range of examples, yields a document for each (extra ``hf``)."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pipeline.tokens.document import CorpusFile, Document, Piece
from pipeline.tokens.files import digest_files, find_files
from pipeline.tokens.linear import read_range
from schemas.corpus import HuggingFaceCorpus
from schemas.errors import CorpusError, MissingError, SpecError, UnreachableError
from schemas.fingerprint import canonical_json


def dataset_file(corpus: HuggingFaceCorpus) -> CorpusFile:
    """The whole split as one file: a local folder by its content, a Hub name by the commit of its revision."""
    if Path(corpus.path).is_dir():
        files = digest_files(find_files([f"{Path(corpus.path).absolute()}/**/*"]))
        facts = canonical_json([[file.name, file.digest] for file in files])
        digest = f"sha256:{hashlib.sha256(facts).hexdigest()}"
    else:
        digest = f"hub:{corpus.path}@{_commit(corpus)}"
    return CorpusFile(corpus.split, f"{corpus.path}#{corpus.config}", 0, digest)


def document_ranges(corpus: HuggingFaceCorpus) -> Iterator[tuple[int, int]]:
    """Ranges of ``documents_per_part`` documents. The stream is counted along where the dataset does not know its
    length, keeping one example at a time."""
    dataset = _stream(corpus)
    step = corpus.documents_per_part
    total = _known_length(dataset, corpus.split)
    if total:
        yield from ((start, min(start + step, total)) for start in range(0, total, step))
        return
    count = 0
    for count, _ in enumerate(dataset, 1):
        if count % step == 0:
            yield count - step, count
    if count % step:
        yield count - count % step, count


def known_length(corpus: HuggingFaceCorpus) -> int:
    """Examples that the dataset says it has; 0 where it says nothing."""
    return _known_length(_stream(corpus), corpus.split)


def read_dataset(corpus: HuggingFaceCorpus, piece: Piece) -> Iterator[Document]:
    """Documents named ``SPLIT@INDEX``; a null is a document without text.

    Raises:
        CorpusError: no such column, or one that holds no text.
    """
    key = f"{piece.file.url}#{piece.file.digest}#{corpus.split}"
    for index, example in read_range(key, piece.start, piece.stop, lambda: enumerate(_stream(corpus))):
        if corpus.text_field not in example:
            raise CorpusError(
                f"dataset {corpus.path}, split {corpus.split!r} has no column {corpus.text_field!r}; its columns are "
                f"{sorted(example)}; name the one that holds the text in corpus.text_field"
            )
        text = example[corpus.text_field]
        if text is not None and not isinstance(text, str):
            raise CorpusError(
                f"dataset {corpus.path}, split {corpus.split!r}, example {index}: column {corpus.text_field!r} is "
                f"{type(text).__name__}, expected text"
            )
        yield Document(f"{corpus.split}@{index}", text or "")


def _stream(corpus: HuggingFaceCorpus) -> Any:
    """The split as an iterable of examples."""
    datasets = _require("datasets")
    name = None if corpus.config == "default" else corpus.config
    revision = None if Path(corpus.path).is_dir() else corpus.revision
    try:
        return datasets.load_dataset(corpus.path, name, split=corpus.split, streaming=True, revision=revision)
    except FileNotFoundError as exc:
        raise MissingError(f"dataset {corpus.path!r} is not there or has no data files: {exc}") from exc
    except ConnectionError as exc:
        raise UnreachableError(f"dataset {corpus.path!r}: the Hugging Face Hub does not answer: {exc}") from exc
    except (ValueError, RuntimeError, OSError) as exc:
        raise CorpusError(f"dataset {corpus.path!r} cannot be read as the spec says: {exc}") from exc


def _known_length(dataset: Any, split: str) -> int:
    """Examples that the dataset's card promises; 0 where it says nothing."""
    splits = dataset.info.splits or {}
    return int(splits[split].num_examples or 0) if split in splits else 0


def _commit(corpus: HuggingFaceCorpus) -> str:
    hub = _require("huggingface_hub")
    try:
        return str(hub.HfApi().dataset_info(corpus.path, revision=corpus.revision).sha)
    except hub.errors.RepositoryNotFoundError as exc:
        raise MissingError(f"dataset {corpus.path!r} is no local folder and not on the Hugging Face Hub") from exc
    except hub.errors.RevisionNotFoundError as exc:
        raise MissingError(f"dataset {corpus.path!r} has no revision {corpus.revision!r}") from exc
    except hub.errors.HFValidationError as exc:
        raise SpecError(f"corpus.path {corpus.path!r} is neither a folder nor a Hub name: {exc}") from exc
    except (OSError, hub.errors.OfflineModeIsEnabled) as exc:
        raise UnreachableError(
            f"dataset {corpus.path!r} is no local folder, and the Hugging Face Hub does not answer: {exc}"
        ) from exc


def _require(module: str) -> Any:
    """Import what only the extra ``hf`` installs."""
    try:
        return __import__(module)
    except ImportError as exc:
        raise SpecError(
            f"corpus.format huggingface needs the package {module!r}; install the extra: pip install 'headworks[hf]'"
        ) from exc
