"""What a folder says of a decoder that was built here: transformers' configuration around a ``NetworkSpec``."""

from __future__ import annotations

from typing import Any

from transformers import AutoConfig, PreTrainedConfig

from schemas.network import NetworkSpec

MODEL_TYPE = "headworks_decoder"


class HeadworksDecoderConfig(PreTrainedConfig):  # type: ignore[no-untyped-call]
    """``network`` decides; the fields with transformers' names are read off it."""

    model_type = MODEL_TYPE

    network: dict[str, Any] | None = None
    """A ``NetworkSpec`` as JSON; None: its defaults."""
    vocab_size: int = 256
    tie_word_embeddings: bool = False

    def __post_init__(self, **kwargs: Any) -> None:
        """Fill in what other code asks a configuration for."""
        spec = NetworkSpec.model_validate(self.network or {})
        self.network = spec.model_dump(mode="json")
        self.hidden_size = spec.d_model
        self.num_hidden_layers = spec.layers
        self.num_attention_heads = spec.heads
        self.head_dim = spec.head_width
        self.intermediate_size = spec.neurons
        self.max_position_embeddings = spec.context_length
        # What neurons are behind, which is what others ask it for.
        self.hidden_act = "AbsTopK" if spec.kept("mlp_neuron") < spec.neurons else "gelu"
        self.use_cache = False
        self.tie_word_embeddings = spec.tied_embeddings
        super().__post_init__(**kwargs)  # type: ignore[no-untyped-call]

    @property
    def spec(self) -> NetworkSpec:
        """``network``, read."""
        return NetworkSpec.model_validate(self.network)


AutoConfig.register(MODEL_TYPE, HeadworksDecoderConfig, exist_ok=True)
