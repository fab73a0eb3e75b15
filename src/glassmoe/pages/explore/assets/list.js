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
    return { said: found.said[at], peak: found.peaks[at], tops: found.tops[at] };
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

  // How well a row matches the words of a search, 0 the best: one of its strongest tokens is the search, or one begins
  // with it, or contains it; then its explanation or board property has all words; then these with the strongest token
  // and the text before it.
  function rankOf(row, wanted) {
    const { said, peak, tops } = words(row);
    const whole = wanted.join(" ");
    const tokens = tops.map((token) => token.toLowerCase());
    if (tokens.includes(whole)) return tokens[0] === whole ? 0 : 1;
    if (tokens.some((token) => token.startsWith(whole))) return 2;
    if (tokens.some((token) => token.includes(whole))) return 3;
    const property = columns.board[row] < 0 ? "" : columns.properties[columns.board[row]];
    const explained = `${said} ${property}`.toLowerCase();
    if (wanted.every((word) => explained.includes(word))) return 4;
    const hay = `#${columns.ids[row]} ${explained} ${peak ? peak.join("") : ""}`.toLowerCase();
    return wanted.every((word) => hay.includes(word)) ? 5 : Infinity;
  }

  async function select() {
    const wanted = state.query.toLowerCase().split(/\s+/).filter(Boolean);
    if (wanted.length || state.filter === "said") await allWords();
    const passes = FILTERS[state.filter][1];
    const exact = /^#?\d+$/.test(state.query.trim()) ? Number(state.query.trim().replace("#", "")) : null;
    let rows = columns.ids.map((_, row) => row).filter(passes);
    const rank = new Map();
    if (wanted.length) {
      for (const row of rows) rank.set(row, rankOf(row, wanted));
      rows = rows.filter((row) => rank.get(row) < Infinity);
    }
    if (state.sort !== "order") rows.sort(compare(state.sort));
    else if (wanted.length) rows.sort((a, b) => rank.get(a) - rank.get(b) || a - b);
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

  // Density against score (or, where nothing is scored, maximum) of every feature that fires; a dot is a link.
  function scatter() {
    const scored = meta.scored;
    const heights = scored ? columns.score : columns.max.map((value) => (value > 0 ? Math.log10(value) : null));
    const points = columns.ids.map((id, row) => [id, columns.density[row], heights[row], row])
      .filter(([, density, height]) => density > 0 && height !== null);
    const [width, height, left, base] = [860, 420, 46, 384];
    const xs = points.map(([, density]) => Math.log10(density));
    const ys = points.map(([, , y]) => y);
    const [x0, x1] = [Math.floor(Math.min(...xs, -1)), Math.ceil(Math.max(...xs, 0))];
    const [y0, y1] = scored ? [Math.min(0.4, ...ys), 1] : [Math.floor(Math.min(...ys)), Math.ceil(Math.max(...ys, 1))];
    const at = (x, y) => [left + ((x - x0) / (x1 - x0)) * (width - left - 12), base - ((y - y0) / (y1 - y0 || 1)) * (base - 14)];
    const drawing = el("svg:svg", {
      class: "scatter", viewBox: `0 0 ${width} ${height}`, role: "img",
      "aria-label": `density against ${scored ? "score" : "maximum"} of ${show.count(points.length)} features`,
    });
    for (let x = x0; x <= x1; x += 1) {
      const [px] = at(x, y0);
      drawing.append(el("svg:path", { class: "axis", d: `M${px.toFixed(1)} 14V${base}` }),
        el("svg:text", { x: px.toFixed(1), y: base + 18, "text-anchor": "middle" }, show.share(10 ** x)));
    }
    const ticks = scored ? [0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1].filter((y) => y >= y0) : Array.from({ length: y1 - y0 + 1 }, (_, n) => y0 + n);
    for (const y of ticks) {
      const [, py] = at(x0, y);
      drawing.append(el("svg:path", { class: "axis", d: `M${left} ${py.toFixed(1)}H${width - 12}` }),
        el("svg:text", { x: left - 6, y: py + 4, "text-anchor": "end" }, scored ? show.score(y) : show.number(10 ** y)));
    }
    for (const [id, density, y, row] of points) {
      const [px, py] = at(Math.log10(density), y);
      const found = glass.values.get(`words-${Math.floor(row / meta.words)}`);
      const said = found && (found.said[row % meta.words] || found.tops[row % meta.words].join(" "));
      drawing.append(el("svg:a", { href: `#${id}` }, el("svg:circle", { cx: px.toFixed(1), cy: py.toFixed(1), r: 3 },
        el("svg:title", {}, `feature ${id}${said ? `: ${visible(said)}` : ""}`))));
    }
    return [
      el("h1", {}, `Density and ${scored ? "score" : "maximum"}`, el("span", { class: "quiet of" }, " of ", isolated(meta.reader))),
      el("p", { class: "quiet" }, `Each dot is one of ${show.count(points.length)} features: the share of ${meta.unit}s on which it fires, against ${
        scored ? "how well its explanation predicts where (0.5 is chance)" : "its greatest strength"}. ${
        scored ? "Features without a score are left out." : "No explanation is scored yet."}`),
      el("section", { class: "card" }, points.length ? drawing : el("p", {}, "No feature fires.")),
    ];
  }

  return { open, order, view, scatter, key, search: () => parts.search.focus(), leave: () => { parts = null; } };
})();
