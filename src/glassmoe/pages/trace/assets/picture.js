// The drawing: one SVG of lines for layers, edges, and a shape for every item.
"use strict";

const picture = (() => {
  const EACH = 400; // edges of one item that are drawn, the strongest
  const [NUMBERED, ASIDE, ALONG] = [60, 160, [0.5, 0.35, 0.65, 0.2, 0.8, 0.1, 0.9, 0.27, 0.73, 0.42, 0.58]];
  const shapes = new Map();
  let [root, layers, now] = [null, {}, null];

  const round = (value) => Math.round(10 * value) / 10;

  function start(svg) {
    root = svg;
    for (const name of ["lines", "faint", "edges", "nodes", "numbers", "names"]) {
      layers[name] = el("svg:g", { class: name });
      root.append(layers[name]);
    }
  }

  const moved = (x, y) => `translate(${round(x)} ${round(y)})`;

  function shape(opened, made, place, item) {
    const node = made.first[item];
    const [group, kind] = [made.group[item], words.kindOf(opened, node)];
    const [x, y, r, wide] = [place.x[item], place.y[item], place.r[item], place.width[item]];
    const about = { "data-item": item, class: `node ${group ? "group" : kind}` };
    if (place.boxes) return box(opened, made, place, item, about);
    if (group) {
      return el("svg:g", { ...about, transform: moved(x, y) }, el("svg:circle", { r: round(r + 0.8) }), el("svg:circle", { class: "inner", r: round(Math.max(1.5, r - 1.8)) }));
    }
    if (kind === "token" || kind === "logit") {
      const text = kind === "token" ? layout.tokenText(opened.tokens[opened.nodes.position[node]]) : layout.pillText(words.target(opened, node));
      const high = layout.TOKEN_HEIGHT;
      return el("svg:g", { ...about, transform: moved(x, y) },
        el("svg:rect", { x: round(-wide / 2), y: -high / 2, width: round(wide), height: high, rx: kind === "token" ? 4 : high / 2 }),
        el("svg:text", { y: 4.2, "text-anchor": "middle" }, text));
    }
    if (kind === "feature") return el("svg:circle", { ...about, cx: round(x), cy: round(y), r: round(r) });
    const side = round(1.7 * r);
    return el("svg:rect", { ...about, x: round(-side / 2), y: round(-side / 2), width: side, height: side, transform: `${moved(x, y)}${kind === "error" ? " rotate(45)" : ""}` });
  }

  function box(opened, made, place, item, about) {
    const node = made.first[item];
    const [name, label] = [words.item(opened, made, item), words.itemLabel(opened, made, item)];
    const group = made.group[item];
    const quiet = group ? `${group.members.length} nodes` : label ? words.brief(opened, node) : words.place(opened, node);
    const title = layout.twoLines(visible(label || (group ? name : words.short(opened, node))), 29);
    const [wide, high] = [place.width[item], layout.BOX_HEIGHT];
    const first = title.length > 1 ? -12 : -4;
    return el("svg:g", { ...about, class: `${about.class} box`, transform: moved(place.x[item], place.y[item]) },
      el("svg:rect", { x: -wide / 2, y: -high / 2, width: wide, height: high, rx: 8 }),
      title.map((line, number) => el("svg:text", { y: first + 15 * number, "text-anchor": "middle" }, line)),
      el("svg:text", { class: "quiet", y: title.length > 1 ? 21 : 14, "text-anchor": "middle" }, layout.short(visible(quiet), 34)));
  }

  function draw(opened, made, visibleNow, place) {
    now = { opened, made, visible: visibleNow, place };
    const [width, height] = place.size;
    root.setAttribute("viewBox", `0 0 ${round(width)} ${round(height)}`);
    shapes.clear();
    const parts = [];
    for (let item = 0; item < made.count; item += 1) {
      if (!visibleNow.item[item]) continue;
      const part = shape(opened, made, place, item);
      shapes.set(item, part);
      parts.push(part);
    }
    layers.nodes.replaceChildren(...parts);
    layers.lines.replaceChildren(...place.lines.map((line) =>
      el("svg:path", { d: `M${layout.GUTTER - 8} ${round(line.under)}H${round(width)}` })).slice(0, -1));
    layers.names.replaceChildren(
      el("svg:rect", { class: "ground", width: layout.GUTTER - 12, height: round(height) }),
      ...place.lines.map((line) => el("svg:text", { x: layout.GUTTER - 18, y: round(line.y + 4), "text-anchor": "end" }, line.name)));
    layers.edges.replaceChildren();
    layers.faint.replaceChildren();
  }

  // The ends of an edge touch the shapes that have a height.
  const half = (place, item) => (place.boxes ? layout.BOX_HEIGHT / 2 : place.width[item] ? layout.TOKEN_HEIGHT / 2 : place.r[item]);

  // Whether a box stands between the ends of an edge, which then goes around it.
  function blocked(x1, y1, x2, y2) {
    const { place } = now;
    const [x, high, low] = [(x1 + x2) / 2, Math.min(y1, y2), Math.max(y1, y2)];
    return Array.from(shapes.keys()).some((item) => place.y[item] > high && place.y[item] < low && Math.abs(place.x[item] - x) < place.width[item] / 2);
  }

  // The four points of the curve of an edge.
  function points(edge) {
    const { made: { edges }, place } = now;
    const [from, to] = [edges.source[edge], edges.target[edge]];
    const up = place.y[from] >= place.y[to] ? 1 : -1;
    const [x1, y1, x2, y2] = [place.x[from], place.y[from] - up * half(place, from), place.x[to], place.y[to] + up * half(place, to)];
    const bend = up * Math.max(12, 0.45 * Math.abs(y1 - y2));
    const aside = place.boxes && blocked(x1, y1, x2, y2) ? ASIDE : 0;
    return [[x1, y1], [x1 + aside, y1 - bend], [x2 + aside, y2 + bend], [x2, y2]];
  }

  function curve(edge) {
    const [start, ...rest] = points(edge).map((point) => point.map(round).join(" "));
    return `M${start}C${rest.join(" ")}`;
  }

  const sign = (edge) => (now.made.edges.weight[edge] < 0 ? "down" : "up");

  // Edges as lines, the weakest below; the width says how strong each is beside the strongest of them.
  function lines(list) {
    const { weight } = now.made.edges;
    const order = [...list].sort((a, b) => Math.abs(weight[a]) - Math.abs(weight[b]));
    const most = order.length ? Math.abs(weight[order[order.length - 1]]) || 1 : 1;
    return order.map((edge) => {
      const share = Math.abs(weight[edge]) / most;
      return el("svg:path", {
        class: `edge ${sign(edge)}`, "data-edge": edge, d: curve(edge), "stroke-width": round(0.8 + 5 * Math.sqrt(share)), "stroke-opacity": (0.3 + 0.6 * Math.sqrt(share)).toFixed(2),
      });
    });
  }

  // Between boxes, each edge says its weight and its head, while they are few.
  function numbers() {
    const list = everything();
    if (list.length > NUMBERED) return [];
    const { made, opened, place } = now;
    const { weight } = made.edges;
    const grouped = made.group.some(Boolean);
    const taken = Array.from(shapes.keys(), (item) => [place.x[item] - place.width[item] / 2, place.y[item] - half(place, item), place.width[item], 2 * half(place, item)]);
    const free = ([x, y, wide, high]) => taken.every(([left, top, w, h]) => x > left + w || left > x + wide || y > top + h || top > y + high);
    return list.map((edge) => {
      const head = grouped || opened.edges.head[edge] < 0 ? "" : ` head ${opened.edges.head_layer[edge]}.${opened.edges.head[edge]}`;
      const text = `${show.signed(weight[edge])}${head}`;
      const four = points(edge);
      // The first place along the edge at which the number covers neither a box nor another number.
      const places = ALONG.map((t) => {
        const share = [(1 - t) ** 3, 3 * t * (1 - t) ** 2, 3 * t * t * (1 - t), t ** 3];
        const [x, y] = [0, 1].map((axis) => four.reduce((sum, point, at) => sum + share[at] * point[axis], 0));
        return [x + 6, y - 6, 6.2 * text.length, 13];
      });
      const found = places.find(free) || places[0];
      taken.push(found);
      return el("svg:text", { class: `number ${sign(edge)}`, x: round(found[0]), y: round(found[1] + 10) }, text);
    });
  }

  const seen = (list) => Array.from(list).filter((edge) => now.visible.edge[edge]);

  function strongest(list) {
    const { weight } = now.made.edges;
    return list.length <= EACH ? list : list.sort((a, b) => Math.abs(weight[b]) - Math.abs(weight[a])).slice(0, EACH);
  }

  // Show the edges of some items, and which items these touch. `all`: every edge behind them, faint.
  function focus(items, all) {
    const { made } = now;
    const list = new Set(items.flatMap((item) => strongest([...seen(graph.edgesOf(made.into, item)), ...seen(graph.edgesOf(made.outOf, item))])));
    layers.edges.replaceChildren(...lines(now.place.boxes ? everything() : list));
    layers.numbers.replaceChildren(...(now.place.boxes ? numbers() : []));
    for (const part of layers.nodes.querySelectorAll(".near")) part.classList.remove("near", "up", "down");
    for (const item of items) if (shapes.has(item)) shapes.get(item).classList.add("near");
    for (const edge of list) {
      const other = items.includes(made.edges.source[edge]) ? made.edges.target[edge] : made.edges.source[edge];
      if (shapes.has(other)) shapes.get(other).classList.add("near", sign(edge));
    }
    root.classList.toggle("chosen", items.length > 0 && !now.place.boxes);
    if (!all) layers.faint.replaceChildren();
    else if (!layers.faint.childElementCount) {
      const paths = { up: [], down: [] };
      for (const edge of everything()) paths[sign(edge)].push(curve(edge));
      layers.faint.replaceChildren(...Object.entries(paths).map(([name, parts]) => el("svg:path", { class: `edge ${name}`, d: parts.join("") })));
    }
  }

  function everything() {
    const found = [];
    now.visible.edge.forEach((on, edge) => { if (on && shapes.has(now.made.edges.source[edge]) && shapes.has(now.made.edges.target[edge])) found.push(edge); });
    return found;
  }

  // Classes of single items: name -> items that have it.
  function mark(classes) {
    for (const [name, items] of Object.entries(classes)) {
      for (const part of layers.nodes.querySelectorAll(`.${name}`)) part.classList.remove(name);
      for (const item of items) if (shapes.has(item)) shapes.get(item).classList.add(name);
    }
  }

  // The names of the rows stay in sight.
  const stay = (left) => layers.names.setAttribute("transform", moved(left, 0));

  const itemAt = (target) => {
    const part = target.closest && target.closest("[data-item]");
    return part ? Number(part.dataset.item) : -1;
  };

  return { start, draw, focus, mark, stay, itemAt, has: (item) => shapes.has(item) };
})();
