"""From a recipe and changed fields to the complete configuration of a run."""

from __future__ import annotations

from dataclasses import asdict, fields, is_dataclass
from pathlib import Path
from typing import Any, get_type_hints

from glassmoe import config as configuration
from glassmoe.config import RunConfig
from glassmoe.config_messages import nearest_key

from .arguments import PathLike, suggest


def find_recipe(name: PathLike, kind: str = "") -> Path:
    """The YAML file of a recipe, given by name or as a path. `kind`: "" for runs, "decompose" for sweeps of coders."""
    known = configuration.recipes(kind)
    if str(name) in known:
        return known[str(name)]
    if not Path(name).is_file():
        raise ValueError(f"no recipe or file {str(name)!r}; {suggest(str(name), known)} Recipes: {', '.join(known)}")
    return Path(name)


def configure(recipe: PathLike | RunConfig | None, settings: dict[str, Any]) -> tuple[RunConfig, str]:
    """The configuration that a recipe and changed fields describe, and the name of the recipe, or else of the
    feed-forward layer."""
    values, name = {}, ""
    if isinstance(recipe, RunConfig):
        values = asdict(recipe)
    elif recipe is not None:
        path = find_recipe(recipe)
        values, name = configuration.read(path), path.stem
    for key, value in settings.items():
        if isinstance(value, dict) and key in SECTIONS:
            values.setdefault(key, {}).update(value)
            continue
        section, _, field = full_name(key).rpartition(".")
        (values.setdefault(section, {}) if section else values)[field] = value
    config = configuration.from_dict(values)
    return config, name or config.model.ffn


def full_name(key: str) -> str:
    """The dotted name of a field that is given in full or, where it is unique, by its last part."""
    if "." in key or key in TOP:
        return key
    sections = [section for section, names in SECTIONS.items() if key in names]
    if len(sections) != 1:
        raise ValueError(f"unknown configuration key {key}; {nearest_key(key, RunConfig)}")
    return f"{sections[0]}.{key}"


def _sections() -> dict[str, tuple[str, ...]]:
    hints = get_type_hints(RunConfig)
    return {name: tuple(f.name for f in fields(hint)) for name, hint in hints.items() if is_dataclass(hint)}


SECTIONS = _sections()
"""Section of a run's configuration -> its fields."""
TOP = tuple(f.name for f in fields(RunConfig) if f.name not in SECTIONS)
"""Fields outside all sections."""
