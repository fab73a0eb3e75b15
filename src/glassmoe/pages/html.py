"""The one place where pages are made: templates, elements, and the policy that a browser keeps for a page.

Text becomes HTML in two ways only, and both escape it: through a template, whose values are escaped, and through
`element`, which escapes attributes and children. Only `Markup` that these two returned is put in as it is.
"""

from __future__ import annotations

import base64
import hashlib
from functools import cache
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup, escape

from glassmoe import __version__
from glassmoe.text.spelling import visible

TEMPLATES = Path(__file__).parent / "templates"
SHARED_STYLES = ("colours.css", "drawings.css")
"""Style sheets that all pages share."""


def element(tag: str, attributes: dict[str, Any] | None = None, *children: str | Markup | None) -> Markup:
    """An element of HTML or SVG. Attributes and children that are None are left out; text is escaped."""
    given = "".join(f' {name}="{escape(value)}"' for name, value in (attributes or {}).items() if value is not None)
    inside = "".join(escape(child) for child in children if child is not None)
    return Markup(f"<{tag}{given}>{inside}</{tag}>")


def render(template: str, **values: Any) -> str:
    """A page from its template. A page that sets `styles` carries these style sheets itself, and its policy allows
    those alone."""
    return environment().get_template(template).render(version=__version__, **values)


@cache
def environment() -> jinja2.Environment:
    """All templates of the pages; every value is escaped, and one that is missing is an error."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "share": share,
        "count": count,
        "visible": visible,
        "decimals": decimals,
        "exponent": lambda value: f"{value:.2e}",
        "minutes": lambda seconds: f"{seconds / 60:.1f} min",
    }
    return environment


def style_sheet(*names: str, themes: bool) -> Markup:
    """Some style sheets as one. `themes`: whether a script of the page sets `data-theme`; otherwise the reader's
    system decides between light and dark."""
    return Markup("\n".join(render(name, themes=themes) for name in names))


def style_hash(style: str) -> str:
    """How a page's policy names a style sheet that the page carries itself."""
    return "sha256-" + base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()


def share(value: float | None) -> str:
    """A share as a percentage; a dash for None."""
    return "-" if value is None else f"{value:.0%}" if value >= 0.1 else f"{value:.1%}"


def count(value: float | None) -> str:
    """A count with at most three digits and a unit (k, M, G); a dash for None."""
    if value is None:
        return "-"
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e4, "k")):
        if value >= size:
            return f"{value / (1e3 if letter == 'k' else size):.3g}{letter}"
    return f"{value:,.0f}"


def decimals(value: float | None, places: int = 3) -> str:
    """A number with this many decimals; a dash for None."""
    return "-" if value is None else f"{value:.{places}f}"
