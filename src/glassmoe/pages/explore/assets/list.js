// The list of a layer's features, with search, sorting and filters. Only rows in sight are in the page.
"use strict";

const list = (() => {
  const state = { rows: null, query: "", filter: "all", sort: "order", down: false, active: -1, scroll: 0 };
  let columns = null;
  let meta = null;
  let parts = null;

  const KEYS = {
    id: { title: "feature", value: (row) => columns.ids[row] },
    expert: { title: "expert", value: (row) => expertOf(columns.ids[row]) },
    board: { title: "board property", value: (row) => (columns.board[row] < 0 ? null : columns.board[row]) },
    f1: { title: "F1", down: true, value: (row) => columns.f1[row], about: "F1 of the board property" },
    score: { title: "score", down: true, value: (row) => columns.score[row], about: "how well the explanation predicts where the feature fires: balanced accuracy, or AUC; 0.5 is chance" },
    density: { title: "fires on", down: true, value: (row) => columns.density[row] },
    max: { title: "maximum", down: true, value: (row) => columns.max[row] },
  };
  const FILTERS = {
    all: ["all features", () => true],
    said: ["explained features", (row) => columns.score[row] !== null || Boolean((words(row) || {}).said)],
    board: ["with a board property", (row) => columns.board[row] >= 0],
    alive: ["features that fire", (row) => columns.density[row] > 0],
    silent: ["silent features", (row) => columns.density[row] === 0],
  };

  const expertOf = (id) => Math.floor(id / meta.features_of_expert);

  // The explanation of a row and its strongest token; null until that part of the list is loaded.
  function words(row) {
    const name = `words-${Math.floor(row / meta.words)}`;
    const found = glass.values.get(name);
    if (!found) {
      glass.load(name).then(() => draw());
      return null;
    }
    const at = row % meta.words;
    return { said: found.said[at], peak: found.peaks[at] };
  }

  const allWords = () => Promise.all(
    Array.from({ length: Math.ceil(columns.ids.length / meta.words) }, (_, number) => glass.load(`words-${number}`)));

  async function open() {
    meta = await glass.load("meta");
    columns = await glass.load("list");
    await glass.load("words-0");
    if (!state.rows) state.rows = columns.ids.map((_, row) => row);
    return state;
  }

  // The features in the order shown, for next and previous.
  async function order() {
    await open();
    return state.rows.map((row) => columns.ids[row]);
  }

  function compare(key) {
    const value = KEYS[key].value;
    const sign = state.down ? -1 : 1;
    return (a, b) => {
      const [x, y] = [value(a), value(b)];
      if (x === y) return a - b;
      if (x === null) return 1;
      if (y === null) return -1;
      return x < y ? -sign : sign;
    };
  }

  async function select() {
    const wanted = state.query.toLowerCase().split(/\s+/).filter(Boolean);
    if (wanted.length || state.filter === "said") await allWords();
    const passes = FILTERS[state.filter][1];
    const exact = /^#?\d+$/.test(state.query.trim()) ? Number(state.query.trim().replace("#", "")) : null;
    let rows = columns.ids.map((_, row) => row).filter(passes);
    if (wanted.length) {
      rows = rows.filter((row) => {
        const { said, peak } = words(row);
        const property = columns.board[row] < 0 ? "" : columns.properties[columns.board[row]];
        const hay = `#${columns.ids[row]} ${said} ${property} ${peak ? peak.join("") : ""}`.toLowerCase();
        return wanted.every((word) => hay.includes(word));
      });
    }
    if (state.sort !== "order") rows.sort(compare(state.sort));
    if (exact !== null) rows.sort((a, b) => (columns.ids[b] === exact) - (columns.ids[a] === exact));
    state.rows = rows;
    state.active = -1;
    if (parts) {
      parts.count.textContent = rows.length === columns.ids.length
        ? `${show.count(rows.length)} features` : `${show.count(rows.length)} of ${show.count(columns.ids.length)}`;
      parts.empty.hidden = rows.length > 0;
      parts.grid.setAttribute("aria-rowcount", rows.length + 1);
      draw();
    }
  }

  const keys = () => ["id", ...(meta.tells ? ["board", "f1"] : []), ...(meta.scored ? ["score"] : []), "density", "max",
    ...(meta.experts ? ["expert"] : [])];

  function head() {
    const cells = keys().map((key) => {
      const { title, down, about } = KEYS[key];
      const button = el("button", { type: "button", "data-sort": key, title: about || null }, title);
      button.addEventListener("click", () => {
        state.down = state.sort === key ? !state.down : Boolean(down);
        state.sort = key;
        sorted();
        select();
      });
      return el("span", { role: "columnheader", class: `cell ${key}` }, button);
    });
    cells.splice(1, 0, el("span", { role: "columnheader", class: "cell said" },
      meta.explained ? "explanation" : "strongest token"));
    if (meta.explained) cells.splice(2, 0, el("span", { role: "columnheader", class: "cell peak-cell" }, "strongest token"));
    return el("div", { role: "row", class: "row head", "aria-rowindex": 1 }, cells);
  }

  function sorted() {
    for (const button of parts.head.querySelectorAll("button")) {
      const on = button.dataset.sort === state.sort;
      button.parentElement.setAttribute("aria-sort", on ? (state.down ? "descending" : "ascending") : "none");
    }
  }

  const peakOf = (found) => (found ? label(found.peak) : el("span", { class: "quiet" }, "\u2026"));

  function rowOf(place) {
    const row = state.rows[place];
    const id = columns.ids[row];
    const found = words(row);
    const property = columns.board[row] < 0 ? "" : columns.properties[columns.board[row]];
    const cell = (name, ...children) => el("span", { role: "cell", class: `cell ${name}` }, ...children);
    const said = found && found.said;
    const shown = {
      expert: () => cell("expert", el("span", { class: "label" }, "expert "), String(expertOf(id))),
      board: () => cell("board", property ? isolated(property) : el("span", { class: "quiet" }, "\u2013")),
      f1: () => cell("f1", el("span", { class: "label" }, "F1 "), show.score(columns.f1[row])),
      score: () => cell("score", el("span", { class: "label" }, "score "), show.score(columns.score[row])),
      density: () => cell("density", show.share(columns.density[row])),
      max: () => cell("max", el("span", { class: "label" }, "max "), show.number(columns.max[row])),
    };
    const link = el("a", { href: `#${id}`, tabindex: place === Math.max(0, state.active) ? 0 : -1 }, String(id));
    return el("div", {
      role: "row", class: `row${place === state.active ? " active" : ""}${columns.density[row] === 0 ? " quiet" : ""}`,
      "aria-rowindex": place + 2, "data-place": place,
    },
    cell("id", link),
    meta.explained ? cell("said", said ? isolated(said) : el("span", { class: "quiet" }, "not explained")) : cell("said", peakOf(found)),
    meta.explained ? cell("peak-cell", peakOf(found)) : null,
    keys().slice(1).map((key) => shown[key]()));
  }

  function draw() {
    if (!parts || !parts.body.isConnected) return;
    const tall = parts.tall();
    parts.body.style.height = `${tall * state.rows.length}px`;
    const above = Math.max(0, scrollY - parts.body.getBoundingClientRect().top - scrollY);
    const first = Math.max(0, Math.floor(above / tall) - 6);
    const last = Math.min(state.rows.length, first + Math.ceil(innerHeight / tall) + 12);
    const focused = parts.body.contains(document.activeElement);
    const rows = [];
    for (let place = first; place < last; place += 1) {
      const row = rowOf(place);
      row.style.transform = `translateY(${tall * place}px)`;
      rows.push(row);
    }
    parts.body.replaceChildren(...rows);
    if (focused) focusActive();
  }

  function focusActive() {
    const link = parts.body.querySelector(`[data-place="${state.active}"] a`);
    if (link) link.focus({ preventScroll: true });
  }

  // Move the marked row by `by`, and the window as far as that needs.
  function move(by) {
    if (!state.rows.length) return;
    state.active = Math.min(state.rows.length - 1, Math.max(0, state.active + by));
    const tall = parts.tall();
    const top = parts.body.getBoundingClientRect().top + tall * state.active;
    const head = parts.head.getBoundingClientRect().bottom;
    if (top < head) scrollBy(0, top - head);
    else if (top + tall > innerHeight - 40) scrollBy(0, top + tall - innerHeight + 40);
    draw();
    focusActive();
  }

  function view() {
    const search = el("input", {
      type: "search", id: "search", placeholder: "Search explanations, tokens, feature numbers", "aria-label": "Search features",
      autocomplete: "off", spellcheck: "false",
    });
    search.value = state.query;
    let timer = 0;
    search.addEventListener("input", () => {
      clearTimeout(timer);
      timer = setTimeout(() => { state.query = search.value; select(); }, 60);
    });
    const filter = el("select", { "aria-label": "Which features", id: "filter" },
      Object.entries(FILTERS).filter(([name]) => (name !== "said" || meta.explained) && (name !== "board" || meta.tells))
        .map(([name, [title]]) => el("option", { value: name }, title)));
    filter.value = state.filter;
    filter.addEventListener("change", () => { state.filter = filter.value; select(); });
    const body = el("div", { role: "rowgroup", class: "rows" });
    parts = {
      search, body, head: head(), count: el("span", { class: "count", role: "status" }),
      empty: el("p", { class: "quiet none", hidden: true }, "No feature matches."),
      tall: () => (matchMedia("(max-width: 720px)").matches ? 62 : 36),
    };
    parts.grid = el("div", { role: "table", class: `grid${meta.explained ? " explained" : ""}${meta.scored ? " scored" : ""}`, "aria-label": "features" },
      el("div", { role: "rowgroup", class: "heads" }, parts.head), body);
    parts.grid.style.setProperty("--columns", template());
    sorted();
    requestAnimationFrame(() => {
      select().then(() => {
        scrollTo(0, state.scroll);
        draw();
      });
    });
    const shown = meta.features < meta.of ? `the first ${show.count(meta.features)} of ${show.count(meta.of)}` : show.count(meta.of);
    return [
      el("h1", {}, isolated(meta.reader), el("span", { class: "quiet of" }, " of ", isolated(meta.run))),
      el("p", { class: "quiet" }, `${shown} features, measured on ${show.count(meta.tokens)} ${meta.unit}s; `,
        meta.silent ? el("b", {}, `${show.count(meta.silent)} silent`) : "none silent",
        `; ${meta.explained ? `${show.count(meta.explained)} explained` : "none explained yet"}.`),
      el("div", { class: "tools" }, search, filter, parts.count),
      parts.grid, parts.empty,
    ];
  }

  function template() {
    const widths = { id: "4.2rem", expert: "4.4rem", board: "minmax(8rem, 14rem)", f1: "3.6rem", score: "4rem", density: "5rem", max: "5.4rem" };
    const [id, ...others] = keys().map((key) => widths[key]);
    return [id, "minmax(9rem, 1fr)", ...(meta.explained ? ["minmax(9rem, 15rem)"] : []), ...others].join(" ");
  }

  addEventListener("scroll", () => requestAnimationFrame(() => {
    if (parts && parts.body.isConnected) {
      state.scroll = scrollY;
      draw();
    }
  }), { passive: true });
  addEventListener("resize", () => requestAnimationFrame(draw));

  function key(event) {
    const by = { j: 1, ArrowDown: 1, k: -1, ArrowUp: -1, PageDown: 12, PageUp: -12 }[event.key];
    if (by) move(by);
    else if (event.key === "Enter" && state.active >= 0) location.hash = `#${columns.ids[state.rows[state.active]]}`;
    else return false;
    return true;
  }

  return { open, order, view, key, search: () => parts.search.focus(), leave: () => { parts = null; } };
})();
