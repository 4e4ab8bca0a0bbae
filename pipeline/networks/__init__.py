"""Networks that are built here rather than downloaded.

Importing this package makes their ``model_type`` known to transformers' Auto classes.
"""

from pipeline.networks.config import HeadworksDecoderConfig
from pipeline.networks.decoder import HeadworksDecoder, HeadworksDecoderForCausalLM, build_network

__all__ = ["HeadworksDecoder", "HeadworksDecoderConfig", "HeadworksDecoderForCausalLM", "build_network"]
