"""All kinds of coders, by name: ours and those that other packages add."""

from __future__ import annotations

from typing import Any

from glassmoe.registry import CODER_REGISTRY

from .base import Coder
from .configuration import AUTOENCODERS, CoderConfig
from .mixture import MoEXCoder, SwitchCoder
from .mxd import MxD
from .sae import L1, BatchTopK, Gated, JumpReLU, PAnneal, TopK
from .transcoder import SkipTranscoder, Transcoder

CODERS: dict[str, type[Coder] | tuple[type[Coder], dict[str, Any]]] = {
    "sae-topk": TopK,
    "sae-batchtopk": BatchTopK,
    "sae-jumprelu": JumpReLU,
    "sae-l1": L1,
    "sae-p-anneal": PAnneal,
    "sae-gated": Gated,
    "transcoder": Transcoder,
    "skip-transcoder": SkipTranscoder,
    "mxd": MxD,
    "mxd-one": (MxD, {"gate": "one"}),
    "mxd-relu": (MxD, {"activation": "relu", "glu": False}),
    "mxd-gelu": (MxD, {"activation": "gelu", "glu": False}),
    "mxd-glu": (MxD, {"glu": True}),
    "moe-x": MoEXCoder,
    "switch": SwitchCoder,
}
"""Name in tables and on the command line -> class, or class and fields of `CoderConfig` that the name stands for; such
a name begins with that of the class alone (`mxd-one`). A coder of your own joins by `CODERS["name"] = Class`, or by an
entry point of the group `glassmoe.coders`."""


def coder_settings(name: str) -> dict[str, Any]:
    """What the name of a coder says of its configuration: `kind`, and the fields that it stands for. ValueError for an
    unknown name."""
    entry = CODER_REGISTRY.look_up(CODERS, name)
    if not isinstance(entry, tuple):
        return {"kind": name.removeprefix("sae-") if entry in _OWN_AUTOENCODERS else name}
    coder, settings = entry
    beginnings = [each for each in CODER_REGISTRY.names() if name.startswith(f"{each}-")]
    kind = next((each for each in beginnings if CODER_REGISTRY.look_up(CODERS, each) is coder), name)
    return {"kind": kind, "variant": name.removeprefix(kind).removeprefix("-"), **settings}


def coder_class(kind: str) -> type[Coder]:
    """The class of a kind (`CoderConfig.kind`). ValueError for an unknown kind."""
    entry = CODER_REGISTRY.look_up(CODERS, f"sae-{kind}" if kind in AUTOENCODERS else kind)
    return entry[0] if isinstance(entry, tuple) else entry


def build_coder(config: CoderConfig, width: int, steps: int, tokens: int) -> Coder:
    """The coder that `config` describes for vectors of `width` entries, with fresh weights from torch's random state.
    `steps`, `tokens`: length of the fit. ValueError when it does not fit them."""
    coder = coder_class(config.kind)(width, config, steps, tokens)
    coder.reset_parameters()
    return coder


_OWN_AUTOENCODERS = {CODERS[f"sae-{kind}"] for kind in AUTOENCODERS}
