"""What a network is made of. Importing this registers the model with transformers' auto classes."""

from .configuration import GlassConfig
from .dense import GLU, Dense, SoLU
from .features import Features, FeedForward, empty_parameters, linear_write
from .moe import MoE
from .monet import MonetHD, MonetVD
from .peer import Peer
from .transformer import FEED_FORWARD, GlassForCausalLM, GlassModel, build_feed_forward

__all__ = [
    "FEED_FORWARD",
    "GLU",
    "Dense",
    "Features",
    "FeedForward",
    "GlassConfig",
    "GlassForCausalLM",
    "GlassModel",
    "MoE",
    "MonetHD",
    "MonetVD",
    "Peer",
    "SoLU",
    "build_feed_forward",
    "empty_parameters",
    "linear_write",
]
