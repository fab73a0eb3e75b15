// The page of all experts of a layer, and the page of one expert.
"use strict";

const expert = (() => {
  const load = () => Promise.all([glass.load("meta"), glass.load("experts")]);
  const chips = (tokens) => tokens.map(([token, share, ratio]) =>
    el("bdi", { class: "chip", title: `${show.share(share)} of this expert's peaks, ${show.number(ratio)} times the share among all peaks` }, named(token)));
  const alive = (found, meta) => `${show.count(found.alive)} of ${show.count(meta.features_of_expert)}`;

  function all(meta, experts) {
    const most = Math.max(...experts.map((found) => found.load ?? found.share ?? 0));
    const heads = ["expert", ...(meta.routes ? ["load"] : []), "strength", "L0", "features that fire", "typical tokens"];
    return [
      el("h1", {}, "Experts", el("span", { class: "quiet of" }, " of ", isolated(meta.reader), " of ", isolated(meta.run))),
      el("p", { class: "quiet" }, about(meta)),
      el("div", { class: "scroll" }, el("table", { class: "experts" },
        el("thead", {}, el("tr", {}, heads.map((name, at) => el("th", { scope: "col", class: at === heads.length - 1 ? "chips" : null }, name)))),
        el("tbody", {}, experts.map((found, number) => el("tr", {},
          el("th", { scope: "row" }, el("a", { href: `#expert-${number}` }, `expert ${number}`)),
          meta.routes ? el("td", {}, meter(found.load, most), " ", show.share(found.load)) : null,
          el("td", {}, meta.routes ? null : meter(found.share, most), " ", show.share(found.share)),
          el("td", {}, show.number(found.l0)),
          el("td", {}, alive(found, meta), found.dead.length ? el("b", { class: "warn" }, ` ${found.dead.length} dead`) : null),
          el("td", { class: "chips" }, chips(found.tokens.slice(0, 8)))))))),
    ];
  }

  const about = (meta) => `${meta.routes ? "Load: share of the routing choices that the expert gets. " : ""}Strength: the expert's share of the strength of all features. L0: features of the expert that fire per ${meta.unit}, in the mean. Typical tokens: tokens that are a peak of the expert's features more often than of all features.`;

  function one(number, meta, experts) {
    const found = experts[number];
    if (!found) return [el("h1", {}, `Expert ${number} is not here`), el("p", {}, `This layer has ${meta.experts ? `experts 0 to ${meta.experts - 1}` : "no experts"}.`)];
    const link = (id) => el("a", { href: `#${id}` }, String(id));
    return [
      el("p", { class: "quiet kicker" }, isolated(meta.reader), " of ", isolated(meta.run)),
      el("h1", {}, `Expert ${number}`),
      el("div", { class: "tiles" },
        meta.routes ? el("div", { class: "tile" }, el("b", {}, show.share(found.load)), el("span", {}, "load: share of the routing choices")) : null,
        el("div", { class: "tile" }, el("b", {}, show.share(found.share)), el("span", {}, "share of the strength of all features")),
        el("div", { class: "tile" }, el("b", {}, show.number(found.l0)), el("span", {}, `of its features fire per ${meta.unit} (L0)`)),
        el("div", { class: "tile" }, el("b", {}, show.count(found.dead.length)), el("span", {}, `dead features of ${show.count(meta.features_of_expert)}`))),
      el("section", { class: "card" }, el("h2", {}, "Typical tokens"),
        el("p", { class: "quiet small" }, "Tokens that are a peak of this expert's features more often than of all features."),
        el("p", { class: "chips" }, found.tokens.length ? chips(found.tokens) : "No token is typical.")),
      el("section", { class: "card" }, el("h2", {}, "Typical features"),
        el("p", { class: "quiet small" }, "The features with the greatest share of the expert's strength."),
        el("table", { class: "typical" }, el("thead", {}, el("tr", {}, ["feature", "", "share"].map((name) => el("th", { scope: "col" }, name)))),
          el("tbody", {}, found.features.map(([id, share, said]) => el("tr", {}, el("th", { scope: "row" }, link(id)),
            el("td", { class: "label-cell" }, label(said)),
            el("td", {}, meter(share, found.features[0][1]), " ", show.share(share))))))),
      el("section", { class: "card" }, el("h2", {}, "Dead features"),
        found.dead.length ? el("p", {}, `${show.count(found.dead.length)} features of this expert fire on none of the ${show.count(meta.tokens)} ${meta.unit}s that were read: `,
          found.dead.slice(0, 200).flatMap((unit, place) => [place ? ", " : "", link(number * meta.features_of_expert + unit)]),
          found.dead.length > 200 ? ", \u2026" : "")
          : el("p", {}, `None. Every feature of this expert fires on at least one ${meta.unit}.`)),
    ];
  }

  return { load, all, one };
})();
