"""What a network is made of. Importing this registers the model with transformers' auto classes."""

from glassmoe.layers.dense import GLU, Dense, SoLU
from glassmoe.layers.features import Features, FeedForward, empty_parameters, linear_write
from glassmoe.layers.moe import MoE
from glassmoe.layers.monet import MonetHD, MonetVD
from glassmoe.layers.peer import Peer

from .configuration import GlassConfig
from .feed_forwards import FEED_FORWARD, build_feed_forward
from .transformer import GlassForCausalLM, GlassModel

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
