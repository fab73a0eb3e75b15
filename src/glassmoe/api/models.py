"""Open a model: from a path, a hub id or objects, to its layers of features by name."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from .arguments import Device, Dtype, Numbers, PathLike, public, whole_numbers
from .targets import check_target

if TYPE_CHECKING:
    from glassmoe.inspect.model import Model
    from glassmoe.model.subject import Subject


@public()
def load(
    source: PathLike | Model | tuple[Any, Any],
    *,
    layers: Numbers | None = None,
    neurons: bool = False,
    model: PathLike | Subject | None = None,
    device: Device = "auto",
    dtype: Dtype = "float32",
    device_map: str | None = None,
    prefix: bool = False,
) -> Model:
    """Open a model for reading: its features on a text, edits of them, and what it generates.

    Args:
        source: A run directory, an exported folder, a folder of transformers files, a hub id, a folder that
            `glassmoe.decompose` made (one coder or all), or a pair (model, tokenizer) of transformers objects.
        layers: Layers to open, such as 3, [0, 3] or "0,3" (default: all).
        neurons: Of coders: also open the neurons of the MLPs that they replace.
        model: Of coders: current path of the model that they were fitted to, if it moved.
        device: Where the model runs.
        dtype: Type of the weights of a model of transformers; auto: as in its files.
        device_map: Of a model of transformers: over which devices accelerate spreads it, such as auto.
        prefix: Load a model of transformers up to the last of the layers, or of the coders, and nothing behind it. Its
            features can be read; edits, generation and graphs need the whole model.

    Returns:
        A `Model`, a mapping from names such as `1/moe-x` or `8/mxd-k32` to layers of features.

    Raises:
        ValueError: There is no such model, its files do not fit each other, or a layer is not there.
    """
    numbers = whole_numbers(layers, "layers")
    check_target(source, numbers)
    from glassmoe.inspect.model import Model
    from glassmoe.inspect.readers import open_readers, readable

    if isinstance(source, Model):
        if layers is None and not neurons:
            return source
        chosen = readable(source.subject, source.layers, numbers, own=neurons, name=str(source.path or source))
        return Model(source.subject, chosen, source.path)
    from glassmoe.model.loading import Loading

    how = Loading(dtype, device_map, prefix)
    subject, opened = open_readers(source, numbers, own=neurons, source=model, device=device, how=how)
    return Model(subject, opened, None if isinstance(source, tuple) else Path(source))
