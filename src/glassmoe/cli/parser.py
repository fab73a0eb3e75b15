"""From a public function to its command: options, help and messages come from the signature and the docstring.

A parameter without default is positional, unless it is keyword-only; then it is a required option. Options are spelled
with hyphens or underscores. A Boolean option is a flag, `--flag` or `--no-flag`.
"""

from __future__ import annotations

import argparse
import builtins
import difflib
import inspect
import os
import re
import textwrap
import warnings
from collections.abc import Callable, Sequence
from importlib import import_module
from typing import Any

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import jsonargparse

from glassmoe.config_messages import expected

from .verbs import Verb

WIDTH = 110
ALIASES = {"config": "recipe", "data.path": "data"}
"""Spellings of earlier versions -> parameter. `--layer` and `--layers` mean each other where one of them exists."""


class Signature:
    """The parameters of a verb's function that the command line has, and what its docstring says of them."""

    def __init__(self, verb: Verb):
        module, _, name = verb.function.partition(":")
        self.verb = verb
        self.call: Callable[..., Any] = getattr(import_module(f"glassmoe.api.{module}"), name)
        parameters = inspect.signature(self.call).parameters
        self.parameters = {
            name: p for name, p in parameters.items() if name not in verb.fixed and p.kind is not p.VAR_KEYWORD
        }
        self.positionals = [
            name
            for name, p in self.parameters.items()
            if name in (verb.many, verb.optional) or (p.default is p.empty and p.kind is not p.KEYWORD_ONLY)
        ]
        self.required_options = [
            name for name, p in self.parameters.items() if p.kind is p.KEYWORD_ONLY and p.default is p.empty
        ]
        about, documented = documentation(self.call)
        self.about = self._plain(about)
        self.documented = {name: self._plain(text) for name, text in documented.items()}

    def _plain(self, text: str) -> str:
        """What a docstring says of a parameter, for the command line: options by their spelling there, and nothing that
        only Python takes."""
        text = re.sub(r" \(in Python also [^)]*\)|; in Python also [^.]*", "", text)
        options = {*self.parameters} - {*self.positionals}
        return re.sub(
            r"`(\w+)`", lambda name: f"--{name[1].replace('_', '-')}" if name[1] in options else name[0], text
        )


class Formatter(jsonargparse.DefaultHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """Help without Python's types: the text of the docstring says what is expected, and the default stands behind."""

    def __init__(self, prog: str) -> None:
        super().__init__(  # type: ignore[no-untyped-call]
            prog, max_help_position=30, width=min(WIDTH, int(os.environ.get("COLUMNS", WIDTH)))
        )

    def _get_help_string(self, action: argparse.Action) -> str:
        text = (action.help or "") if action.help is not argparse.SUPPRESS else ""
        default = action.default
        default = "on" if default is True else default
        unset = default is False or default in (None, argparse.SUPPRESS, "")
        if unset or "default:" in text or not action.option_strings:
            return text
        return f"{text} (default: {default})"

    def _format_action_invocation(self, action: argparse.Action) -> str:
        names = [name for name in action.option_strings if not name.endswith("+")]
        if not names:
            return str(action.metavar or action.dest).upper()
        name = names[-1].replace("_", "-") if "." not in names[-1] else names[-1]
        if action.nargs == 0 or _is_flag(action):
            name = f"--[no-]{name[2:]}" if action.default is True else name
            return f"-h, {name}" if name == "--help" else name
        return f"{name} {_metavar(action)}"


def _is_flag(action: argparse.Action) -> bool:
    return getattr(action, "_typehint", None) in (bool, bool | None)


def _metavar(action: argparse.Action) -> str:
    if isinstance(action.metavar, str) and action.metavar.startswith("{"):
        return action.metavar
    if action.choices:
        return "{" + ",".join(map(str, action.choices)) + "}"
    return action.dest.rpartition(".")[2].upper()


def build(signature: Signature) -> jsonargparse.ArgumentParser:
    """The parser of a verb."""
    verb = signature.verb
    parser = jsonargparse.ArgumentParser(
        prog=f"glassmoe {verb.name}",
        usage=usage(signature),
        description=description(signature),
        formatter_class=Formatter,
        exit_on_error=False,
        allow_abbrev=False,
    )
    by_hand: set[str | int] = {name for name in (verb.many, verb.optional) if name}
    for name in signature.positionals:
        if name in by_hand:
            parser.add_argument(name, nargs="+" if name == verb.many else "?", type=str)
    parser.add_function_arguments(_light(signature), as_group=False, as_positional=True, skip=by_hand)
    for action in parser._actions:
        action.help = signature.documented.get(action.dest, action.help)
    parser.add_argument("--json", action="store_true", help="Print the result as JSON.")
    return parser


def usage(signature: Signature) -> str:
    verb = signature.verb
    words = [f"glassmoe {verb.name}"]
    for name in signature.positionals:
        shown = name.upper()
        words.append(f"{shown} ..." if name == verb.many else f"[{shown}]" if name == verb.optional else shown)
    words += [f"--{name.replace('_', '-')} {name.upper()}" for name in signature.required_options]
    return " ".join([*words, "[options]"])


def description(signature: Signature) -> str:
    examples = "".join(f"\n  glassmoe {each}" for each in signature.verb.examples)
    return textwrap.fill(signature.about, WIDTH) + (f"\n\nexample:{examples}" if examples else "")


def parse(signature: Signature, parser: Any, words: Sequence[str]) -> dict[str, Any]:
    """The arguments of a verb from the words after it, `json` among them. ValueError, one sentence, for a mistake."""
    name = signature.verb.name
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            arguments = vars(parser.parse_args(normalise(words, signature, parser)))
    except argparse.ArgumentError as error:
        raise ValueError(f"{name}: {explain(str(error), signature, parser)}") from None
    return {key: value for key, value in arguments.items() if key in signature.parameters or key == "json"}


def normalise(words: Sequence[str], signature: Signature, parser: Any) -> list[str]:
    """The words as the parser knows them: options by the parameters' names, flags with a value, positional parameters
    that were given as options in their place. ValueError for an option that is not there."""
    name = signature.verb.name
    known = {action.dest for action in parser._actions}
    flags = {action.dest for action in parser._actions if _is_flag(action)}
    options: list[str] = []
    by_name: dict[str, str] = {}
    bare: list[str] = []
    waiting = list(words)
    while waiting:
        word = waiting.pop(0)
        if not word.startswith("--") or word == "--":
            bare.append(word)
            continue
        given, equals, value = word[2:].partition("=")
        parameter, negated = option(given, known, flags)
        if parameter is None:
            close = difflib.get_close_matches(f"--{given}", [f"--{each.replace('_', '-')}" for each in known], n=1)
            advice = f"did you mean {close[0]}?" if close else f"see {parser.prog} --help"
            raise ValueError(f"{name}: unknown option --{given}; {advice}")
        if parameter == "json":
            options.append("--json")
        elif parameter in flags:
            if not equals:
                value = waiting.pop(0) if waiting and waiting[0] in ("true", "false") else "true"
            options.append(f"--{parameter}={'false' if negated else value}")
        else:
            if not equals:
                if not waiting or re.match("--[a-z]", waiting[0]):
                    raise ValueError(f"{name}: --{given} needs a value; see {parser.prog} --help")
                value = waiting.pop(0)
            if parameter in signature.positionals:
                by_name[parameter] = value
            else:
                options.append(f"--{parameter}={value}")
    dashes = ["--"] if any(word.startswith("-") for word in bare) else []
    return [*options, *dashes, *_in_place(signature, bare, by_name)]


def _in_place(signature: Signature, bare: list[str], by_name: dict[str, str]) -> list[str]:
    """Positional words in the order of the parameters."""
    if not by_name:
        return bare
    words: list[str] = []
    for name in signature.positionals:
        if name in by_name:
            words.append(by_name[name])
        elif name == signature.verb.many:
            words, bare = [*words, *bare], []
        elif bare:
            words.append(bare.pop(0))
    return words + bare


def option(name: str, known: set[str], flags: set[str]) -> tuple[str | None, bool]:
    """The parameter that an option means, and whether it is negated."""
    dest = ALIASES.get(name, name).replace("-", "_")
    tries = [dest, f"{dest}s", dest.removesuffix("s")]
    for each in tries:
        if each in known:
            return each, False
    positive = dest.removeprefix("no_")
    if dest != positive and positive in flags:
        return positive, True
    return None, False


def explain(message: str, signature: Signature, parser: Any) -> str:
    """jsonargparse's message in our words: which option, what it takes, what was given."""
    message = " ".join(message.split())
    program = parser.prog
    if "are required" in message or "is required" in message:
        names = (
            message.rpartition(":")[2].strip() if "following" in message else re.findall(r'[Kk]ey "(\w+)"', message)[0]
        )
        return f"required: {names}; see {program} --help"
    if "nrecognized arguments" in message:
        return f"unexpected {message.rpartition(':')[2].strip()!r}; see {program} --help"
    found = re.search(r'[Kk]ey "([\w.]+)"', message)
    value = re.search(r"(?:Got|Given) value: (.*)", message)
    if not found:
        return f"{message}; see {program} --help"
    action = next((a for a in parser._actions if a.dest == found[1]), None)
    hint = getattr(action, "_typehint", None)
    name = found[1] if found[1] in signature.positionals else f"--{found[1].replace('_', '-')}"
    given = f", got {value[1]!r}" if value else ""
    return f"{name} takes {expected(hint)}{given}"


def _light(signature: Signature) -> Callable[..., Any]:
    """A stand-in for a function with the types of its parameters resolved. A type that is only known to type checkers
    stands for objects that a command line cannot name, and counts as text, so that nothing heavy is imported."""
    names = _Names(inspect.unwrap(signature.call).__globals__)
    parameters = [
        p.replace(annotation=eval(p.annotation, {}, names) if isinstance(p.annotation, str) else p.annotation)
        for p in signature.parameters.values()
    ]

    def light() -> None:
        pass

    light.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    return light


class _Names(dict[str, Any]):
    """Names of a module and the built-in ones; an unknown name is `str`."""

    def __missing__(self, name: str) -> Any:
        return getattr(builtins, name, str)


def documentation(function: Callable[..., Any]) -> tuple[str, dict[str, str]]:
    """What a function does, in one paragraph, and what each parameter is, from its docstring."""
    text = inspect.cleandoc(function.__doc__ or "")
    about, _, rest = text.partition("\nArgs:\n")
    rest = re.split(r"\n(?:Returns|Raises):\n", rest)[0]
    found: dict[str, str] = {}
    for entry in re.split(r"\n(?= {4}\w+: )", "\n" + rest):
        name, _, described = entry.strip().partition(": ")
        if name.isidentifier():
            found[name] = " ".join(described.split())
    return " ".join(about.split("\n\n")[0].split()), found
