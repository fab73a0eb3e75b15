"""Plain text from the markup of Wikipedia: what goes, what stays, and whole articles of a dump."""

import bz2
from pathlib import Path

import pytest

from glassmoe.text.wikipedia import articles, plain_text


@pytest.mark.parametrize(
    ("markup", "text"),
    [
        ("'''Bold''' and ''italic''", "Bold and italic"),
        ("a [[link]], a [[Target page|named one]]", "a link, a named one"),
        ("before {{Infobox|a={{nested|x}}|b=1}}after", "before after"),
        ("one\n{| class=x\n|-\n| a || b\n{|\n| inner\n|}\n|}\ntwo", "one\n\ntwo"),
        ("said.<ref name=x>{{cite}}</ref> Then<ref name=x /> more<!-- no\none -->.", "said. Then more."),
        ("[[File:A.jpg|thumb|A [[caption]] with a [[b|link]]]]text", "text"),
        ("[[Category:Things]][[de:Dinge]]x", "x"),
        ("== Heading ==\n* one\n# two\n: three", "Heading\n- one\n- two\nthree"),
        ("see [http://a.org/b the page] [http://c.org]", "see the page"),
        ('Plato (, "broad") wrote &amp; taught &lt;b&gt;', 'Plato (, "broad") wrote & taught <b>'),
        ("a ( ) b , c", "a b, c"),
        ("E = <math>mc^2 </math>.", "E =."),
        ("text\n== See also ==\n* [[other]]\n=== more ===\nx", "text"),
        ("a\n\n\n \n\nb", "a\n\nb"),
    ],
)
def test_markup(markup: str, text: str) -> None:
    assert plain_text(markup) == text


def test_articles_of_a_dump_without_redirects(tmp_path: Path) -> None:
    page = "<page><title>{}</title><revision><text xml:space='preserve'>{}</text></revision></page>"
    xml = '<mediawiki xmlns="http://www.mediawiki.org/xml/export-0.10/">' + "".join(
        page.format(*each)
        for each in (("Apollo", "'''Apollo''' is a god."), ("Old", "#redirect [[Apollo]]"), ("Algae", "[[Plant]]s"))
    )
    for file, data in (
        ("dump.xml", (xml + "</mediawiki>").encode()),
        ("dump.bz2", bz2.compress((xml + "</mediawiki>").encode())),
    ):
        (tmp_path / file).write_bytes(data)
        assert list(articles(tmp_path / file)) == [("Apollo", "Apollo is a god."), ("Algae", "Plants")]
