// The side panel: the card of the selected item, or what is pinned and what matters most.
"use strict";

const panel = (() => {
  const [ROWS, EXAMPLES, MEMBERS, TOP] = [12, 3, 40, 12];

  const section = (title, about, ...children) => el("section", {}, el("h3", {}, title), about ? el("p", { class: "quiet small" }, about) : null, ...children);

  const fact = (value, about) => el("div", { class: "fact" }, el("b", {}, value), el("span", {}, about));

  // A button that selects an item; moving over it shows the item in the picture.
  function link(context, item, text) {
    const { opened, made } = context;
    const words_ = words.itemLabel(opened, made, item);
    return el("button", { type: "button", class: "link", "data-go": made.first[item], title: words.item(opened, made, item) },
      text || (words_ ? [el("span", {}, isolated(layout.short(words_, 60))), el("span", { class: "quiet" }, ` ${words.item(opened, made, item)}`)] : words.item(opened, made, item)));
  }

  function prompt(opened, position) {
    if (position < 0) return null;
    const [first, last] = [Math.max(0, position - 40), Math.min(opened.tokens.length, position + 20)];
    const line = el("p", { class: "line" }, first ? el("span", { class: "around" }, "\u2026") : null);
    for (let place = first; place < last; place += 1) {
      if (place > first && opened.separator) line.append(opened.separator);
      line.append(el("bdi", { class: place === position ? "tok t6 peak" : place > position ? "around" : "" }, visible(opened.tokens[place])));
    }
    return line;
  }

  // Edges as rows of a table, the strongest first.
  function edgeTable(context, list, end, title, whole) {
    const { opened, made } = context;
    const { weight } = made.edges;
    const order = Array.from(list).sort((a, b) => Math.abs(weight[b]) - Math.abs(weight[a]));
    if (!order.length) return null;
    const most = Math.abs(weight[order[0]]);
    const rows = order.slice(0, ROWS).map((edge) => {
      const head = made.group.some(Boolean) ? "" : words.head(opened, edge);
      return el("tr", context.shown.edge[edge] ? {} : { class: "hidden-edge", title: "not drawn at these thresholds" },
        el("td", {}, el("span", { class: `sign ${weight[edge] < 0 ? "down" : "up"}` }, show.signed(weight[edge]))),
        el("td", {}, bar(weight[edge], most)),
        el("th", { scope: "row" }, link(context, made.edges[end][edge]), head ? el("span", { class: "head quiet" }, head) : null));
    });
    const more = order.length - rows.length;
    return section(title, whole, el("table", { class: "edges-of" }, el("tbody", {}, rows)),
      more > 0 ? el("p", { class: "quiet small" }, `and ${show.count(more)} more, which add up to ${show.signed(order.slice(ROWS).reduce((sum, edge) => sum + weight[edge], 0))}`) : null);
  }

  const bar = (value, most) => el("svg:svg", { class: `meter ${value < 0 ? "down" : "up"}`, viewBox: "0 0 60 6", "aria-hidden": "true" },
    el("svg:rect", { class: "track", width: 60, height: 6, rx: 2 }),
    el("svg:rect", { width: Math.max(1, (60 * Math.abs(value)) / (most || 1)).toFixed(1), height: 6, rx: 2 }));

  // How the input of a node comes about.
  function sums(context, item) {
    const { opened, made } = context;
    const node = made.first[item];
    const input = opened.nodes.input[node];
    if (made.group[item] || !Number.isFinite(input)) return "";
    let edges = 0;
    for (const edge of graph.edgesOf(made.into, item)) edges += made.edges.weight[edge];
    const rest = opened.nodes.rest[node];
    const source = opened.nodes.source[node];
    return `They add up to ${show.signed(edges)}. With ${show.signed(rest)} from what the graph leaves out, that is the input, ${show.signed(input)}.${source >= 0 ? ` ${opened.sources[source].sums}` : ""}`;
  }

  function facts(context, item) {
    const { opened, made } = context;
    const [node, group] = [made.first[item], made.group[item]];
    const kind = words.kindOf(opened, node);
    const found = [];
    if (group) found.push(fact(show.count(group.members.length), "nodes"));
    else if (kind === "feature") found.push(fact(show.number(opened.nodes.activation[node]), "activation"));
    else if (kind === "logit") found.push(fact(show.share(opened.nodes.activation[node]), "probability"));
    if (!group && Number.isFinite(opened.nodes.input[node])) found.push(fact(show.signed(opened.nodes.input[node]), kind === "logit" ? (words.target(opened, node).against_text ? "logit less the other's" : "logit less the mean") : "input"));
    if (kind !== "logit") found.push(fact(show.share(made.influence[item]), "of the influence"));
    if (kind !== "logit" && !group) {
      const target = Math.max(0, context.state.target);
      found.push(fact(show.signed(opened.effects[target][node]), `effect on \u201c${named(opened.targets[target].text)}\u201d, all paths`));
    }
    return el("div", { class: "facts" }, found);
  }

  function board_(opened, position, squares) {
    const found = opened.boards && position >= 0 ? opened.boards[position] : null;
    return found ? el("figure", { class: "position", title: `the position at this ${opened.unit}${found[1] ? "; the last move is tinted" : ""}` }, board(found[0], found[1], squares)) : null;
  }

  function buttons(context, item) {
    const { made, state } = context;
    const node = made.first[item];
    const button = (id, text, on, key) => el("button", { type: "button", "data-do": id, "aria-pressed": on === null ? null : String(on), title: `key ${key}` }, text);
    const group = made.group[item];
    return el("p", { class: "buttons" },
      button("pin", state.pins.has(node) ? "Unpin" : "Pin", state.pins.has(node), "p"),
      button("mark", state.marks.has(node) ? "Unmark" : "Mark", state.marks.has(node), "m"),
      state.marks.size ? button("group", `Group ${state.marks.size + (state.marks.has(node) ? 0 : 1)}`, null, "g") : null,
      group && group.hand ? button("ungroup", "Ungroup", null, "u") : null);
  }

  // Explanation, examples and logits of a feature, where they are known.
  function card(context, record, node) {
    const { opened } = context;
    const source = opened.sources[opened.nodes.source[node]];
    const found = [];
    if (record) {
      for (const said of record.said.filter((each) => each.text).slice(0, 2)) {
        found.push(el("p", { class: "quiet small" }, "Explanation", said.by ? [" by ", isolated(said.by)] : null, ": ", isolated(said.text)));
      }
      if (record.board) found.push(el("p", { class: "quiet small" }, `Detects best: ${record.board.property}${record.board.f1 === undefined ? "" : ` (F1 ${show.score(record.board.f1)})`}.`));
      if (record.top.length) {
        const squares = record.board ? squaresOf(record.board.property) : [];
        found.push(section("Strongest examples", `Of ${show.count(record.count)} ${opened.unit}s on which it fires; here it has ${show.share(opened.nodes.activation[node] / (record.max || 1))} of its greatest strength.`,
          el("div", { class: "examples" }, record.top.slice(0, EXAMPLES).map((each) => el("article", { class: `example${each.board ? " with-board" : ""}` },
            each.board ? board(each.board, each.move, squares) : null,
            el("div", { class: "words" }, tokenLine({ ...each, before: (each.before || "").slice(-60) }, record.max, opened.separator)))))));
      }
      if (record.up) {
        const column = (rows, title) => el("table", { class: "logits" }, el("caption", {}, title), el("tbody", {}, rows.map(([token, value]) =>
          el("tr", {}, el("th", { scope: "row" }, el("bdi", { class: "chip" }, named(token))), el("td", {}, show.signed(value))))));
        found.push(section("What it writes", source.how, el("div", { class: "pair" }, column(record.up, "made likelier"), column(record.down, "made less likely"))));
      }
    }
    return found;
  }

  function routes(context, node) {
    const { opened } = context;
    const { layer, position, expert } = opened.nodes;
    const route = expert[node] < 0 ? null : (opened.routes || []).find((each) => each.layer === layer[node] && each.position === position[node] && each.expert === expert[node]);
    if (!route) return null;
    return section(`Why expert ${route.expert} was chosen`, `Gate ${show.number(route.gate)}; its score is ${show.number(route.margin)} above that of the best expert that was not chosen. To first order, this margin comes from:`,
      effects(context, route.nodes.map((each, at) => [each, route.weights[at]])));
  }

  function effects(context, pairs) {
    const most = Math.max(...pairs.map(([, weight]) => Math.abs(weight)), 1e-12);
    return el("table", { class: "edges-of" }, el("tbody", {}, pairs.map(([node, weight]) => el("tr", {},
      el("td", {}, el("span", { class: `sign ${weight < 0 ? "down" : "up"}` }, show.signed(weight))), el("td", {}, bar(weight, most)),
      el("th", { scope: "row" }, node < 0 ? "all else" : link(context, context.made.itemOf[node]))))));
  }

  function looks(context, node) {
    const { opened } = context;
    const position = opened.nodes.position[node];
    const found = (opened.looks || []).filter((each) => each.query === position && position >= 0).slice(0, 6);
    if (!found.length) return null;
    return section("Why heads looked from here", "Pairs of nodes, at this token and at the one that is looked at, whose product adds most to the attention score.",
      found.map((look) => el("details", {}, el("summary", {}, `head ${look.layer}.${look.head} to token ${look.key} \u201c${named(opened.tokens[look.key])}\u201d, attention ${show.share(look.probability)}`),
        el("table", { class: "edges-of" }, el("tbody", {}, look.pairs.map(([query, key, weight]) => el("tr", {},
          el("td", {}, el("span", { class: `sign ${weight < 0 ? "down" : "up"}` }, show.signed(weight))),
          el("th", { scope: "row" }, query < 0 ? "all else" : link(context, context.made.itemOf[query]), el("span", { class: "quiet" }, " with "), key < 0 ? "all else" : link(context, context.made.itemOf[key])))))))));
  }

  function title(context, item) {
    const { opened, made } = context;
    const [node, group] = [made.first[item], made.group[item]];
    const kind = words.kindOf(opened, node);
    const [source, expert] = [opened.nodes.source[node], opened.nodes.expert[node]];
    const label = words.itemLabel(opened, made, item);
    const kicker = group ? "group" : [source < 0 ? kind : opened.sources[source].name, expert >= 0 ? `expert ${expert}` : "", label ? words.node(opened, node) : ""].filter(Boolean).join(" \u00b7 ");
    return [
      el("p", { class: "quiet kicker" }, visible(kicker)),
      group && group.hand ? el("input", { id: "rename", class: "rename", value: group.name, "aria-label": "name of the group", maxlength: 80 })
        : el("h2", {}, isolated(label || words.item(opened, made, item))),
    ];
  }

  function itemView(context, item, record) {
    const { opened, made } = context;
    const [node, group] = [made.first[item], made.group[item]];
    const position = opened.nodes.position[node];
    const source = opened.sources[opened.nodes.source[node]];
    const squares = record && record.board ? squaresOf(record.board.property) : [];
    const page = !group && source && source.page && opened.nodes.feature[node] >= 0 ? `${source.page}#${opened.nodes.feature[node]}` : null;
    return [
      ...title(context, item),
      group ? null : board_(opened, position, squares),
      buttons(context, item),
      facts(context, item),
      group ? null : prompt(opened, position),
      page ? el("p", { class: "small" }, el("a", { href: page }, "Page of this feature")) : null,
      group ? section("Members", null, el("ul", { class: "members" }, group.members.slice(0, MEMBERS).map((each) =>
        el("li", {}, el("bdi", {}, visible(words.node(opened, each))), words.label(opened, each) ? el("span", { class: "quiet" }, " ", isolated(words.label(opened, each))) : null))),
      group.members.length > MEMBERS ? el("p", { class: "quiet small" }, `and ${group.members.length - MEMBERS} more`) : null) : null,
      edgeTable(context, graph.edgesOf(made.into, item), "source", "Incoming edges", sums(context, item)),
      edgeTable(context, graph.edgesOf(made.outOf, item), "target", "Outgoing edges", ""),
      group ? null : routes(context, node),
      group ? null : looks(context, node),
      ...(group ? [] : card(context, record, node)),
    ];
  }

  // Nothing is selected: what is pinned, the groups, and the most influential items.
  function overview(context) {
    const { opened, made, state } = context;
    const list = (items) => el("ul", { class: "plain" }, items.map((item) => el("li", {}, link(context, item), el("span", { class: "quiet" }, ` ${show.share(made.influence[item])}`))));
    const pinned = [...new Set([...state.pins].map((node) => made.itemOf[node]))];
    const hand = made.group.flatMap((group, item) => (group && group.hand ? [item] : []));
    const top = Array.from({ length: made.count }, (_, item) => item).filter((item) => !opened.logits.includes(made.first[item]))
      .sort((a, b) => made.influence[b] - made.influence[a]).slice(0, TOP);
    return [
      el("h2", {}, "Nothing is selected"),
      el("p", { class: "quiet small" }, "Click a node, or press an arrow key. Every edge is a part of its target's input: what the source wrote, with attention, norms, gates and active units held as they were."),
      pinned.length ? section("Pinned", null, list(pinned)) : null,
      hand.length ? section("Groups", null, list(hand)) : null,
      section("Most influence on the target", null, list(top)),
    ];
  }

  return { item: itemView, overview };
})();
