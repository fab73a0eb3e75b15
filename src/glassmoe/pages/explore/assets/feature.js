// The page of one feature.
"use strict";

const feature = (() => {
  // Scorer -> its headline number.
  const SCORERS = { detection: "balanced_accuracy", fuzzing: "balanced_accuracy", embedding: "auc" };

  const card = (title, about, ...children) => el("section", { class: "card" }, el("h2", {}, title),
    about ? el("p", { class: "quiet small" }, about) : null, ...children);

  function tile(value, about, title) {
    return el("div", { class: "tile", title: title || null }, el("b", {}, value), el("span", {}, about));
  }

  async function load(id) {
    const meta = await glass.load("meta");
    if (id >= meta.of || (meta.shown && !meta.shown.includes(id))) return [meta, null];
    const [records] = await Promise.all([
      glass.load(`features-${Math.floor(id / meta.shard)}`),
      glass.load("graphs").catch(() => null), // sites of earlier versions have none
    ]);
    return [meta, records[id]];
  }

  function example(record, each, meta) {
    const squares = record.board ? squaresOf(record.board.property) : [];
    const drawn = each.board ? board(each.board, each.move, squares) : null;
    const share = record.max ? each.strengths[each.peak] / record.max : 0;
    return el("article", { class: `example${drawn ? " with-board" : ""}` }, drawn, el("div", { class: "words" },
      tokenLine(each, record.max, meta.separator),
      el("p", { class: "quiet small where" },
        `strength ${show.number(each.strengths[each.peak])} (${show.share(share)} of the maximum), ${meta.text ? "document" : "game"} ${show.count(each.row)}, ${meta.unit} ${show.count(each.at)}`)));
  }

  function sayings(record) {
    return record.said.map((said) => {
      const scores = Object.entries(SCORERS).filter(([name]) => said.scores[name]);
      return card("Explanation", [said.by ? `written by ${said.by}` : "", said.judge ? `scored by ${said.judge}` : ""].filter(Boolean).join(", "),
        said.text ? el("p", { class: "saying" }, isolated(said.text))
          : el("p", { class: "quiet" }, "No explanation", said.why ? [": ", isolated(said.why)] : null, "."),
        scores.length ? el("table", {}, el("thead", {}, el("tr", {}, ["scorer", "score", "F1", "precision", "recall", "control score"]
          .map((name) => el("th", { scope: "col" }, name)))),
        el("tbody", {}, scores.map(([name, headline]) => {
          const found = said.scores[name];
          const control = said.control[name];
          return el("tr", {}, el("th", { scope: "row", title: headline === "auc" ? "AUC" : "balanced accuracy" }, name), [headline, "f1", "precision", "recall"]
            .map((value) => el("td", {}, show.score(found[value]))), el("td", {}, show.score(control)));
        }))) : said.text ? el("p", { class: "quiet small" }, "not scored") : null,
        scores.filter(([name]) => said.scores[name].deciles).slice(0, 1).map(([name]) => tenths(said.scores[name].deciles, name)));
    });
  }

  function tenths(values, name) {
    const bars = values.map((value, place) => el("svg:g", {},
      el("svg:rect", { class: "track", x: 20 * place, y: 0, width: 17, height: 40, rx: 2 }),
      el("svg:rect", { x: 20 * place, y: 40 - 40 * (value || 0), width: 17, height: 40 * (value || 0), rx: 2 },
        el("svg:title", {}, `tenth ${place + 1}: ${show.score(value)}`))));
    return el("figure", {}, el("svg:svg", {
      class: "tenths", viewBox: "0 0 200 40", role: "img", "aria-label": `${name} by tenths: ${values.map(show.score).join(", ")}`,
    }, bars), el("figcaption", { class: "quiet small" }, `${name} by tenths of strength, strongest first`));
  }

  function logits(record, meta) {
    if (!record.logits.up) return null;
    const column = (rows, title) => {
      const most = Math.abs(rows.length ? rows[0][1] : 1);
      return el("table", { class: "logits" }, el("caption", {}, title), el("tbody", {}, rows.map(([token, value]) =>
        el("tr", {}, el("th", { scope: "row" }, el("bdi", { class: "chip" }, named(token))),
          el("td", {}, meter(Math.abs(value), most)), el("td", {}, show.signed(value))))));
    };
    return card("Effect on the logits", meta.how, el("div", { class: "pair" },
      column(record.logits.up, "made likelier"), column(record.logits.down, "made less likely")));
  }

  function nearest(record, meta) {
    const columns = [["read", "read similar inputs"], ["written", "write similar outputs"]].filter(([name]) => record.near[name]);
    if (!columns.length) return null;
    return card("Nearest features", "By cosine similarity, first of encoder rows (read), then of written directions (write).",
      el("div", { class: "pair" }, columns.map(([name, title]) => el("table", { class: "near" }, el("caption", {}, title),
        el("tbody", {}, record.near[name].map(([id, cosine, words]) => el("tr", {},
          el("th", { scope: "row" }, el("a", { href: `#${id}` }, String(id))),
          el("td", { class: "label-cell" }, label(words)), el("td", {}, show.score(cosine)),
          el("td", {}, el("a", { href: `#${record.id},${id}`, title: "both side by side", "aria-label": `compare with ${id}` }, "\u21c4")))))))));
  }

  // The graphs of `trace` in which the feature is a node.
  function graphs(id) {
    const rows = (glass.values.get("graphs") || []).filter((each) => each.nodes[id]).map((each) =>
      el("li", {}, isolated(each.prompt), each.nodes[id].flatMap(([node, position], place) =>
        [place ? ", " : ": ", el("a", { href: `${each.page}#at=${node}` }, `token ${position}`)])));
    return rows.length ? card("Graphs", "Traced predictions of which this feature is a part, and the tokens at which it is.", el("ul", { class: "plain graphs" }, rows)) : null;
  }

  function view(id, meta, record) {
    if (!record) {
      return [el("h1", {}, `Feature ${id} is not here`),
        el("p", {}, meta.features < meta.of ? `This site shows ${show.count(meta.features)} of the ${show.count(meta.of)} features of this layer.`
          : `This layer has features 0 to ${meta.of - 1}.`)];
    }
    const said = (record.said.find((each) => each.text) || {}).text || "";
    const property = record.board && record.board.property;
    const expert = meta.features_of_expert ? Math.floor(id / meta.features_of_expert) : null;
    const title = said || property;
    const score = record.said.flatMap((each) => Object.entries(SCORERS).map(([name, headline]) => (each.scores[name] || {})[headline]))
      .find((value) => value !== undefined);
    const tiles = el("div", { class: "tiles" },
      tile(show.share(record.count / meta.tokens), `density: fires on ${show.count(record.count)} of ${show.count(meta.tokens)} ${meta.unit}s`),
      tile(show.number(record.max), "greatest strength"),
      tile(show.number(record.mean), "mean strength where it fires"),
      score === undefined ? null : tile(show.score(score), "score of the explanation (0.5 is chance)"),
      property ? tile(show.score(record.board.f1), el("span", {}, "F1 for ", isolated(property)),
        record.board.precision === undefined ? null : `precision ${show.score(record.board.precision)}, recall ${show.score(record.board.recall)}`) : null,
      expert === null ? null : tile(el("a", { href: `#expert-${expert}` }, String(expert)), "expert"));
    const samples = record.count ? [
      el("section", {}, el("h2", {}, "Strongest examples"),
        el("p", { class: "quiet small" }, `Tokens are tinted by the strength of the feature; the strongest token is framed. ${
          record.top.some((each) => each.board) ? `Boards show the position at that ${meta.unit}; the last move is tinted${property && squaresOf(property).length ? ", and the square of the board property is framed" : ""}.` : ""}`),
        el("div", { class: "examples" }, record.top.map((each) => example(record, each, meta)))),
      el("section", {}, el("h2", {}, "Examples of every strength"),
        el("p", { class: "quiet small" }, "From each tenth of a random sample of the windows in which the feature fires, the strongest tenth first."),
        record.deciles.map((found, tenth) => found.length ? el("details", { open: tenth % 3 === 0 },
          el("summary", {}, tenth === 0 ? "strongest tenth" : tenth === 9 ? "weakest tenth" : `tenth ${tenth + 1}`),
          el("div", { class: "examples" }, found.map((each) => example(record, each, meta)))) : null)),
    ] : [el("section", { class: "card" }, el("h2", {}, "Silent"), el("p", {}, `The feature fires on none of the ${show.count(meta.tokens)} ${meta.unit}s that were read.`))];
    return [
      el("p", { class: "quiet kicker" }, "feature ", el("b", {}, String(id)), expert === null ? null : [" of expert ", el("a", { href: `#expert-${expert}` }, String(expert))],
        " \u00b7 ", isolated(meta.reader), " of ", isolated(meta.run)),
      el("h1", { class: "saying" }, title ? isolated(title) : `Feature ${id}`),
      tiles,
      el("div", { class: "sheet" },
        el("div", { class: "main" }, samples),
        el("aside", {},
          record.histogram.counts.length ? card("Distribution of strengths", `Number of ${meta.unit}s by the strength of the feature, on a logarithmic axis.`,
            histogram(record.histogram, meta.edges, meta.unit)) : null,
          sayings(record), logits(record, meta), graphs(id), nearest(record, meta))),
    ];
  }

  // Two features side by side.
  function pair(ids, meta, records) {
    const side = (id, record) => {
      if (!record) return el("section", { class: "card" }, view(id, meta, record));
      const said = (record.said.find((each) => each.text) || {}).text || (record.board && record.board.property);
      return el("section", {},
        el("h2", {}, el("a", { href: `#${id}` }, `feature ${id}`), said ? [": ", isolated(said)] : null),
        el("p", { class: "quiet small" }, `fires on ${show.share(record.count / meta.tokens)} of the ${meta.unit}s; greatest strength ${show.number(record.max)}`),
        record.histogram.counts.length ? histogram(record.histogram, meta.edges, meta.unit) : null,
        el("div", { class: "examples" }, record.top.map((each) => example(record, each, meta))),
        logits(record, meta));
    };
    const cosine = (name) => ((records[0] && records[0].near[name]) || []).find(([other]) => other === ids[1]);
    const near = [["read", "encoder rows"], ["written", "written directions"]].map(([name, words]) => [cosine(name), words])
      .filter(([found]) => found).map(([found, words]) => `${words} have cosine ${show.score(found[1])}`);
    return [
      el("h1", {}, `Features ${ids[0]} and ${ids[1]}`, el("span", { class: "quiet of" }, " of ", isolated(meta.reader))),
      near.length ? el("p", { class: "quiet" }, `Their ${near.join("; their ")}.`) : null,
      el("div", { class: "sides" }, ids.map((id, n) => side(id, records[n]))),
    ].filter(Boolean);
  }

  return { load, view, pair };
})();
