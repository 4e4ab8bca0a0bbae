"""How many tokens a corpus has, without tokenising it: a sample of its documents goes through tokenizer and packer.

1. List the files; nothing is digested.
2. Draw clusters (the beginning of a file, of a row group, a stretch of lines) at random until 4 MiB of text are read.
3. Tokenise and pack them as the job will; rows for each byte read, times the bytes of the corpus, is the estimate.

The standard error is that of a ratio estimator over the clusters. Special tokens, separators and short contexts are in
the estimate, because the sample is packed by the same code.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from pipeline.store.rows import TokenRows
from pipeline.tokens.corpus import read_documents
from pipeline.tokens.document import CorpusFile, CorpusPart, Document, Piece
from pipeline.tokens.files import find_files
from pipeline.tokens.generated import generated_file
from pipeline.tokens.huggingface import dataset_file, known_length
from pipeline.tokens.images import num_images
from pipeline.tokens.json_lines import expansion, is_compressed
from pipeline.tokens.linear import close_stream
from pipeline.tokens.packing import TokenisedDocument, pack
from pipeline.tokens.parquet_rows import row_group_rows, row_group_sizes
from pipeline.tokens.part import is_held_out, rows_of, special_ids, text_sha256
from pipeline.tokens.table import load_spec_tokenizer
from pipeline.tokens.tokenizer import Tokenizer
from schemas.corpus import HuggingFaceCorpus, ImagesCorpus, JsonLinesCorpus, ParquetCorpus, TextCorpus, TokensSpec
from schemas.errors import CorpusError
from schemas.grammar import GrammarCorpus
from schemas.model import ModelSpec

SAMPLE_BYTES = 4 * 2**20
"""Text that is tokenised for an estimate."""
_CLUSTER_BYTES = 2**17
_CLUSTER_DOCUMENTS = 64
_GRID = 4096
_HEAD_CLUSTERS = 16
_EXPANSION_BYTES = 2**25  # decompressors read up to 128 KiB ahead, which is little beside this
_SEED = 0


@dataclass(frozen=True)
class TokenEstimate:
    """What the sample says of the corpus."""

    num_rows: float
    """Rows of the whole corpus; infinite where the corpus does not say how large it is."""
    relative_error: float
    """One standard error, as a share of ``num_rows``; 0 where everything was read, NaN of a single cluster."""
    sample: TokenRows
    """Packed rows of the sample."""
    specials: dict[str, int]
    """Special tokens by role."""

    @property
    def at_least(self) -> float:
        """Rows that the corpus has in all likelihood: three standard errors below the estimate."""
        error = 0.5 if math.isnan(self.relative_error) else self.relative_error
        return self.num_rows * max(0.0, 1 - 3 * error)

    @property
    def mean_context(self) -> float:
        """Mean length of a context of the sample."""
        return len(self.sample) / max(1, int((self.sample.position == 0).sum()))


@dataclass(frozen=True)
class _Cluster:
    """A part of the corpus that is drawn as one."""

    piece: Piece
    weight: float = 0.0
    """Of it, in the unit of the corpus's size; 0: the bytes of its text."""
    num_documents: int = 0
    """In it, where that is known: ``weight`` is then shared among those that are read."""


@dataclass(frozen=True)
class _Frame:
    """What clusters are drawn from."""

    size: float
    """Of the corpus: bytes of text, or documents."""
    clusters: list[_Cluster]


def estimate(spec: TokensSpec, model: ModelSpec) -> TokenEstimate:
    """Read a sample. The same spec and files give the same estimate.

    Raises:
        MissingError, CorpusError, SpecError: as making the table would.
    """
    tokenizer = load_spec_tokenizer(spec, model)
    if isinstance(spec.corpus, ImagesCorpus):
        return _of_images(spec.corpus, tokenizer)
    frame = _frame(spec)
    drawn: list[tuple[float, list[TokenisedDocument]]] = []
    order = random.Random(_SEED).sample(frame.clusters, len(frame.clusters))
    read = 0
    for cluster in order:
        weight, documents, size_bytes = _tokenised(spec, tokenizer, cluster, sum(len(each) for _, each in drawn))
        drawn.append((weight, documents))
        read += size_bytes
        if read >= SAMPLE_BYTES:
            break
    close_stream()
    weights = np.array([weight for weight, _ in drawn])
    counts = np.array([_count(spec, tokenizer, documents) for _, documents in drawn], dtype=np.float64)
    documents = [one for _, each in drawn for one in each]
    sample = rows_of(list(pack(documents, spec.packing, **special_ids(spec.packing, tokenizer))))
    if not len(sample):
        raise CorpusError(f"the {len(drawn)} places of the corpus that were looked at have no tokens")
    rows = len(sample) / weights.sum() * frame.size
    is_all = len(drawn) == len(frame.clusters)
    return TokenEstimate(rows, _relative_error(weights, counts, frame.size, is_all), sample, tokenizer.specials)


def _of_images(corpus: ImagesCorpus, tokenizer: Tokenizer) -> TokenEstimate:
    """Exact: every image has as many rows."""
    rows = np.arange(tokenizer.vocab_size)
    zeros = np.zeros_like(rows)
    sample = TokenRows(rows, rows.astype(np.int32), zeros, rows.astype(np.int32), zeros.astype(np.bool_))
    num_rows = num_images(corpus, find_files(corpus.urls)) * len(rows)
    return TokenEstimate(float(num_rows), 0.0, sample, tokenizer.specials)


def _count(spec: TokensSpec, tokenizer: Tokenizer, documents: list[TokenisedDocument]) -> int:
    """Rows of a cluster by itself; its tokens where documents are joined, as the ends of contexts would add noise."""
    if spec.packing.mode == "packed":
        return sum(len(one.token_id) for one in documents)
    return sum(len(one.token_id) for one in pack(documents, spec.packing, **special_ids(spec.packing, tokenizer)))


def _relative_error(weights: np.ndarray, counts: np.ndarray, size: float, is_all: bool) -> float:
    """Of the ratio of sums, with the correction for a finite corpus."""
    if is_all and weights.sum() >= 0.999 * size:
        return 0.0
    num = len(weights)
    if num < 2 or not counts.sum():
        return math.nan
    residuals = counts - counts.sum() / weights.sum() * weights
    variance = num / (num - 1) * float((residuals**2).sum())
    left = max(0.0, 1 - float(weights.sum()) / size) if math.isfinite(size) else 1.0
    return math.sqrt(variance * left) / float(counts.sum())


def _frame(spec: TokensSpec) -> _Frame:
    corpus = spec.corpus
    if isinstance(corpus, HuggingFaceCorpus):
        return _of_documents(dataset_file(corpus), known_length(corpus), _CLUSTER_DOCUMENTS * 16)
    if isinstance(corpus, GrammarCorpus):
        return _of_documents(generated_file(corpus), corpus.num_documents, corpus.num_documents)
    files = find_files(corpus.urls, corpus.exclude if isinstance(corpus, TextCorpus) else ())
    if isinstance(corpus, TextCorpus):
        clusters = [_Cluster(Piece(file, 0, file.size_bytes)) for file in files if file.size_bytes]
        size = float(sum(file.size_bytes for file in files))
    elif isinstance(corpus, JsonLinesCorpus):
        clusters, size = _of_lines(files)
    else:
        assert isinstance(corpus, ParquetCorpus), "images are counted, not sampled"
        clusters, size = _of_row_groups(corpus, files)
    if not clusters:
        raise CorpusError(f"all {len(files)} files of the corpus {list(corpus.urls)} are empty")
    return _Frame(size, clusters)


def _of_lines(files: list[CorpusFile]) -> tuple[list[_Cluster], float]:
    """Stretches of lines on a grid; of compressed files, which cannot be entered in the middle, the first ones."""
    clusters: list[_Cluster] = []
    size = 0.0
    ratio = _expansion([file for file in files if is_compressed(file)])
    for file in files:
        text_bytes, step, end = file.size_bytes, max(_CLUSTER_BYTES, file.size_bytes // _GRID), file.size_bytes
        if is_compressed(file):
            text_bytes, step = int(file.size_bytes * ratio), _CLUSTER_BYTES
            end = min(text_bytes, _HEAD_CLUSTERS * _CLUSTER_BYTES)
        size += text_bytes
        for start in range(0, end, step):
            stop = min(start + _CLUSTER_BYTES, text_bytes)
            clusters.append(_Cluster(Piece(file, start, stop), stop - start))
    return clusters, size


def _expansion(files: list[CorpusFile]) -> float:
    """Bytes of text for each byte of compressed files, of some of them."""
    held = [file for file in files if file.size_bytes]
    some = random.Random(_SEED).sample(held, min(len(held), 8))
    size_bytes = sum(file.size_bytes for file in some)
    return sum(expansion(file, _EXPANSION_BYTES) * file.size_bytes for file in some) / size_bytes if some else 1.0


def _of_row_groups(corpus: ParquetCorpus, files: list[CorpusFile]) -> tuple[list[_Cluster], float]:
    clusters = []
    for file in files:
        groups = zip(row_group_sizes(corpus, file), row_group_rows(corpus, file), strict=True)
        for group, (size, num_rows) in enumerate(groups):
            if num_rows:
                clusters.append(_Cluster(Piece(file, group, group + 1), size, num_rows))
    return clusters, float(sum(cluster.weight for cluster in clusters))


def _of_documents(file: CorpusFile, count: int, most: int) -> _Frame:
    """The first ``most`` documents of a stream of ``count`` (0: nobody knows): of one that cannot be entered elsewhere
    without reading everything before."""
    stop = min(most, count or math.inf)
    starts = range(0, int(stop), _CLUSTER_DOCUMENTS)
    ranges = [(start, int(min(start + _CLUSTER_DOCUMENTS, stop))) for start in starts]
    clusters = [_Cluster(Piece(file, start, end), end - start, end - start) for start, end in ranges]
    return _Frame(float(count) if count else math.inf, clusters)


def _tokenised(
    spec: TokensSpec, tokenizer: Tokenizer, cluster: _Cluster, first_id: int
) -> tuple[float, list[TokenisedDocument], int]:
    """``(weight, documents with ids from first_id on, bytes of text)`` of a cluster."""
    documents = list(_beginning(read_documents(spec, CorpusPart(0, (cluster.piece,))), cluster))
    texts = [text for _, text in documents]
    encoded = tokenizer.encode(texts)
    made = [
        TokenisedDocument(
            first_id + index,
            token_id,
            is_held_out(text_sha256(document), seed=spec.seed, fraction=spec.held_out_fraction),
        )
        for index, ((document, _), token_id) in enumerate(zip(documents, encoded, strict=True))
    ]
    read = sum(len(text.encode("utf-8", "replace")) for text in texts)
    if cluster.num_documents:
        return cluster.weight * len(made) / cluster.num_documents, made, read
    # A context of a truncated document says nothing of the rest: then the whole documents are what was read.
    is_truncated = spec.packing.mode == "document" and spec.packing.long_documents == "truncate"
    whole = sum(len(document.text.encode("utf-8", "replace")) for document, _ in documents)
    return cluster.weight or float(whole if is_truncated else read), made, read


def _beginning(documents: Iterator[Document], cluster: _Cluster) -> Iterator[tuple[Document, str]]:
    """Documents with their texts. Where the weight of a part of the cluster can be told, no more than a cluster's worth
    of text: of a row group the first documents, of a file its beginning."""
    is_known, left = cluster.weight > 0, 2 * _CLUSTER_BYTES
    for document in documents:
        yield document, document.text if is_known else document.text[:left]
        left -= len(document.text)
        if left <= 0 and (cluster.num_documents or not is_known):
            return
