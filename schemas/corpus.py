"""What text a job reads and how it becomes a token table."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, NonNegativeInt, PositiveInt, model_validator

from schemas.fields import ByteSize, CorpusUrl, Name, OptionalOutputUrl, Spec, Words
from schemas.grammar import GrammarCorpus
from schemas.model import Revision
from schemas.reach import Reach


class TextCorpus(Spec):
    """Plain text files: one file, one document."""

    format: Literal["text"] = "text"
    """Discriminator."""
    urls: Annotated[list[CorpusUrl], Field(min_length=1)]
    """Paths, globs (``**`` included) or fsspec URLs. ``{stdlib}``: the folder of Python's standard library."""
    exclude: list[Words] = []
    """Glob patterns (fnmatch, on the path after the glob's fixed part) of files to leave out."""
    encoding: Words = "utf-8"
    """Decoding; a file that does not decode is an error that names file and byte, see ``on_bad_text``."""
    on_bad_text: Literal["refuse", "replace"] = "refuse"
    """``refuse``: a file that does not decode ends the job. ``replace``: U+FFFD for each bad byte, counted."""


class JsonLinesCorpus(Spec):
    """JSON lines, plain or compressed (.gz, .zst by the name's ending): one line, one document."""

    format: Literal["jsonl"] = "jsonl"
    """Discriminator."""
    urls: Annotated[list[CorpusUrl], Field(min_length=1)]
    """Paths, globs or fsspec URLs."""
    text_field: Words = "text"
    """The field of each object that holds the text."""


class ParquetCorpus(Spec):
    """Parquet files: one row, one document."""

    format: Literal["parquet"] = "parquet"
    """Discriminator."""
    urls: Annotated[list[CorpusUrl], Field(min_length=1)]
    """Paths, globs or fsspec URLs."""
    text_field: Words = "text"
    """The string column that holds the text."""


class HuggingFaceCorpus(Spec):
    """A Hugging Face dataset, by name or from a local folder (extra ``hf``)."""

    format: Literal["huggingface"] = "huggingface"
    """Discriminator."""
    path: Annotated[str, Reach("dataset")]
    """Name on the Hub or local folder, as ``datasets.load_dataset`` takes it."""
    config: Words = "default"
    """Configuration (subset) name; ``default`` for the only one."""
    split: Words = "train"
    """Split to stream."""
    revision: Revision = "main"
    """Git revision on the Hub; part of the fingerprint. Ignored for a local folder, whose content is hashed."""
    text_field: Words = "text"
    """The string column that holds the text."""
    documents_per_part: PositiveInt = 4096
    """Documents in one independently packed part of the token table."""


class ImagesCorpus(Spec):
    """Images, for models of kind ``vision``: an image is a document and a context, its patches are the rows."""

    format: Literal["images"] = "images"
    """Discriminator."""
    urls: Annotated[list[CorpusUrl], Field(min_length=1)]
    """Paths, globs (``**`` included) or fsspec URLs of image files (whatever Pillow reads) or of Parquet files."""
    image_field: Words = ""
    """The files are Parquet, and this column holds the encoded images, as bytes or as a struct with a field ``bytes``.
    Empty: each file is an image."""
    size: NonNegativeInt = 0
    """Pixels on a side of what the model sees; 0: as the model's configuration says."""
    patch_size: NonNegativeInt = 0
    """Pixels on a side of a patch; 0: as the model's configuration says."""
    special_tokens: list[Name] | None = None
    """Names of the rows that come before the patches, for example ``[cls, register_1]``; None: as is known of the
    model's architecture. They are the special tokens of the table, so readers leave them out as they do with BOS."""
    fit: Literal["model", "crop", "stretch"] = "model"
    """``crop``: the shorter side is resized, the middle of the longer one is kept. ``stretch``: both sides are resized.
    ``model``: as the model's ``preprocessor_config.json`` says."""
    resized: NonNegativeInt = 0
    """Of fit ``crop``: pixels of the shorter side before cropping; 0: as the model says, else ``size``."""
    resample: Literal["model", "nearest", "bilinear", "bicubic", "lanczos"] = "model"
    """Pillow's filter for resizing."""
    mean: list[float] = []
    """Of each channel (red, green, blue), taken off values from 0 to 1; empty: as the model says."""
    std: list[float] = []
    """By which they are divided then; empty: as the model says."""


Corpus = Annotated[
    TextCorpus | JsonLinesCorpus | ParquetCorpus | HuggingFaceCorpus | ImagesCorpus | GrammarCorpus,
    Field(discriminator="format"),
]


class Packing(Spec):
    """How documents become contexts, the sequences that the model sees."""

    mode: Literal["packed", "document"] = "packed"
    """``packed``: documents are joined and cut every ``context_length`` tokens. ``document``: each context holds one
    document only; see ``long_documents``."""
    context_length: PositiveInt = 256
    """Tokens in one context, special tokens included. Contexts may be shorter, never longer."""
    separator: Literal["none", "bos", "eos", "eos_bos"] = "eos"
    """Tokens between documents of a packed context."""
    begin_context: Literal["none", "bos"] = "bos"
    """``bos``: every context begins with the tokenizer's BOS token (its EOS token if it has no BOS)."""
    long_documents: Literal["truncate", "split"] = "split"
    """``document`` mode only: a longer document is cut off, or goes on in further contexts."""


class TokensSpec(Spec):
    """A token table: the tokenised, packed corpus. Row r of every store made from it means token r."""

    corpus: Corpus
    """Where the text is."""
    tokenizer: Annotated[str, Reach("tokenizer")] = "model"
    """``model``: the one that belongs to the job's model. Otherwise a Hugging Face name, local folder or GGUF file."""
    packing: Packing = Packing()
    """How documents become contexts."""
    max_tokens: NonNegativeInt = 0
    """Stop at the first shard boundary at or after this many tokens; 0: the whole corpus."""
    held_out_fraction: Annotated[float, Field(ge=0, lt=1)] = 0.05
    """Share of documents, chosen by the hash of their text, that training never sees and evaluation uses."""
    file_order: Literal["sorted", "shuffled"] = "shuffled"
    """Order of the corpus's files: by name, or by a hash of name and ``seed`` (a prefix is then a fair sample)."""
    part_size: ByteSize = 4 * 2**20
    """Files are grouped into parts of about this much text, tokenised and packed independently, in parallel."""
    seed: NonNegativeInt = 0
    """Seed of the file order and of the held-out choice."""
    output: OptionalOutputUrl = ""
    """Folder or URL of the token table; empty: ``tokens`` beside the store. Reused if it has the same fingerprint."""

    @model_validator(mode="after")
    def _images_are_their_patches(self) -> Self:
        if self.corpus.format == "images" and (self.packing != Packing() or self.tokenizer != "model"):
            raise ValueError("packing and tokenizer are for text: an image is a context of its patches; leave both out")
        return self
