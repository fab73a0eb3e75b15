"""Export of coders to the folders of SAELens 6 and sparsify, and import from them. Neither package is needed, and
nothing is unpickled: both save a `cfg.json` and a safetensors file, whose content `layouts.py` describes.

An exported coder computes what the coder computes outside training. An imported one becomes a directory like that of a
fit, which every verb for coders takes. Constants, such as the units of `normalise: rms`, are folded into the weights in
float64 and rounded to float32, so features and reconstructions agree up to that rounding. What depends on the token, or
is not known, is refused.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, cast

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from glassmoe import config as configuration
from glassmoe.atomic import TEMPORARY, flush, write_text
from glassmoe.checksums import Damaged, save_tensors, verify_tensors
from glassmoe.config import DataConfig, TrainConfig
from glassmoe.data.domains import domain_of
from glassmoe.data.tokens import TEXT
from glassmoe.locks import LOCK, writing
from glassmoe.model.families import MLPS, family_of
from glassmoe.model.loading import read_settings
from glassmoe.model.subject import ModelSource, Subject, load_subject

from .configuration import LISTED_KINDS, CoderConfig, FitConfig, Site
from .files import WEIGHTS as CODER
from .files import coder_folders, load_coder, save_coder
from .kinds import build_coder
from .layouts import (
    CFG,
    WEIGHTS,
    CoderFolder,
    ForeignCoder,
    from_saelens,
    from_sparsify,
    refusal,
    to_saelens,
    to_sparsify,
)
from .sweep import CONTEXT

FORMATS = tuple(WEIGHTS)
RECEIPT = "import.json"
"""File that records where an imported coder came from, and its `cfg.json`."""
UNFINISHED = f"{CFG}.tmp"
"""Name of `cfg.json` until the rest of an export is written."""


def export_coders(path: str | Path, out: str | Path, format: str) -> tuple[list[Path], dict[str, str]]:
    """Write the coder in `path`, or those of a sweep, in a format (`saelens`, `sparsify`) into the folder `out`.
    Returns the folder of each, and of the coders of a sweep that the format does not have the folder and the reason.
    ValueError when `out` is not free or the format has none of them: then nothing is written. OSError when the disk
    refuses it.

    SAELens: one coder lies in `out`, those of a sweep in `out`/LAYER/KIND-kK. sparsify names folders for the place that
    they read, such as `h.8.mlp`: one lies in `out`/PLACE, those of a sweep in `out`/KIND-kK/PLACE.
    """
    path, out = Path(path), Path(out)
    with writing(out):
        return _exported(path, out, format)


def _exported(path: Path, out: Path, format: str) -> tuple[list[Path], dict[str, str]]:
    configs = {folder: load_coder(folder, "cpu")[1] for folder in coder_folders(path)}
    targets = {folder: out / _inside(path, folder, config, format) for folder, config in configs.items()}
    for target in targets.values():
        _sweep_export(out, target, format)
    _require_free(out)
    reasons = {folder: refusal(config.coder, format) for folder, config in configs.items()}
    if all(reasons.values()):
        for folder, config in configs.items():
            _require_a_name(folder, config, format)
    written = [export_coder(folder, target, format) for folder, target in targets.items() if not reasons[folder]]
    return written, {str(folder): reason for folder, reason in reasons.items() if reason}


def _inside(path: Path, folder: Path, config: FitConfig, format: str) -> Path:
    """Where the export of the coder in `folder` lies below that of `path`."""
    if format == "sparsify":
        return Path("" if folder == path else folder.name, _hookpoint(config))
    return Path() if folder == path else folder.relative_to(path)


def export_coder(folder: Path, out: Path, format: str) -> Path:
    """Write one coder into the folder `out` itself. ValueError as for `export_coders`; OSError when the disk refuses
    it."""
    with writing(out):
        _sweep_export(out, out, format)
        _require_free(out)
        coder, config = load_coder(folder, "cpu")
        _require_a_name(folder, config, format)
        cfg, tensors = to_saelens(coder, config) if format == "saelens" else to_sparsify(coder)
        path, unfinished = out / WEIGHTS[format], out / UNFINISHED
        try:
            # The file of settings has a temporary name until the weights are there: it marks what a kill left.
            unfinished.write_text(json.dumps(cfg, indent=1) + "\n", encoding="utf-8")
            flush(unfinished)
            save_tensors(path, tensors, save_file)
            unfinished.replace(out / CFG)
            flush(out)
        except OSError as error:
            unfinished.unlink(missing_ok=True)
            raise OSError(f"could not write {path}: {error}; free some space and start again") from error
    return out


def import_coder(
    folder: str | Path,
    model: ModelSource,
    layer: int | None,
    out: str | Path,
    site: Site | None = None,
    module: str | None = None,
    device: str = "auto",
) -> Path:
    """Make a directory like a fit's, `out`, of a folder of SAELens or sparsify, for `model`.

    `layer`, `site`: where it belongs; what the folder says where they are None. `module`: path of the MLP in a model
    whose family is not known. ValueError, in one sentence, when the folder is none of theirs, computes what no coder of
    ours does, does not say where it belongs, or does not fit the model, and when `out` is not free.
    """
    folder, out = Path(folder), Path(out)
    with writing(out):
        _sweep_killed(out, RECEIPT, "config.yaml", last=CODER)
        _require_free(out)
        format, cfg, tensors = _open(folder)
        read = from_saelens if format == "saelens" else from_sparsify
        foreign = read(CoderFolder(folder, cfg, tensors), site)
        layer = foreign.layer if layer is None else layer
        named = f"it is named {foreign.name!r}, which" if foreign.name else "it"
        if layer is None:
            raise ValueError(f"{folder}: {named} does not say which layer it belongs to; give --layer")
        if foreign.site is None:
            raise ValueError(
                f"{folder}: {named} does not say that it belongs to the stream after a block, to an MLP's output, or "
                f"to a whole MLP, which are all that is read here; if it does, give --site stream, mlp-out or mlp"
            )
        subject = load_subject(model, device)
        width = foreign.weights["w_dec"].shape[1]
        if width != subject.width:
            raise ValueError(
                f"the coder in {folder} reads {width} numbers a token and {subject.name} has {subject.width}; "
                f"give the model that it was made for"
            )
        subject.place(layer, foreign.site, module)
        config = _config(foreign, subject, layer, module)
        coder = build_coder(config.coder, width, 0, 1)
        coder.load_state_dict({**coder.state_dict(), **foreign.parameters()})
        out.mkdir(parents=True, exist_ok=True)
        write_text(out / RECEIPT, json.dumps({"format": format, "folder": str(folder), "cfg": cfg}, indent=1) + "\n")
        write_text(out / "config.yaml", configuration.to_yaml(config))
        save_coder(out, coder, 0, subject.digest())
        return out


def _config(foreign: ForeignCoder, subject: Subject, layer: int, module: str | None) -> FitConfig:
    """The configuration of a fit of 0 steps."""
    features, width = foreign.weights["w_dec"].shape
    named: dict[str, Any] = {"k": foreign.k} if foreign.kind in LISTED_KINDS else {}
    coder = CoderConfig(layer=layer, kind=foreign.kind, site=foreign.site, features=features, **named)
    unit = "packed" if subject.tokens == TEXT else domain_of(subject.tokens).unit
    data = DataConfig(rows=f"{unit}:{min(CONTEXT, subject.context) + 1}", tokens=cast(Any, subject.tokens))
    return FitConfig(
        source=subject.name,
        module=module,
        data=subject.config.data if subject.config else data,
        train=TrainConfig(steps=0),
        coder=coder.complete(width, 1),
    )


def _open(folder: Path) -> tuple[str, dict[str, Any], dict[str, Tensor]]:
    """Which format a folder has, its settings and its tensors."""
    if not folder.is_dir():
        raise ValueError(f"there is no folder {folder}; give one that SAELens or sparsify saved, downloaded if need be")
    found = [format for format in FORMATS if (folder / WEIGHTS[format]).is_file()]
    if not found:
        inside = sorted(each.name for each in folder.iterdir() if (each / CFG).is_file())
        advice = f"give one of the folders in it, such as {folder / inside[0]}" if inside else "give one of theirs"
        raise ValueError(
            f"{folder} is no coder of SAELens or sparsify, it has neither {' nor '.join(WEIGHTS.values())}; {advice} "
            f"(other files than safetensors are not read)"
        )
    (format, *_), path = found, folder / CFG
    try:
        cfg = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} could not be read: {error}; give the folder as it was saved") from None
    if not isinstance(cfg, dict):
        raise ValueError(f"{path} holds {type(cfg).__name__}; expected keys and values, as it was saved")
    path = folder / WEIGHTS[format]
    try:
        verify_tensors(path)
        with safe_open(path, framework="pt") as file:
            return format, cfg, {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError, Damaged) as error:
        raise ValueError(f"{path} could not be read: {error}; copy it again from where it came from") from None


def _require_free(out: Path) -> None:
    if out.exists() and not (out.is_dir() and {path.name for path in out.iterdir()} <= {LOCK}):
        raise ValueError(f"{out} is there already and not empty; give another --out")


def _sweep_export(out: Path, target: Path, format: str) -> None:
    """Deletes what a killed export of one coder left in its folder `target`, and then this folder and its parents up to
    `out`, where they are empty."""
    if format not in WEIGHTS or not target.is_dir():
        return
    with writing(target):
        _sweep_killed(target, UNFINISHED, WEIGHTS[format], last=CFG)
    while target != out and not any(target.iterdir()):
        target.rmdir()
        target = target.parent


def _sweep_killed(out: Path, marker: str, *others: str, last: str) -> None:
    """Deletes what a killed export or import left in `out`: its first file `marker`, `others` and temporary files,
    without the `last` file. Whatever holds another file is left as it is. The caller holds the lock."""
    names = {path.name for path in out.iterdir()} - {LOCK} if out.is_dir() else set()
    temporary = {name for name in names if TEMPORARY.fullmatch(name)}
    if last not in names and names <= {marker, *others} | temporary and (marker in names or names <= temporary):
        for name in names:
            (out / name).unlink()


def _require_a_name(folder: Path, config: FitConfig, format: str) -> None:
    if format not in FORMATS:
        raise ValueError(f"there is no format {format!r}; known: {', '.join(FORMATS)}")
    if why := refusal(config.coder, format):
        raise ValueError(f"the coder in {folder} is of kind {config.coder.kind}; {why}")


def _hookpoint(config: FitConfig) -> str:
    """The path of the place below the base model, as sparsify names it. Of a model that is not at hand the blocks are
    taken to be `layers`."""
    try:
        family = family_of(read_settings(config.source))
    except (OSError, ValueError, LookupError):
        family = ""
    path = (config.module or MLPS.get(family, "model.layers.{}.mlp")).replace("{}", str(config.coder.layer))
    below = path.partition(".")[2]
    return below.rpartition(".")[0] if config.coder.site == "stream" else below
