"""The two layouts of `formats.py`: the names of a coder's tensors in SAELens 6 and in sparsify, and what `cfg.json`
states about the function.

In all of them z = W_enc x' + b_enc, y^ = W_dec^T f + b_dec, and x' is x or x - b_dec. Glassmoe subtracts b_dec in
autoencoders alone, SAELens where `apply_b_dec_to_input` is set, and sparsify where `transcode` is not. The difference,
W_enc b_dec, is added to b_enc. The features are:

| SAELens           | features f                                            | ours                       |
| ----------------- | ----------------------------------------------------- | -------------------------- |
| `standard`        | relu(z)                                               | l1, p-anneal               |
| `topk`            | relu of the k greatest z                              | topk, transcoder           |
| `jumprelu`        | z where z > threshold, relu'd                         | jumprelu, batchtopk        |
| `gated`           | relu(exp(r_mag) z + b_mag) where z + b_gate > 0       | gated                      |
| `transcoder`      | relu(z)                                               | transcoder, all features k |
| `skip_transcoder` | relu(z); y^ also has W_skip x                         | skip-transcoder, the same  |
| sparsify          | the k greatest of relu(z); y^ may also have W_skip x  | topk, (skip-)transcoder    |

Outside training `batchtopk` keeps z >= threshold, which is z > the next smaller number of float32. Thresholds of
`jumprelu` are logarithms here, so an imported one may differ by about 1e-7 of its value. SAELens has no skip
transcoders with a k, sparsify no thresholds or gates, and neither has mixtures of decoders.

Legend: D width, F features.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import torch
from torch import Tensor

from .base import Coder
from .configuration import KINDS, MIXTURES, MLP_KINDS, CoderConfig, FitConfig, Site

CFG = "cfg.json"
WEIGHTS = {"saelens": "sae_weights.safetensors", "sparsify": "sae.safetensors"}
"""Format -> file of its tensors."""
SAELENS_VERSION = "6.0.0"
"""First version of SAELens whose `cfg.json` has this form; older ones state none or a smaller one."""

SAELENS: dict[str, str] = {
    "l1": "standard",
    "p-anneal": "standard",
    "topk": "topk",
    "jumprelu": "jumprelu",
    "batchtopk": "jumprelu",
    "gated": "gated",
    "transcoder": "topk",
}
"""Kind -> architecture of SAELens; of transcoders that use all features the two below."""
SAELENS_MLPS: dict[str, str] = {"transcoder": "transcoder", "skip-transcoder": "skip_transcoder"}
SAELENS_KINDS: dict[str, tuple[str | None, str | None]] = {
    "standard": ("l1", "transcoder"),
    "topk": ("topk", "transcoder"),
    "jumprelu": ("jumprelu", None),
    "gated": ("gated", None),
    "transcoder": (None, "transcoder"),
    "skip_transcoder": (None, "skip-transcoder"),
}
"""Architecture of SAELens -> kind of an autoencoder with it, and of a replacement of an MLP with it."""
SPARSIFY: tuple[str, ...] = ("topk", "transcoder", "skip-transcoder")
"""Kinds that sparsify has."""
SAELENS_KEYS = {"architecture", "d_in", "d_sae", "d_out", "dtype", "device", "metadata", "k"} | {
    "apply_b_dec_to_input", "normalize_activations", "reshape_activations", "rescale_acts_by_decoder_norm",
}  # fmt: skip
SPARSIFY_KEYS = {"activation", "signed", "k", "d_in", "num_latents", "expansion_factor", "skip_connection"} | {
    "transcode", "normalize_decoder", "multi_topk",
}  # fmt: skip
"""Keys whose meaning is known; any other key may change the function."""

HOOKS: dict[Site, tuple[str, ...]] = {
    "stream": ("hook_resid_post",),
    "mlp-out": ("hook_mlp_out",),
    "mlp": ("mlp.hook_in", "hook_mlp_out"),
}
"""Names of TransformerLens for what is read and, where that is another, what is rebuilt."""
OUTPUTS: dict[str, Site] = {
    **dict.fromkeys(("", "hook_resid_post", "hook_out"), "stream"),
    **dict.fromkeys(("mlp", "ffn", "hook_mlp_out", "mlp.hook_out"), "mlp-out"),
}
"""What follows the number of a block in the name of what an autoencoder reads -> its site."""
MLP_INPUTS = ("mlp", "ffn", "mlp.hook_in")
"""The same of what stands for an MLP: modules, whose input is meant, and the input by name."""
BLOCK = re.compile(r"(?:^|[._])(?:blocks|layers|h)[._](\d+)(?:[._](.+))?$")


@dataclass(frozen=True)
class ForeignCoder:
    """A coder of SAELens or sparsify as one of our kinds. `weights`: its parameters by the names of that kind.
    `centred`: whether b_dec is subtracted from the input. `layer`, `site`: where it belongs, as far as `name` says,
    which is the name of the hook or folder."""

    kind: str
    k: int
    weights: dict[str, Tensor]
    centred: bool
    name: str
    layer: int | None
    site: Site | None

    def parameters(self) -> dict[str, Tensor]:
        """The weights as our kind reads them."""
        w, ours = self.weights, self.kind not in MLP_KINDS
        if ours == self.centred:
            return w
        shift_F = (w["w_enc"].double() @ w["b_dec"].double()) * (1 if ours else -1)
        shifts_F = {"b_enc": shift_F}
        if self.kind == "gated":
            shifts_F = {"b_gate": shift_F, "b_enc": w["r_mag"].double().exp() * shift_F}
        return {**w, **{name: (w[name].double() + each_F).float() for name, each_F in shifts_F.items()}}


def refusal(config: CoderConfig, format: str) -> str | None:
    """Why a coder cannot be written in a format, and what can be done; None when it can."""
    if config.kind == "mxd":
        return "neither saelens nor sparsify has mixtures of decoders; keep it as it is, or export another kind"
    if config.kind in MIXTURES:
        return "neither saelens nor sparsify has mixtures of experts; keep it as it is, or export another kind"
    if config.kind not in KINDS:
        return f"{format} has no coder of this kind; keep it as it is"
    if format == "sparsify" and config.kind not in SPARSIFY:
        return f"sparsify has no {config.kind}, its coders use the k greatest features; give --format saelens"
    if format == "saelens" and config.kind == "skip-transcoder" and config.k != config.features:
        return "the skip transcoders of saelens have no k; give --format sparsify"
    return None


def folded(coder: Coder) -> dict[str, Tensor]:
    """A coder's parameters by name, with the units of `normalise: rms` in them: features stay the numbers that they
    are. What an autoencoder reads and rebuilds is one thing, and so is their unit."""
    weights = {name: p.detach().double() for name, p in coder.named_parameters()}
    if coder.normalised:
        x, y = coder.x_rms.double(), coder.y_rms.double()
        for name, unit in {"w_enc": 1 / x, "w_dec": y, "b_dec": y, "w_skip": y / x}.items():
            if name in weights:
                weights[name] = weights[name] * unit
    return {name: weight.float() for name, weight in weights.items()}


def to_saelens(coder: Coder, fit: FitConfig) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """`cfg.json` and the tensors of a coder that `refusal` lets pass."""
    config, w = coder.config, folded(coder)
    assert config.site is not None
    tensors = {"W_enc": w["w_enc"].t().contiguous(), "W_dec": w["w_dec"], "b_dec": w["b_dec"], "b_enc": w["b_enc"]}
    if config.kind == "gated":
        tensors |= {"b_gate": w["b_gate"], "r_mag": w["r_mag"], "b_mag": tensors.pop("b_enc")}
    elif config.kind == "jumprelu":
        tensors["threshold"] = w["log_theta"].exp()
    elif config.kind == "batchtopk":
        threshold: Any = coder.threshold
        below = torch.nextafter(threshold, torch.full_like(threshold, -torch.inf)).clamp_min(0)
        tensors["threshold"] = below.repeat(coder.num_features)
    elif config.kind == "skip-transcoder":
        tensors["W_skip"] = w["w_skip"]
    stands_for_mlp = config.kind in MLP_KINDS
    every = stands_for_mlp and config.k == coder.num_features
    architecture = SAELENS_MLPS[config.kind] if every else SAELENS[config.kind]
    features, width = w["w_dec"].shape
    hooks = [f"blocks.{config.layer}.{each}" for each in HOOKS[config.site]]
    cfg = {
        "architecture": architecture,
        "d_in": width,
        "d_sae": features,
        **({"d_out": width} if every else {}),
        **({"k": config.k, "rescale_acts_by_decoder_norm": False} if architecture == "topk" else {}),
        "dtype": "float32",
        "device": "cpu",
        "apply_b_dec_to_input": not stands_for_mlp,
        "normalize_activations": "none",
        "reshape_activations": "none",
        "metadata": {
            "sae_lens_version": SAELENS_VERSION,
            "model_name": fit.source,
            **dict(zip(("hook_name", "hook_name_out"), hooks, strict=False)),
            # The last token of a row is only predicted.
            "context_size": int(fit.data.rows.split(":")[1]) - 1,
        },
    }
    return cfg, tensors


def to_sparsify(coder: Coder) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The same for sparsify."""
    config, w = coder.config, folded(coder)
    skip = config.kind == "skip-transcoder"
    tensors = {"encoder.weight": w["w_enc"], "encoder.bias": w["b_enc"], "W_dec": w["w_dec"], "b_dec": w["b_dec"]}
    features, width = w["w_dec"].shape
    cfg = {
        "activation": "topk",
        "k": config.k,
        "num_latents": features,
        "d_in": width,
        "transcode": config.kind in MLP_KINDS,
        "skip_connection": skip,
        # It is for training alone, which would otherwise change what normalise: rms has made of the rows.
        "normalize_decoder": coder.unit_rows and not coder.normalised,
        "multi_topk": False,
    }
    return cfg, {**tensors, "W_skip": w["w_skip"]} if skip else tensors


class CoderFolder:
    """A folder of SAELens or sparsify: its settings by name and type, and its tensors by name and shape."""

    def __init__(self, path: Path, cfg: Mapping[str, Any], tensors: Mapping[str, Tensor]):
        self.path, self.cfg, self.saved = path, cfg, tensors

    def refuse(self, what: str) -> NoReturn:
        raise ValueError(f"{self.path}: {what}")

    def know(self, keys: set[str], advice: str) -> None:
        """ValueError when there is a key that is not one of these."""
        if unknown := sorted(set(self.cfg) - keys):
            self.refuse(
                f"the key {unknown[0]} of its {CFG} is not known here and may change what is computed; {advice}"
            )

    def flag(self, name: str, default: bool) -> bool:
        value = self.cfg.get(name, default)
        if not isinstance(value, bool):
            self.refuse(f"{name} is {value!r}; expected true or false")
        return value

    def count(self, name: str, most: int | None = None) -> int:
        value = self.cfg.get(name)
        if not isinstance(value, int) or isinstance(value, bool) or value < 1 or value > (most or value):
            within = f"from 1 to {most}" if most else "above 0"
            self.refuse(f"{name} is {value!r}; expected a whole number {within}")
        return value

    def must(self, name: str, value: Any, advice: str) -> None:
        """ValueError when a setting is given and is another."""
        if self.cfg.get(name, value) != value:
            self.refuse(f"{name} is {self.cfg[name]!r}, and only {value!r} can be taken over; {advice}")

    def tensors(self, shapes: dict[str, tuple[int, ...]]) -> dict[str, Tensor]:
        """The tensors in float32. ValueError when one is missing, unknown, of another shape or not finite."""
        for name in shapes:
            if name not in self.saved:
                self.refuse(f"there is no tensor {name}; expected {', '.join(shapes)}: give the folder as it was saved")
        if unknown := sorted(set(self.saved) - set(shapes)):
            self.refuse(f"the tensor {unknown[0]} is not known here; expected {', '.join(shapes)} alone")
        for name, shape in shapes.items():
            tensor = self.saved[name]
            if tuple(tensor.shape) != shape:
                self.refuse(f"{name} has the shape {tuple(tensor.shape)}, and {CFG} means {shape}; fix one of the two")
            if not tensor.is_floating_point():
                self.refuse(f"{name} holds {str(tensor.dtype).removeprefix('torch.')}; expected floating-point numbers")
            if not bool(torch.isfinite(tensor.float()).all()):
                self.refuse(f"the numbers of {name} are not all finite; give a coder whose fit did not diverge")
        return {name: self.saved[name].float() for name in shapes}


def from_saelens(folder: CoderFolder, site: Site | None) -> ForeignCoder:
    """A coder of SAELens. `site`: where it belongs, where that is known better. ValueError when it is none of ours."""
    architecture, metadata = _architecture(folder)
    hook, rebuilt = (str(metadata.get(key) or "") for key in ("hook_name", "hook_name_out"))
    own = "transcoder" in architecture
    for_mlp = own or rebuilt not in ("", hook) if site is None else site == "mlp"
    kind = SAELENS_KINDS[architecture][for_mlp]
    if kind is None:
        what = "stands for an MLP" if for_mlp else "rebuilds what it reads"
        folder.refuse(f"architecture is {architecture}, and no coder here that {what} is like it; give another")
    weights = _saelens_weights(folder, architecture)
    features = len(weights["w_dec"])
    layer, found = place(hook, for_mlp)
    if for_mlp and rebuilt and place(rebuilt, for_mlp=False) != (layer, "mlp-out"):
        layer, found, hook = None, None, f"{hook} and {rebuilt}"
    return ForeignCoder(
        kind=kind,
        k=folder.count("k", features) if architecture == "topk" else features,
        weights=weights,
        # Their transcoders never do, whatever the key says.
        centred=folder.flag("apply_b_dec_to_input", True) and not own,
        name=hook,
        layer=layer,
        site=site or found,
    )


def _architecture(folder: CoderFolder) -> tuple[str, dict[str, Any]]:
    """The architecture and metadata of a `cfg.json` of SAELens. ValueError when it is of an older version, or names
    what cannot be taken over."""
    metadata, architecture = folder.cfg.get("metadata"), folder.cfg.get("architecture")
    version = metadata.get("sae_lens_version") if isinstance(metadata, dict) else None
    if not isinstance(metadata, dict) or not re.match(r"([6-9]|\d\d+)\.", str(version)):
        folder.refuse(
            f"metadata.sae_lens_version is {version!r}; expected 6 or later: load it with SAELens 6 and save it"
        )
    advice = "of a training checkpoint give what its save_inference_model wrote"
    if not isinstance(architecture, str) or architecture not in SAELENS_KINDS:
        folder.refuse(f"architecture is {architecture!r}; expected one of {', '.join(SAELENS_KINDS)}; {advice}")
    folder.know(SAELENS_KEYS, advice)
    folder.must("normalize_activations", "none", "fold it into the weights with SAELens where it is a constant")
    folder.must("reshape_activations", "none", "single heads of attention are not read here")
    folder.must("d_out", folder.count("d_in"), "a coder here reads and writes vectors of one width")
    return architecture, metadata


def _saelens_weights(folder: CoderFolder, architecture: str) -> dict[str, Tensor]:
    """Parameters by our names."""
    width, features = folder.count("d_in"), folder.count("d_sae")
    shapes: dict[str, tuple[int, ...]] = {"W_enc": (width, features), "W_dec": (features, width), "b_dec": (width,)}
    own = {"gated": ("b_gate", "b_mag", "r_mag"), "jumprelu": ("b_enc", "threshold")}.get(architecture, ("b_enc",))
    shapes |= dict.fromkeys(own, (features,))
    if architecture == "skip_transcoder":
        shapes["W_skip"] = (width, width)
    given = folder.tensors(shapes)
    weights = {"w_enc": given["W_enc"].t(), "w_dec": given["W_dec"], "b_dec": given["b_dec"]}
    weights["b_enc"] = given["b_mag" if architecture == "gated" else "b_enc"]
    if architecture == "gated":
        weights |= {name: given[name] for name in ("b_gate", "r_mag")}
    elif architecture == "jumprelu":
        # What is above a threshold below 0 but not above 0 is 0 all the same.
        weights["log_theta"] = given["threshold"].double().clamp_min(0).log().float()
    elif architecture == "skip_transcoder":
        weights["w_skip"] = given["W_skip"]
    elif architecture == "topk" and folder.flag("rescale_acts_by_decoder_norm", False):
        norm_F1 = given["W_dec"].double().norm(dim=1, keepdim=True)
        norm_F1 = torch.where(norm_F1 > 0, norm_F1, 1.0)
        by = {"w_enc": norm_F1, "w_dec": 1 / norm_F1, "b_enc": norm_F1.squeeze(1)}
        weights |= {name: (weights[name] * factor).float() for name, factor in by.items()}
    return weights


def from_sparsify(folder: CoderFolder, site: Site | None) -> ForeignCoder:
    """The same of sparsify, in a folder that is named for the place."""
    path = folder.path.absolute()
    folder.know(SPARSIFY_KEYS, "load it with sparsify 1.3 and save it again")
    folder.must("activation", "topk", "no other has a like here")
    folder.must("signed", False, "features here are never below 0")
    width = folder.count("d_in")
    features = folder.count("num_latents") if folder.cfg.get("num_latents") else 0
    features = features or width * folder.count("expansion_factor")
    transcode, skip = folder.flag("transcode", False), folder.flag("skip_connection", False)
    # Before transcode was a key, only the skip marked skip transcoders, and they subtracted b_dec from their input.
    for_mlp = transcode or skip if site is None else site == "mlp"
    if (transcode or skip) and not for_mlp:
        folder.refuse(f"it is a transcoder, which stands for an MLP, and the site given is {site}; give mlp, or none")
    shapes: dict[str, tuple[int, ...]] = {"encoder.weight": (features, width), "encoder.bias": (features,)}
    shapes |= {"W_dec": (features, width), "b_dec": (width,), **({"W_skip": (width, width)} if skip else {})}
    given = folder.tensors(shapes)
    names = {"encoder.weight": "w_enc", "encoder.bias": "b_enc", "W_dec": "w_dec", "b_dec": "b_dec", "W_skip": "w_skip"}
    weights = {names[name]: tensor for name, tensor in given.items()}
    kind = "skip-transcoder" if skip else "transcoder" if for_mlp else "topk"
    # With several seeds, each has a folder of its own in that of the place.
    name = path.parent.name if re.fullmatch(r"seed\d+", path.name) else path.name
    layer, found = place(name, for_mlp)
    return ForeignCoder(
        kind=kind,
        k=folder.count("k", features),
        weights=weights,
        centred=not transcode,
        name=name,
        layer=layer,
        site=site or found,
    )


def place(name: str, for_mlp: bool) -> tuple[int | None, Site | None]:
    """The layer and the site that a hook, module or folder is named for; None for what it does not say."""
    match = BLOCK.search(name)
    if match is None:
        return None, None
    layer, part = int(match[1]), match[2] or ""
    if for_mlp:
        return layer, "mlp" if part in MLP_INPUTS else None
    if part == "hook_resid_pre" and layer:
        return layer - 1, "stream"
    return layer, OUTPUTS.get(part)
