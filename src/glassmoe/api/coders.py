"""Open a pretrained model by sparse coders, and exchange coders and models with other tools."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from glassmoe.registry import CODER_REGISTRY

from .arguments import (
    Device,
    Dtype,
    Names,
    Numbers,
    PathLike,
    Precision,
    count,
    names,
    one_of,
    path_of,
    public,
    whole_numbers,
)
from .recipes import find_recipe
from .targets import check_target, coder_names

if TYPE_CHECKING:
    from glassmoe.coders.configuration import SweepConfig
    from glassmoe.hub.model import ExportedFolders
    from glassmoe.inspect.model import Model

TOKENS, BATCH_TOKENS = 8_000_000, 4096


@public(k=None, features=count)
def decompose(
    model: PathLike | Model | tuple[Any, Any] | None = None,
    *,
    layers: Numbers | None = None,
    coders: Names = "mxd",
    k: Numbers = 32,
    data: PathLike | None = None,
    out: PathLike | None = None,
    recipe: PathLike | None = None,
    module: str | None = None,
    site: Literal["stream", "mlp-out"] = "mlp-out",
    features: int | None = None,
    activation: str | None = None,
    tokens: int = TOKENS,
    batch_tokens: int = BATCH_TOKENS,
    context: int | None = None,
    lr: float | None = None,
    reference: bool = False,
    normalise: Literal["none", "rms"] | None = None,
    seed: int = 0,
    device: Device = "auto",
    precision: Precision = "auto",
    dtype: Dtype = "float32",
    device_map: str | None = None,
    prefix: bool = False,
) -> Model:
    """Fit sparse coders to layers of a pretrained model, all in one pass over it: mixtures of decoders or experts,
    transcoders, autoencoders. A fit that was stopped resumes.

    Args:
        model: A run directory, a folder of transformers files, or a hub id; in Python also what `load` returned, or
            objects (model, tokenizer).
        layers: Layers to open, such as 8, [3, 8] or "3,8".
        coders: Kinds of coder, such as "mxd" or "mxd,transcoder,moe-x,sae-topk".
        k: Features per token, such as 32 or "8,16,32"; every kind that has a k is fitted once for each.
        data: Prepared data, or text (.jsonl, .txt, folders) that is prepared into `out` (default: the data of the run).
        out: Directory of the coders (default: runs/NAME-coders).
        recipe: Name or YAML file of a sweep, which sets everything except the paths of model, data and coders.
        module: Path of the MLP in a family that is not known, such as model.h.{}.mlp.
        site: What autoencoders read: the output of the MLP, or the residual stream after the block.
        features: Features of a transcoder (default: 32 times the width); mixtures get the same number of parameters.
        activation: Hidden activation of mxd (default: that of the model's MLP).
        tokens: Tokens to learn from.
        batch_tokens: Tokens of a step.
        context: Tokens of a row (default: 128, or as in the run's training).
        lr: Peak learning rate (default: by the length of the fit).
        reference: Fit as the papers' code does where ours differs (docs/differences.md).
        normalise: Unit of what coders read and rebuild: rms, the root mean square of its entries, or none (default: rms
            unless `reference`).
        seed: Seed of the initial weights and of the order of rows.
        device: Where the model and the coders run.
        precision: Compute type of the model, and of large products while coders learn.
        dtype: Type of the weights of a model of transformers; auto: as in its files.
        device_map: Of a model of transformers: over which devices accelerate spreads it, such as auto.
        prefix: Load a model of transformers up to the last layer that is read, and nothing behind it.

    Returns:
        A `Model` whose layers are the fitted coders, by names such as `8/mxd-k32`.
    """
    if recipe is not None:
        options: dict[str, Any] = {"layers": layers, "coders": coders, "k": k, "module": module, "site": site}
        options |= {"features": features, "activation": activation, "tokens": tokens, "batch_tokens": batch_tokens}
        options |= {"context": context, "lr": lr, "reference": reference, "normalise": normalise, "seed": seed}
        defaults = inspect.signature(decompose).parameters
        both = [name for name, value in options.items() if value != defaults[name].default]
        if both:
            raise ValueError(f"the recipe {recipe} sets {both[0]} already; leave one of the two out")
    elif model is None or layers is None:
        raise ValueError("decompose needs a model and layers, or a recipe, such as: decompose gpt2 --layers 8")
    numbers = whole_numbers(layers, "layers")
    kinds, ks = names(coders, "coders"), whole_numbers(k, "k")
    for kind in kinds or ():
        CODER_REGISTRY.check(kind)
    named = model if isinstance(model, str | Path) else None
    check_target(named, numbers)
    folder = Path("runs") / f"{Path(named or recipe or 'model').name}-coders" if out is None else Path(out)
    from glassmoe.coders.fit import fit
    from glassmoe.coders.sweep import sweep
    from glassmoe.model.loading import Loading
    from glassmoe.model.subject import load_subject

    how = Loading(dtype, device_map, prefix)
    if recipe is not None:
        config = _sweep_of(recipe, named, data, folder, device, precision)
        subject = load_subject(config.source, device, how=how, last=max(each.layer for each in config.coders))
    else:
        assert model is not None and numbers is not None and kinds is not None and ks is not None
        source: Any = getattr(model, "subject", model)
        subject = load_subject(source, device, how=how, last=max(numbers))
        config = sweep(
            subject,
            layers=numbers,
            coders=kinds,
            ks=ks,
            data=None if data is None else str(data),
            out=folder,
            module=module,
            site=site,
            features=features,
            activation=activation,
            tokens=tokens,
            batch_tokens=batch_tokens,
            context=context,
            lr=lr,
            reference=reference,
            normalise=normalise,
            seed=seed,
            precision=precision,
            device=device,
        )
    from .models import load

    fit(config, folder, subject)
    fitted = load(folder, model=subject, device=device)
    fitted.layers = {name: fitted.layers[name] for name in config.fits()}  # in the order that was asked for
    return fitted


def _sweep_of(
    recipe: PathLike, model: PathLike | None, data: PathLike | None, out: Path, device: str, precision: str
) -> SweepConfig:
    """The sweep that a recipe describes, on this model and this data."""
    from dataclasses import replace

    from glassmoe.coders.configuration import SweepConfig
    from glassmoe.coders.sweep import prepared
    from glassmoe.config import load_as

    config = load_as(SweepConfig, find_recipe(recipe, "decompose"))
    source = config.source if model is None else str(model)
    path = config.data.path if data is None else prepared(str(data), source, out)
    settings: dict[str, Any] = {"device": device, "precision": precision}
    train = replace(config.train, **settings)
    return replace(config, source=source, data=replace(config.data, path=path), train=train)


@public(format=one_of("transformers", "saelens", "sparsify"))
def export(
    source: PathLike,
    out: PathLike,
    *,
    format: Literal["transformers", "saelens", "sparsify"] = "transformers",
    license: str | None = None,
    push: str | None = None,
) -> ExportedFolders:
    """Write a model as a folder that transformers opens without glassmoe, or coders as folders of SAELens or sparsify.
    Coders that the format does not have are left out and listed with the reason.

    Args:
        source: A run directory, or what `decompose` made (one coder or all).
        out: Folder to write.
        format: transformers for a model; saelens or sparsify for coders.
        license: Of a model: the licence that its card names, such as apache-2.0 (default: unknown).
        push: Of a model: repository on the Hugging Face hub to upload the folder to.
    """
    if format != "transformers" and (license or push):
        raise ValueError(f"{'license' if license else 'push'} belongs to models; leave it out for coders")
    source = path_of(source)
    check_target(source)
    if format == "transformers" and coder_names(Path(source)):
        raise ValueError(f"{source} holds coders; give the format saelens or sparsify")
    from glassmoe.hub.model import UNKNOWN, ExportedFolders, export_model
    from glassmoe.hub.model import push as upload

    if format != "transformers":
        from glassmoe.coders.formats import export_coders

        folders, left_out = export_coders(Path(source), Path(out), format)
        return ExportedFolders(format, [str(folder) for folder in folders], left_out=left_out or None)
    export_model(str(source), Path(out), license or UNKNOWN)
    return ExportedFolders(format, [str(out)], pushed=None if push is None else upload(Path(out), push))


@public(site=one_of("stream", "mlp-out", "mlp"))
def import_coder(
    folder: PathLike,
    *,
    model: PathLike,
    out: PathLike,
    layer: int | None = None,
    site: Literal["stream", "mlp-out", "mlp"] | None = None,
    module: str | None = None,
    device: Device = "auto",
) -> Model:
    """Read a coder that SAELens or sparsify saved, and store it like a fit of our own.

    Args:
        folder: Folder with cfg.json and sae_weights.safetensors or sae.safetensors.
        model: The model that the coder belongs to: a run directory, a folder of transformers files, or a hub id.
        out: Directory to write.
        layer: Layer that it belongs to (default: as in the folder).
        site: What it reads and rebuilds (default: as in the folder).
        module: Path of the MLP in a family that is not known, such as model.h.{}.mlp.
        device: Where the model runs.
    """
    from glassmoe.coders.formats import import_coder as read_coder

    read_coder(Path(folder), str(model), layer, Path(out), site, module, device)
    from .models import load

    return load(out, model=model, device=device)
