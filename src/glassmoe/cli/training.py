"""The verbs `train` and `upcycle`: every field of a run's configuration is an option, by its full name or, where it is
unique, by the last part of that (`--model.width 256`, `--width 256`)."""

from __future__ import annotations

import argparse
import difflib
import re
import warnings
from collections.abc import Sequence
from functools import cache
from typing import Any

import jsonargparse

from glassmoe import config as configuration
from glassmoe.api.arguments import whole_numbers
from glassmoe.api.recipes import SECTIONS, TOP, find_recipe
from glassmoe.config_messages import explain, hint_of

from .parser import Formatter, Signature, description, usage
from .verbs import VERBS

GROUPS = {
    "The complete configuration of a run": "run",
    "Which games or text, and how rows are cut from them": "data",
    "The decoder": "model",
    "Where the initial weights come from": "start",
    "How weights are updated": "optimizer",
    "How long training takes, in which batches, and what is saved": "training",
}
"""Docstrings of the sections, by which jsonargparse names groups of options -> what the help calls them."""
ALIASES = {"config": "recipe", "data": "data.path"}
DRY_RUN: dict[str, type] = {"dry_run": bool, "processes": int, "memory": float, "json": bool}
"""Options of a dry run and their types; those of type bool need no value."""


def build_training(signature: Signature) -> Any:
    """The parser: the function's own parameters, and the fields of `RunConfig`."""
    jsonargparse.set_parsing_settings(docstring_parse_attribute_docstrings=True)
    recipes = ", ".join(configuration.recipes())
    parser = jsonargparse.ArgumentParser(
        prog=f"glassmoe {signature.verb.name}",
        usage=usage(signature),
        description=f"{description(signature)}\n\nrecipes: {recipes}",
        epilog="--help shows the common options, --help-all every field of a run. The last part of a name is enough "
        "where no other option ends in it: --steps 200.",
        formatter_class=Formatter,
        exit_on_error=False,
        allow_abbrev=False,
    )
    for name in signature.positionals:
        nargs = "?" if name == signature.verb.optional else None
        parser.add_argument(name, type=str, nargs=nargs, help=signature.documented.get(name))
    parser.add_argument("--out", type=str, help=signature.documented.get("out"))
    for name, kind in _own(signature).items():
        default = signature.parameters[name].default if name in signature.parameters else False
        about = signature.documented.get(name, "Print the result as JSON.")
        parser.add_argument(f"--{name}", type=kind, default=default, help=about)
    parser.add_argument("--recipe_file", action="config", help=argparse.SUPPRESS)
    configuration.add_arguments(parser)
    for group in parser._action_groups:
        group.title = GROUPS.get(group.title or "", group.title or "")
    for action in parser._actions:
        if action.dest == "data":
            action.help = signature.documented["data"]
        elif action.dest in SECTIONS:
            action.help = argparse.SUPPRESS
    return parser


@cache
def training_parser(verb: str) -> Any:
    """The parser of `train` or `upcycle`, built once for all commands of a process."""
    return build_training(Signature(VERBS[verb]))


def parse_training(signature: Signature, parser: Any, words: Sequence[str]) -> dict[str, Any]:
    """The arguments of the function from the words after the verb: the recipe as a complete `RunConfig`."""
    options, places = _split(signature, words)
    recipe = find_recipe(places.pop("recipe")) if "recipe" in places else None
    if recipe is not None:
        configuration.read(recipe)  # its mistakes are explained better here than by the parser
        options.insert(0, f"--recipe_file={recipe}")
    bare = [places[name] for name in signature.positionals if name in places]
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            parsed = parser.parse_args([*bare, *options])
            values = vars(parser.instantiate(parsed))
    except argparse.ArgumentError as error:
        raise ValueError(explain(str(error), configuration.RunConfig)) from None
    fields = {name: values[name] for name in (*SECTIONS, *TOP)}
    out = values["out"] or f"runs/{recipe.stem if recipe else fields['model'].ffn}"
    source = {"source": places["source"]} if "source" in places else {}
    own = {name: values[name] for name in _own(signature)}
    return {**source, "recipe": configuration.RunConfig(**fields), "out": out, **own}


def _own(signature: Signature) -> dict[str, type]:
    """Options that are no fields of a run, and their types, where the function has a dry run."""
    return DRY_RUN if "dry_run" in signature.parameters else {}


def _split(signature: Signature, words: Sequence[str]) -> tuple[list[str], dict[str, str]]:
    """Options by the full names of fields, and the positional values by name."""
    verb = signature.verb.name
    see = f"see glassmoe {verb} --help"
    options: list[str] = []
    places: dict[str, str] = {}
    bare: list[str] = []
    waiting = list(words)
    while waiting:
        word = waiting.pop(0)
        if not word.startswith("--"):
            bare.append(word)
            continue
        name, equals, value = word[2:].partition("=")
        if not equals and _own(signature).get(name.replace("-", "_")) is bool:
            value = waiting.pop(0) if waiting and waiting[0] in ("true", "false") else "true"
        elif not equals and not (waiting and not re.match("--[a-z]", waiting[0])):
            if name in signature.documented or not _is_switch(name):
                raise ValueError(f"{verb}: --{name} needs a value; {see}")
            value = "true"
        elif not equals:
            value = waiting.pop(0)
        name = ALIASES.get(name, name)
        if name == "layers" and "layers" in signature.documented:
            name, value = "start.replace_layers", str(whole_numbers(value, "layers"))
        if name in signature.positionals:
            places[name] = value
        else:
            own = name.replace("-", "_")
            options.append(f"--{own if own in _own(signature) else _field(name)}={value}")
    for name in signature.positionals:
        if name not in places and bare:
            places[name] = bare.pop(0)
    missing = [name for name in signature.positionals if name not in places and name != signature.verb.optional]
    if missing:
        raise ValueError(f"{verb}: required: {missing[0]}; {see}")
    if bare:
        raise ValueError(f"{verb}: unexpected {bare[0]!r}; {see}")
    return options, places


def _is_switch(name: str) -> bool:
    """Whether an option is a field that is true or false, which needs no value to be turned on."""
    return hint_of(_field(ALIASES.get(name, name)), configuration.RunConfig) is bool


def _field(name: str) -> str:
    """The full name of a field. ValueError that names the nearest one for an unknown name."""
    plain = name.replace("-", "_")
    if plain in ("out", *SECTIONS, *TOP):
        return plain
    section, _, last = plain.rpartition(".")
    if section:
        if last in SECTIONS.get(section, ()):
            return plain
    else:
        matches = [f"{each}.{last}" for each, names in SECTIONS.items() if last in names]
        if len(matches) == 1:
            return matches[0]
    known = [f"{each}.{field}" for each, names in SECTIONS.items() for field in names]
    close = difflib.get_close_matches(plain, known, n=1, cutoff=0.5)
    raise ValueError(f"unknown option --{name}; " + (f"did you mean {close[0]}?" if close else "see --help-all"))
