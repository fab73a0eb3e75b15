"""Names of coders: `LAYER/KIND-kK` in a sweep of layers. Behind the layer's number is the name by which one kind is
chosen in all layers."""

from __future__ import annotations

from collections.abc import Collection


def short_name(name: str) -> str:
    """The name without its layer: `mxd-k32` of `15/mxd-k32`, and `mxd-k32` of itself."""
    return name.rpartition("/")[2]


def is_meant(name: str, wanted: str | None) -> bool:
    """Whether `wanted` is this name, with or without its layer; None means every coder."""
    return wanted is None or wanted in (name, short_name(name))


def require_coder(names: Collection[str], wanted: str) -> None:
    """ValueError unless `wanted` is one of these names, with or without its layer."""
    if not any(is_meant(name, wanted) for name in names):
        raise ValueError(f"there is no coder {wanted!r}; choose one of {', '.join(names) or 'none'}")
