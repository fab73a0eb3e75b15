// The page: what the controls, the keys and the address do.
"use strict";
(() => {
  const byId = (id) => document.getElementById(id);
  const [frame, svg, side] = [byId("frame"), byId("picture"), byId("side")];
  const [ZOOM, LEAST, MOST] = [1.25, 0.25, 4];
  let [opened, now, made, shown, place] = [null, null, null, null, null];
  let [scale, fitted, hovered, found, size] = [1, true, -1, [], ""];
  let turn = 0;

  const context = () => ({ opened, made, shown, state: now });
  const current = () => (now.at < 0 ? -1 : made.itemOf[now.at]);
  const logit = () => (now.target < 0 ? -1 : opened.logits[now.target]);

  // Everything anew: items, then what is shown, then the picture and the panel.
  function rebuild() {
    const auto = words.groups(opened, now.by);
    made = graph.items(opened, [...now.groups, ...auto], logit());
    refresh();
  }

  function refresh() {
    const pins = new Set([...now.pins].map((node) => made.itemOf[node]));
    made.group.forEach((group, item) => { if (group && group.hand) pins.add(item); });
    const held = new Set(pins);
    if (now.at >= 0) held.add(current());
    shown = graph.shown(made, now.node, now.edge, held);
    let boxes = null;
    if (now.view === "pins") {
      boxes = new Set([...pins, ...opened.logits.map((node) => made.itemOf[node]).filter((item) => made.goal[item] > 0)]);
      shown = graph.among(made, 1 - now.edge, boxes);
    }
    count(); // which may change the height of the frame
    const [wide, high] = [frame.offsetWidth - 4, frame.offsetHeight - 4];
    place = boxes ? layout.boxes(opened, made, boxes) : layout.grid(opened, made, shown, high / wide);
    size = [wide, high].join();
    picture.draw(opened, made, shown, place);
    zoom();
    select();
  }

  function count() {
    let [items, edges] = [0, 0];
    shown.item.forEach((on) => { items += on; });
    shown.edge.forEach((on) => { edges += on; });
    byId("count").textContent = `${show.count(items)} of ${show.count(made.count)} ${now.groups.length || now.by ? "items" : "nodes"}, ${show.count(edges)} of ${show.count(made.edges.weight.length)} edges`;
    byId("none").hidden = now.view !== "pins" || now.pins.size + now.groups.length > 0;
  }

  // The selected item in the picture and in the panel.
  async function select() {
    paint();
    const mine = (turn += 1);
    const item = current();
    byId("said").textContent = item < 0 ? "nothing selected" : `${words.item(opened, made, item)} ${words.itemLabel(opened, made, item)}`;
    side.replaceChildren(...(item < 0 ? panel.overview(context()) : panel.item(context(), item, null)).filter(Boolean));
    side.scrollTop = 0;
    const file = item < 0 || made.group[item] ? undefined : opened.cards[`${opened.nodes.source[now.at]}:${opened.nodes.feature[now.at]}`];
    if (file === undefined) return;
    const cards = await glass.load(`cards-${file}`);
    if (mine !== turn) return;
    side.replaceChildren(...panel.item(context(), item, cards[`${opened.nodes.source[now.at]}:${opened.nodes.feature[now.at]}`]).filter(Boolean));
  }

  function paint() {
    const item = hovered >= 0 ? hovered : current();
    picture.focus(item < 0 ? [] : [item], now.all);
    const items = (nodes) => [...new Set([...nodes].map((node) => made.itemOf[node]))];
    picture.mark({ selected: current() < 0 ? [] : [current()], pinned: items(now.pins), marked: items(now.marks), found });
  }

  function controls() {
    byId("node").value = String(Math.round(1000 * now.node));
    byId("edge").value = String(Math.round(1000 * now.edge));
    byId("node-share").textContent = show.share(now.node);
    byId("edge-share").textContent = show.share(now.edge);
    byId("by").value = now.by;
    byId("target").value = String(now.target);
    byId("all").checked = now.all;
    byId("pins").checked = now.view === "pins";
  }

  function keep() {
    controls();
    history.replaceState(null, "", state.write(now, opened));
  }

  function go(node) {
    now.at = node;
    const item = current();
    keep();
    if (item >= 0 && !picture.has(item)) refresh();
    else select();
    if (item >= 0) reveal(item);
  }

  function reveal(item) {
    const [x, y] = [place.x[item] * scale, place.y[item] * scale];
    const [left, top] = [frame.scrollLeft + layout.GUTTER, frame.scrollTop];
    if (x < left + 20 || x > frame.scrollLeft + frame.clientWidth - 20) frame.scrollLeft = x - frame.clientWidth / 2;
    if (y < top + 12 || y > top + frame.clientHeight - 12) frame.scrollTop = y - frame.clientHeight / 2;
  }

  function zoom(by) {
    const [width, height] = place.size;
    if (by) {
      scale = Math.min(MOST, Math.max(LEAST, scale * by));
      fitted = false;
    }
    if (fitted) {
      // Without the scroll bars, which go when the picture fits.
      const fit = Math.min(1.5, (frame.offsetWidth - 4) / width, (frame.offsetHeight - 4) / height);
      scale = Math.max(frame.offsetWidth < 600 ? 0.8 : 0.6, fit);
    }
    svg.setAttribute("width", Math.round(width * scale));
    svg.setAttribute("height", Math.round(height * scale));
    picture.stay(frame.scrollLeft / scale);
  }

  // The next item in a direction: along the row, or the nearest of the row above or below.
  function step(key) {
    const item = current();
    const items = Array.from(shown.item.keys()).filter((each) => shown.item[each] && picture.has(each));
    if (!items.length) return;
    if (item < 0 || !picture.has(item)) {
      go(opened.logits.find((node) => picture.has(made.itemOf[node])) ?? made.first[items[0]]);
      return;
    }
    const row = (each) => Math.min(opened.layers, opened.nodes.layer[made.first[each]]);
    const across = key === "ArrowLeft" || key === "ArrowRight";
    const sign = key === "ArrowRight" || key === "ArrowUp" ? 1 : -1;
    let best = -1;
    if (across) {
      const order = items.filter((each) => row(each) === row(item)).sort((a, b) => place.x[a] - place.x[b] || place.y[a] - place.y[b] || a - b);
      best = order[order.indexOf(item) + sign] ?? -1;
    } else {
      const rows = [...new Set(items.map(row))].filter((each) => sign * (each - row(item)) > 0).sort((a, b) => sign * (a - b));
      for (const each of items) {
        if (row(each) !== rows[0]) continue;
        if (best < 0 || Math.abs(place.x[each] - place.x[item]) < Math.abs(place.x[best] - place.x[item])) best = each;
      }
    }
    if (best >= 0) go(made.first[best]);
  }

  // Along the strongest edge that is shown, into or out of the selected item.
  function follow(into) {
    const item = current();
    if (item < 0) return;
    const { weight, source, target } = made.edges;
    const list = Array.from(graph.edgesOf(into ? made.into : made.outOf, item)).filter((edge) => shown.edge[edge]);
    if (!list.length) return;
    const best = list.reduce((a, b) => (Math.abs(weight[b]) > Math.abs(weight[a]) ? b : a));
    go(made.first[(into ? source : target)[best]]);
  }

  const toggle = (set, node) => { if (!set.delete(node)) set.add(node); };

  const actions = {
    pin() {
      if (now.at < 0) return;
      toggle(now.pins, now.at);
      keep();
      refresh();
    },
    mark() {
      if (now.at < 0) return;
      toggle(now.marks, now.at);
      select();
    },
    group() {
      const nodes = new Set();
      for (const node of [...now.marks, ...(now.at >= 0 ? [now.at] : [])]) {
        const group = made.group[made.itemOf[node]];
        for (const each of group ? group.members : [node]) if (!opened.logits.includes(each)) nodes.add(each);
      }
      if (nodes.size < 2) {
        byId("said").textContent = "mark two nodes or more to group them";
        return;
      }
      const labels = [...new Set([...nodes].map((node) => words.label(opened, node)))];
      const name = labels.length === 1 && labels[0] ? labels[0].slice(0, 60) : `group ${now.groups.length + 1}`;
      now.groups = now.groups.map((group) => ({ ...group, nodes: group.nodes.filter((node) => !nodes.has(node)) })).filter((group) => group.nodes.length);
      now.groups.push({ name, nodes: [...nodes].sort((a, b) => a - b), hand: true });
      now.marks.clear();
      [now.at] = nodes;
      keep();
      rebuild();
      const field = byId("rename");
      if (field) field.select();
    },
    ungroup() {
      const item = current();
      if (item < 0 || !made.group[item] || !made.group[item].hand) return;
      now.groups = now.groups.filter((group) => !group.nodes.includes(now.at));
      keep();
      rebuild();
    },
    clear() {
      now.marks.clear();
      go(-1);
    },
    all() {
      now.all = !now.all;
      keep();
      paint();
    },
    pins() {
      now.view = now.view === "pins" ? "graph" : "pins";
      fitted = true;
      keep();
      refresh();
    },
    help() {
      const box = byId("help");
      if (box.open) box.close();
      else box.showModal();
    },
    svg: () => save.svg(svg, caption(), "trace"),
    png: () => save.png(svg, caption(), "trace"),
    json: () => save.json(opened, now, now.groups, "circuit-tracer"),
    in: () => zoom(ZOOM),
    out: () => zoom(1 / ZOOM),
    fit() {
      fitted = true;
      zoom();
    },
  };

  const caption = () => `${opened.prompt} \u2192 ${(now.target < 0 ? opened.targets : [opened.targets[now.target]]).map(layout.pillText).join(", ")}`;

  function search(text) {
    const want = text.trim().toLowerCase();
    found = !want ? [] : Array.from({ length: made.count }, (_, item) => item).filter((item) =>
      `${words.item(opened, made, item)} ${words.itemLabel(opened, made, item)}`.toLowerCase().includes(want));
    const hidden = found.filter((item) => !picture.has(item)).length;
    byId("matches").textContent = want ? `${show.count(found.length)} found${hidden ? `, ${show.count(hidden)} not shown` : ""}` : "";
    paint();
  }

  const KEYS = { p: "pin", m: "mark", g: "group", u: "ungroup", e: "all", v: "pins", "?": "help", "+": "in", "=": "in", "-": "out", 0: "fit" };

  function key(event) {
    if (event.ctrlKey || event.metaKey || event.altKey || byId("help").open) return;
    const field = event.target.closest("input, select, textarea");
    if (field && event.key === "Escape") {
      if (field.type === "search") {
        field.value = "";
        search("");
      }
      field.blur();
    } else if (field && field.type === "search" && event.key === "Enter") {
      if (found.length) go(made.first[found[(found.indexOf(current()) + 1) % found.length]]);
    } else if (field && (field.type !== "checkbox" || event.key === " ")) return;
    else if (event.key === "/") byId("search").focus();
    else if (event.key.startsWith("Arrow")) step(event.key);
    else if (event.key === "i" || event.key === "o") follow(event.key === "i");
    else if (event.key === "Escape") actions.clear();
    else if (KEYS[event.key]) actions[KEYS[event.key]]();
    else return;
    event.preventDefault();
  }

  function tip(event) {
    const item = picture.itemAt(event.target);
    const box = byId("tip");
    box.hidden = item < 0;
    if (item < 0) return;
    const label = words.itemLabel(opened, made, item);
    box.replaceChildren(...[label ? el("b", {}, isolated(layout.short(label, 160))) : null, el("span", {}, visible(words.item(opened, made, item))),
      el("span", { class: "quiet" }, `${show.share(made.influence[item])} of the influence`)].filter(Boolean));
    box.style.left = `${Math.min(event.clientX + 14, innerWidth - 300)}px`;
    box.style.top = `${Math.min(event.clientY + 16, innerHeight - 90)}px`;
  }

  function hover(item) {
    if (item === hovered) return;
    hovered = item;
    paint();
  }

  function listen() {
    svg.addEventListener("pointermove", (event) => {
      if (event.pointerType !== "mouse") return;
      tip(event);
      hover(picture.itemAt(event.target));
    });
    svg.addEventListener("pointerleave", () => { byId("tip").hidden = true; hover(-1); });
    svg.addEventListener("click", (event) => {
      const item = picture.itemAt(event.target);
      if (item < 0) return;
      const node = made.first[item];
      if (event.shiftKey) {
        toggle(now.marks, node);
        paint();
        select();
      } else go(node);
    });
    side.addEventListener("click", (event) => {
      const [link, button] = [event.target.closest("[data-go]"), event.target.closest("[data-do]")];
      if (link) go(Number(link.dataset.go));
      else if (button) actions[button.dataset.do]();
    });
    side.addEventListener("pointerover", (event) => {
      const link = event.target.closest("[data-go]");
      hover(link && picture.has(made.itemOf[Number(link.dataset.go)]) ? made.itemOf[Number(link.dataset.go)] : -1);
    });
    side.addEventListener("pointerleave", () => hover(-1));
    side.addEventListener("change", (event) => {
      if (event.target.id !== "rename") return;
      const group = now.groups.find((each) => each.nodes.includes(now.at));
      group.name = event.target.value.trim() || group.name;
      keep();
      rebuild();
    });
    for (const button of document.querySelectorAll(".files [data-do], .zoom [data-do]")) button.addEventListener("click", () => actions[button.dataset.do]());
    let waiting = 0;
    for (const name of ["node", "edge"]) {
      byId(name).addEventListener("input", (event) => {
        now[name] = Number(event.target.value) / 1000;
        keep();
        cancelAnimationFrame(waiting);
        waiting = requestAnimationFrame(refresh);
      });
    }
    byId("by").addEventListener("change", (event) => { now.by = event.target.value; keep(); rebuild(); });
    byId("target").addEventListener("change", (event) => {
      now.target = Number(event.target.value);
      now.at = opened.logits[Math.max(0, now.target)];
      keep();
      rebuild();
    });
    byId("all").addEventListener("change", actions.all);
    byId("pins").addEventListener("change", actions.pins);
    byId("search").addEventListener("input", (event) => search(event.target.value));
    frame.addEventListener("scroll", () => picture.stay(frame.scrollLeft / scale), { passive: true });
    frame.addEventListener("wheel", (event) => {
      if (!event.ctrlKey) return;
      event.preventDefault();
      zoom(event.deltaY < 0 ? 1.1 : 1 / 1.1);
    }, { passive: false });
    // A frame of another size: the rows fill it anew.
    new ResizeObserver(() => {
      if (fitted && size !== [frame.offsetWidth - 4, frame.offsetHeight - 4].join()) requestAnimationFrame(refresh);
    }).observe(frame);
    addEventListener("hashchange", () => { now = state.read(location.hash, opened); controls(); rebuild(); });
    document.addEventListener("keydown", key);
  }

  async function open() {
    opened = graph.open(await glass.load("graph"));
    now = state.read(location.hash, opened);
    picture.start(svg);
    byId("target").replaceChildren(...(opened.targets.length > 1 ? [el("option", { value: "-1" }, "all targets")] : []),
      ...opened.targets.map((target, at) => el("option", { value: opened.targets.length > 1 ? at : -1 }, layout.pillText(target))));
    listen();
    controls();
    rebuild();
    frame.scrollLeft = svg.clientWidth;
    requestAnimationFrame(() => { document.documentElement.dataset.ready = performance.now().toFixed(1); });
  }

  open().catch((error) => {
    side.replaceChildren(el("h2", {}, "This page could not be opened"), el("p", {}, error.message));
  });
})();
