"""Kinds of text longer than a token, which rules can name: dates, times, amounts, and others that people recognise.

A tokenizer cuts these as it likes ("2007" into digits, "NASA" into two pieces), so a kind is looked for in the text of
a window, and holds the tokens that share a character with a match, spaces at its edges apart. What is cut off at the
edge of a window may be missed.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

_MONTH = (
    r"(?:Jan(?:uary|\.)?|Feb(?:ruary|\.)?|Mar(?:ch|\.)?|Apr(?:il|\.)?|May|June?\.?|July?\.?|Aug(?:ust|\.)?"
    r"|Sept?(?:ember|\.)?|Oct(?:ober|\.)?|Nov(?:ember|\.)?|Dec(?:ember|\.)?)"
)
_DAY = r"(?:3[01]|[12]\d|0?[1-9])(?:st|nd|rd|th)?"
_YEAR = r"(?:1\d{3}|20\d\d)"
_NUMBER = r"\d[\d,]*(?:\.\d+)?"
_UNITS = (
    "km|cm|mm|kg|mg|km/h|mph|kW|MW|GHz|MHz|Hz|KB|MB|GB|TB|ml|ft|lbs?|oz|sq|"
    "metres?|meters?|kilomet(?:re|er)s?|miles?|feet|foot|inch(?:es)?|yards?|acres?|hectares?|tons?|tonnes?|pounds?|"
    "ounces?|grams?|kilograms?|lit(?:re|er)s?|gallons?|degrees?|percent|per cent|watts?|volts?|"
    "seconds?|minutes?|hours?|days?|weeks?|months?|years?"
)
_MONEY = "dollars?|euros?|cents?|yen|rupees?|francs?|USD|EUR|GBP"

SPANS: dict[str, re.Pattern[str]] = {
    "a date": re.compile(
        rf"\b(?:{_DAY} (?:of )?{_MONTH}(?:,? {_YEAR})?|{_MONTH} {_DAY}\b(?:,? {_YEAR})?|{_MONTH},? {_YEAR}"
        rf"|{_YEAR}-\d\d-\d\d|\d\d?/\d\d?/(?:\d{{4}}|\d\d))\b"
    ),
    "a year": re.compile(rf"(?<![\d.,$]){_YEAR}(?![\d,.]\d|\d)"),
    "a time of day": re.compile(
        r"\b(?:[01]?\d|2[0-3]):[0-5]\d(?::[0-5]\d)?(?: ?[ap]\.?m\b\.?)?|\b\d\d? ?(?:[ap]\.m\.|[ap]m\b|o'clock\b)", re.I
    ),
    "an amount of money": re.compile(
        rf"[$\u20ac\u00a3\u00a5] ?{_NUMBER}(?: (?:million|billion|trillion))?"
        rf"|\b{_NUMBER} (?:(?:million|billion|trillion) )?(?:{_MONEY})\b"
    ),
    "a number with a unit": re.compile(rf"\b{_NUMBER}(?: ?%|[ -]?(?:{_UNITS})\b)"),
    "an ordinal number": re.compile(
        r"\b\d+(?:st|nd|rd|th)\b|\b(?:first|second|third|fourth|fifth|sixth|seventh|eighth|ninth|tenth)\b", re.I
    ),
    "a hashtag": re.compile(r"(?<!\w)#[^\W\d]\w*"),
    "text in capitals": re.compile(r"\b[A-Z]{2,}(?:[^\w\n]+[A-Z]{2,})*\b"),
    "an ellipsis": re.compile(r"\.{3,}|\. \. \.|\u2026"),
    "an abbreviation": re.compile(
        r"\b(?:(?:Mr|Mrs|Ms|Dr|Prof|St|Jr|Sr|vs|etc|Inc|Ltd|Co|Corp|Gen|Col|Capt|Lt|Sen|Rep|approx|cf|ed|vol|pp)\."
        r"|(?:[A-Za-z]\.){2,})"
    ),
    "a web address": re.compile(r"https?://[^\s<>\"]+|www\.[^\s<>\"]+|\b[\w.+-]+@\w[\w-]*\.[\w.-]*\w"),
    "text in brackets": re.compile(r"\([^()\n]{1,200}\)|\[[^\[\]\n]{1,200}\]"),
    "a quotation": re.compile(r"\"[^\"\n]{1,300}\"|\u201c[^\u201c\u201d\n]{1,300}\u201d"),
}
"""Kinds of text, in words -> what they look like."""


def within(tokens: Sequence[str], name: str) -> list[bool]:
    """Which tokens of a window share a character, other than a space, with a text of this kind."""
    text = "".join(tokens)
    inside = bytearray(len(text))
    for match in SPANS[name].finditer(text):
        inside[match.start() : match.end()] = b"\1" * (match.end() - match.start())
    found, at = [], 0
    for token in tokens:
        begin, end = at + len(token) - len(token.lstrip()), at + len(token.rstrip())
        found.append(any(inside[begin:end]))
        at += len(token)
    return found
