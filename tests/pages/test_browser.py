"""The pages in a headless Chromium, opened from disk as a reader opens them: what one sees, types and clicks."""

import threading
from pathlib import Path

import pytest
from benchmarks.browser import Page

from explored import MARKUP, chess_run, explain, text_run
from glassmoe.pages.explore.prompts import live_prompts
from glassmoe.pages.explore.serve import address, server
from glassmoe.pages.explore.site import build_site

pytestmark = pytest.mark.browser
ODD = "<b onclick=alert(1)>run"


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("browser")
    run = chess_run(folder, ODD)
    lines = []
    for number, feature in enumerate((5, 2, 40)):
        scores = {"detection": {"balanced_accuracy": 0.9 - number / 10, "f1": 0.5, "per_decile": [0.5] * 10}}
        board = {
            "property": ("white knight on f3", "black rook on a8", "white pawn on e4")[number],
            "f1": 0.3 + number / 5,
        }
        said = MARKUP if number == 0 else f"what feature {feature} is about"
        lines.append({"feature": feature, "explanation": said, "explainer": MARKUP, "scores": scores, "board": board})
    explain(run, "1/moe-x", lines)
    text_run(folder)
    build_site([run, folder / "text"], folder / "site")
    return folder / "site"


def layer(site: Path, name: str = "1-moe-x") -> str:
    (found,) = site.glob(f"*/{name}")
    return f"file://{found}/index.html"


def ready(page: Page, address: str) -> None:
    page.open(address)
    page.wait("document.documentElement.dataset.ready && document.querySelector('h1')")


def shown(page: Page) -> list[int]:
    """The features of the list that are drawn, from the top."""
    found = page.run(
        "[...document.querySelectorAll('.rows .row')].map(r => [r.dataset.place, r.querySelector('a').textContent])"
    )
    return [int(feature) for _, feature in sorted(found, key=lambda each: int(each[0]))]


def heading(page: Page) -> str:
    return str(page.run("document.querySelector('h1').textContent"))


def test_waiting_goes_on_when_the_page_is_left(page: Page, site: Path) -> None:
    ready(page, layer(site))
    other = f"file://{site}/index.html"
    leave = f"new Promise(() => location.assign({other!r}))"
    with pytest.raises(RuntimeError, match="navigated"):
        page.run(leave)
    ready(page, layer(site))
    # It leaves once: on the other page it would only hold up what is waited for.
    page.wait(f"location.href === {other!r} ? document.querySelector('.gallery a') : {leave}")
    assert page.run("document.querySelectorAll('.gallery a').length")
    with pytest.raises(RuntimeError, match="did not come true"):
        page.wait("false", seconds=0.1)
    with pytest.raises(RuntimeError, match="nothing is not defined"):
        page.wait("nothing.here")


def test_the_list(page: Page, site: Path) -> None:
    ready(page, layer(site))
    page.wait("document.querySelectorAll('.rows .row').length")
    assert shown(page)[:4] == [5, 2, 40, 0]  # the best explained first
    assert len(shown(page)) < 64  # only rows in sight are in the page
    assert "64 features" in page.run("document.querySelector('.count').textContent")
    page.run("scrollTo(0, document.body.scrollHeight)")
    page.wait("[...document.querySelectorAll('.rows a')].some(a => a.textContent === '63')")
    assert ODD in heading(page)


def test_search(page: Page, site: Path) -> None:
    ready(page, layer(site))
    page.press("/")
    page.type("about what")
    page.wait("document.querySelector('.count').textContent === '2 of 64'")
    assert shown(page) == [2, 40]
    page.press("Escape")
    page.wait("document.querySelector('.count').textContent === '64 features'")
    page.type("63")
    page.wait("document.querySelector('.rows a').textContent === '63'")
    page.press("Escape")
    page.type("no such words")
    page.wait("!document.querySelector('.none').hidden")
    assert shown(page) == []


def test_search_ranks_strongest_tokens_first(page: Page, site: Path) -> None:
    ready(page, layer(site))
    page.wait("document.querySelectorAll('.rows .row').length")
    token = page.run("glass.values.get('words-0').tops.flat().find(t => t)")
    page.press("/")
    page.type(token)
    page.wait("document.querySelector('.count').textContent.includes(' of 64')")
    ranks = page.run(
        f"""((want, shown) => shown.map(feature => {{
          const at = glass.values.get('list').ids.indexOf(feature);
          const tops = glass.values.get('words-0').tops[at].map(t => t.toLowerCase());
          return tops[0] === want ? 0 : tops.includes(want) ? 1 : tops.some(t => t.startsWith(want)) ? 2
            : tops.some(t => t.includes(want)) ? 3 : 4;
        }}))({token.lower()!r}, {shown(page)})"""
    )
    assert ranks and ranks == sorted(ranks) and ranks[0] == 0


def test_two_features_side_by_side(page: Page, site: Path) -> None:
    ready(page, layer(site) + "#5,2")
    assert "Features 5 and 2" in heading(page)
    assert page.run("[...document.querySelectorAll('.sides h2 a')].map(a => a.textContent)") == [
        "feature 5",
        "feature 2",
    ]
    ready(page, layer(site) + "#5")
    href = page.run("document.querySelector('.near tbody tr td:last-child a').getAttribute('href')")
    assert href.startswith("#5,")
    page.run("document.querySelector('.near tbody tr td:last-child a').click()")
    page.wait("document.querySelector('.sides')")
    ready(page, layer(site) + "#5,999")
    assert "not here" in page.run("document.querySelector('.sides').textContent")


def test_scatter(page: Page, site: Path) -> None:
    ready(page, layer(site) + "#scatter")
    assert page.run("document.querySelectorAll('.scatter circle').length") == 3
    assert page.run("document.querySelector('.scatter a').getAttribute('href')") in ("#5", "#2", "#40")
    (text,) = [each for each in site.glob("text/*") if each.is_dir()]
    ready(page, f"file://{text}/index.html#scatter")
    fires = page.run("glass.values.get('list').density.filter(d => d > 0).length")
    assert page.run("document.querySelectorAll('.scatter circle').length") == fires > 3


def test_given_texts_and_live_texts(page: Page, site: Path, tmp_path: Path) -> None:
    run = site.parent / "text"
    build_site([run], tmp_path / "site", prompts=[ODD])
    (folder,) = [each for each in tmp_path.glob("site/text/*") if each.is_dir()]
    ready(page, f"file://{folder}/index.html#prompts")
    assert page.run("document.querySelectorAll('.prompt').length") == 1
    assert page.run("document.querySelector('.prompt h2').textContent") == ODD
    assert not page.run("document.getElementById('prompt')")
    with server(tmp_path / "site", answer=live_prompts([run], device="cpu")) as serving:
        threading.Thread(target=serving.serve_forever, daemon=True).start()
        ready(page, f"{address(serving)}{folder.relative_to(tmp_path / 'site')}/index.html#prompts")
        page.run("document.getElementById('prompt').value = 'more words'; document.getElementById('read').click()")
        page.wait("document.querySelectorAll('.prompt').length === 2")
        assert page.run("document.querySelector('.prompt h2').textContent") == "more words"
        assert page.run("document.querySelector('.prompt ol a').getAttribute('href')").startswith("#")
        serving.shutdown()


@pytest.mark.parametrize("key", ["id", "expert", "board", "f1", "score", "density", "max"])
def test_sort(key: str, page: Page, site: Path) -> None:
    ready(page, layer(site))
    values = {
        "id": "[...c.ids]", "expert": "c.ids.map(f => Math.floor(f / 16))", 
        "board": "c.board.map(b => b < 0 ? null : b)",
        "f1": "[...c.f1]", "score": "[...c.score]", "density": "[...c.density]", "max": "[...c.max]",
    }  # fmt: skip
    found = page.run(f"(c => [c.ids, {values[key]}])(glass.values.get('list'))")
    value = dict(zip(*found, strict=True))
    for _ in range(2):
        page.run(f"document.querySelector('[data-sort={key}]').click()")
        direction = page.run(f"document.querySelector('[data-sort={key}]').parentElement.getAttribute('aria-sort')")
        sign = -1 if direction == "descending" else 1
        order = sorted(found[0], key=lambda f: (value[f] is None, 0 if value[f] is None else sign * value[f]))
        page.wait(f"document.querySelector('.rows a').textContent === '{order[0]}'")
        assert shown(page) == order[: len(shown(page))]


def test_filters(page: Page, site: Path) -> None:
    ready(page, layer(site))
    for name, count in (("said", 3), ("board", 3), ("silent", None)):
        page.run(
            f"(f => {{ f.value = '{name}'; f.dispatchEvent(new Event('change')); }})(document.getElementById('filter'))"
        )
        silent = page.run("glass.values.get('list').density.filter(d => d === 0).length")
        page.wait(f"document.querySelector('.count').textContent === '{silent if count is None else count} of 64'")


def test_keys_through_list_and_features(page: Page, site: Path) -> None:
    ready(page, layer(site))
    page.wait("document.querySelectorAll('.rows .row').length")
    for key in ("j", "ArrowDown", "k"):
        page.press(key)
    assert page.run("document.activeElement.textContent") == "5" and page.run(
        "document.activeElement.closest('.active') !== null"
    )
    page.press("Enter")
    page.wait("location.hash === '#5' && document.querySelector('.tiles')")
    page.press("n")
    page.wait("location.hash === '#2' && document.querySelector('.kicker b').textContent === '2'")
    assert heading(page) == "what feature 2 is about"
    page.press("n")
    page.wait("location.hash === '#40' && document.querySelector('.kicker b').textContent === '40'")
    page.press("p")
    page.run("document.getElementById('previous').click()")
    page.wait("document.querySelector('.kicker b').textContent === '5'")
    page.press("Escape")
    page.wait("location.hash === '' && document.querySelector('.grid')")
    page.press("Escape")
    page.wait("location.href.endsWith('site/index.html') && document.querySelector('.gallery a')")
    page.run("document.querySelector('.gallery a').click()")
    page.wait("document.querySelector('.tiles')")


def test_a_link_to_a_feature(page: Page, site: Path) -> None:
    ready(page, layer(site) + "#2")
    assert heading(page) == "what feature 2 is about"
    assert page.run("document.querySelectorAll('.example').length") > 0
    assert page.run("document.querySelectorAll('svg.board').length") > 0
    assert page.run("document.querySelector('svg.board .frame').getAttribute('x')") == "1.5"  # black rook on a8
    assert page.run("document.querySelectorAll('svg.board use').length") > 30
    assert page.run("document.querySelectorAll('.tok.peak').length") > 0
    # What such a page loads is little, whatever the layer is.
    loaded = [each for each in page.requests if each.endswith(".js")]
    assert not any("list.js" in each and "assets" not in each for each in loaded)
    page.press("n")  # in the list's order, though the list was never shown
    page.wait("location.hash === '#40'")
    ready(page, layer(site) + "#999")
    assert heading(page) == "Feature 999 is not here"


def test_markup_in_texts_of_a_run_is_shown_as_text(page: Page, site: Path) -> None:
    ready(page, layer(site) + "#5")
    assert heading(page) == MARKUP and MARKUP in page.run("document.querySelector('aside').textContent")
    assert page.run("document.title").endswith(f"of {ODD} - glassmoe")
    assert page.run("document.querySelectorAll('#view img, #view script, #view b[onclick]').length") == 0
    ready(page, layer(site))
    page.wait("document.querySelectorAll('.rows .row').length")
    assert MARKUP in page.run("document.querySelector('.rows').textContent")
    page.open(f"file://{site}/index.html")
    assert ODD in page.run("document.body.textContent") and MARKUP in page.run("document.body.textContent")
    assert page.run("document.querySelectorAll('main img, main script, main b[onclick]').length") == 0
    (text,) = site.glob("text/*")
    for feature in (0, 9, 30):
        ready(page, f"file://{text}/index.html#{feature}")
        assert page.run("document.querySelectorAll('#view img, #view script').length") == 0
        assert page.run("document.title") != "taken"


def test_every_script_is_seen(page: Page, site: Path) -> None:
    (text,) = site.glob("text/*")
    seen = ""
    for feature in range(0, 64, 4):
        ready(page, f"file://{text}/index.html#{feature}")
        seen += page.run("document.getElementById('view').textContent")
    assert "\u2407" in seen and "\u2039U+202E\u203a" in seen and "\u21b5" in seen  # a bell, an override, a line's end
    assert "\x07" not in seen and "\u202e" not in seen


def test_dark_mode(page: Page, site: Path) -> None:
    colour = "getComputedStyle(document.body).backgroundColor"
    ready(page, layer(site) + "#2")
    light = page.run(colour)
    page.dark(True)
    page.wait(f"{colour} !== '{light}'")
    dark = page.run(colour)
    page.press("t")
    page.wait(f"{colour} === '{light}'")
    assert page.run("document.getElementById('theme').getAttribute('aria-pressed')") == "false"
    page.run("document.getElementById('theme').click()")
    page.wait(f"{colour} === '{dark}'")


@pytest.mark.parametrize("dark", [False, True])
def test_colours_can_be_read(dark: bool, page: Page, site: Path) -> None:
    """WCAG's contrast of at least 4.5 for words, also on the strongest tint."""
    page.dark(dark)
    ready(page, layer(site) + "#2")
    contrast = """((words, ground) => {
      const canvas = document.createElement('canvas').getContext('2d', {willReadFrequently: true});
      const light = (colours) => {
        for (const colour of colours) { canvas.fillStyle = colour; canvas.fillRect(0, 0, 1, 1); }
        const [r, g, b] = [...canvas.getImageData(0, 0, 1, 1).data].map(v => v / 255)
          .map(v => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
        return 0.2126 * r + 0.7152 * g + 0.0722 * b;
      };
      const [a, b] = [light([...ground, words]), light(ground)];
      return (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
    })"""
    style = "getComputedStyle(document.documentElement).getPropertyValue"
    tint = f"'rgb(' + {style}('--tint').trim().split(' ').join(',') + ')'"
    for words in ("--ink", "--quiet", "--accent"):
        for ground in ("--page", "--card", "--soft"):
            assert page.run(f"{contrast}({style}('{words}'), [{style}('{ground}')])") >= 4.5, (words, ground)
    strongest = tint.replace("'rgb('", "'rgba('").replace("+ ')'", "+ ',0.84)'")
    assert page.run(f"{contrast}({style}('--ink'), [{style}('--card'), {strongest}])") >= 4.5


def test_phone_width(page: Page, site: Path) -> None:
    page.size(390, 800, phone=True)
    for place in (
        f"file://{site}/index.html",
        layer(site),
        layer(site) + "#2",
        layer(site) + "#experts",
        layer(site) + "#expert-1",
    ):
        page.open(place)
        page.wait("document.querySelector('h1') && document.getElementById('view').children.length > 1")
        assert page.run("document.documentElement.scrollWidth") <= 390, place


def test_experts(page: Page, site: Path) -> None:
    ready(page, layer(site) + "#experts")
    assert page.run("document.querySelectorAll('.experts tbody tr').length") == 4
    page.run("document.querySelector('.experts tbody a').click()")
    page.wait("document.querySelector('h1').textContent === 'Expert 0'")
    page.press("n")
    page.wait("document.querySelector('h1').textContent === 'Expert 1'")
    assert page.run("document.querySelectorAll('.typical a').length") > 0
    page.press("Escape")
    page.wait("document.querySelector('.grid')")


def test_over_http(page: Page, site: Path) -> None:
    with server(site) as serving:
        threading.Thread(target=serving.serve_forever, daemon=True).start()
        folder = layer(site).removeprefix(f"file://{site}/")
        ready(page, address(serving) + folder + "#5")
        assert heading(page) == MARKUP
        page.press("Escape")
        page.wait("document.querySelectorAll('.rows .row').length")
        serving.shutdown()
