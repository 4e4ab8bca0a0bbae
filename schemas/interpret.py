"""Job kind ``interpret``: explanations of latents, and scores that say how far each explanation goes."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import (
    AfterValidator,
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    model_validator,
)

from schemas.fields import InputUrl, Name, OutputUrl, Spec, require_no_credentials
from schemas.reach import Reach

CHAT_KEY = "HEADWORKS_EXPLAINER_KEY"
"""Environment variable with the key for ``chat``; a spec can neither hold a key nor name another variable."""


class TokenExplainer(Spec):
    """Which tokens a latent is on for: its mean activation and its share of active occurrences, token by token. Needs
    no model. What depends on more than one token it cannot say, so its score is what single tokens explain."""

    kind: Literal["tokens"] = "tokens"
    """Discriminator."""
    num_tokens: PositiveInt = 10
    """Tokens named in the text of an explanation; scores use all of them."""


class LogitExplainer(Spec):
    """Which tokens a latent makes likely: its decoder row through the unembedding of the model, without what lies
    between (Bricken et al. 2023). Scored by whether they come next. For targets in the residual stream."""

    kind: Literal["logits"] = "logits"
    """Discriminator."""
    num_tokens: PositiveInt = 10
    """Tokens named in the text of an explanation; scores use the whole vocabulary."""


def chat_address(url: str) -> str:
    """The address without a slash at its end.

    Raises:
        ValueError: it is none of a chat server.
    """
    if not url.startswith(("http://", "https://")):
        raise ValueError(f"url is the address of a chat server, such as http://127.0.0.1:8000/v1; got {url!r}")
    if "?" in url or "#" in url:
        raise ValueError(f"url has no query and no fragment: /chat/completions is put behind it; got {url!r}")
    return url.rstrip("/")


ChatUrl = Annotated[str, AfterValidator(require_no_credentials), AfterValidator(chat_address), Reach("chat")]
"""Address of a server with an OpenAI-compatible ``/chat/completions``."""


class ChatExplainer(Spec):
    """A language model behind an OpenAI-compatible address explains from examples and judges by the explanation, as
    delphi does (Paulo et al. 2024, arXiv 2410.13928). Contexts of the corpus are sent there. A key, where the server
    wants one, comes from the environment variable HEADWORKS_EXPLAINER_KEY of the workers."""

    kind: Literal["chat"] = "chat"
    """Discriminator."""
    url: ChatUrl
    """Up to and without ``/chat/completions``: ``https://host/v1``."""
    model: Annotated[str, Field(min_length=1), Reach("nothing")]
    """Name of the model there."""
    temperature: NonNegativeFloat = 0.0
    """0: the same answer each time, as far as the server keeps to it."""
    examples_per_question: PositiveInt = 5
    """Contexts judged in one question."""
    max_tokens: PositiveInt = 500
    """Longest answer."""
    connections: PositiveInt = 4
    """Questions under way at a time. Changes no result."""
    timeout: PositiveFloat = 120.0
    """Seconds to wait for an answer."""


Explainer = Annotated[TokenExplainer | LogitExplainer | ChatExplainer, Field(discriminator="kind")]


class InterpretSpec(Spec):
    """Explain latents of trained dictionaries and score the explanations."""

    kind: Literal["interpret"] = "interpret"
    """Discriminator."""
    name: Name = "interpret"
    """Name of this job."""
    store: InputUrl | Annotated[dict[Name, InputUrl], Field(min_length=2)]
    """Store with the rows, or ``${NAME}`` of a collect job of the same pipeline; a group or several stores by name for
    dictionaries that were trained so."""
    dictionaries: InputUrl
    """Folder of a train job, or ``${NAME}`` of a train job of the same pipeline."""
    explainer: Explainer = TokenExplainer()
    """What makes the explanations and judges by them."""
    num_latents: PositiveInt = 60
    """Latents explained of each dictionary, spread over the range of densities."""
    latents: list[NonNegativeInt] = []
    """Latents to explain instead, by number; empty: ``num_latents`` of them."""
    rows: PositiveInt = 131072
    """Rows read, in whole contexts; half of the contexts are for explaining, half for scoring."""
    context_tokens: Annotated[int, Field(ge=4)] = 32
    """Tokens of an example. Contexts are cut into pieces of this length."""
    explained_examples: PositiveInt = 40
    """Activating examples that an explainer is shown, and as many others."""
    scored_examples: PositiveInt = 50
    """Activating examples that a score is taken over, and as many others."""
    quantiles: PositiveInt = 10
    """Activating examples are drawn from as many equal parts of their order by strength."""
    min_examples: PositiveInt = 10
    """A latent that is on, or off, in fewer pieces of either half is left out."""
    fuzzing: Literal["silent", "activating"] = "silent"
    """What wrong marks are made on. ``silent``: tokens at random in contexts where the latent is off, as delphi does.
    ``activating``: tokens at random, of those where it is off, in contexts where it is on elsewhere; harder."""
    controls: bool = True
    """Score two explanations more that must fail: that of another latent, and one made from values that were dealt out
    to rows at random (not with ``logits``, which reads no values). A ``chat`` is then asked three times as much."""
    seed: NonNegativeInt = 0
    """Seed of all choices."""
    output: OutputUrl
    """Folder for ``interpretation.json`` and ``NAME.explanations.parquet``."""

    @model_validator(mode="after")
    def _enough(self) -> Self:
        for field in ("explained_examples", "scored_examples"):
            if getattr(self, field) < self.quantiles:
                raise ValueError(f"{field} ({getattr(self, field)}) must be at least quantiles ({self.quantiles})")
        if len(set(self.latents)) < len(self.latents):
            raise ValueError(f"latents names one twice: {self.latents}")
        return self
