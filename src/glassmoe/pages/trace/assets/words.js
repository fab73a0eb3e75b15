// What items are called.
"use strict";

const words = (() => {
  const kindOf = (opened, node) => opened.kinds[opened.nodes.kind[node]];
  const at = (opened, position) => (position < 0 ? "" : ` at ${position} \u201c${named(opened.tokens[position])}\u201d`);

  function place(opened, node) {
    const position = opened.nodes.position[node];
    return position < 0 ? "for all tokens" : `token ${position} \u201c${named(opened.tokens[position])}\u201d`;
  }

  const target = (opened, node) => opened.targets[opened.logits.indexOf(node)];

  // A node without its place: `feature 17`.
  function short(opened, node) {
    const kind = kindOf(opened, node);
    const { feature, layer } = opened.nodes;
    if (kind === "feature") return feature[node] < 0 ? "features" : `feature ${feature[node]}`;
    if (kind === "token") return `token \u201c${named(opened.tokens[opened.nodes.position[node]])}\u201d`;
    if (kind === "logit") return `logit of \u201c${named(target(opened, node).text)}\u201d`;
    if (kind === "bias") return layer[node] < 0 ? "bias of the embeddings" : layer[node] >= opened.layers ? "bias of the last norm" : `bias of layer ${layer[node]}`;
    return `error of layer ${layer[node]}`;
  }

  // A node where its row is known: `feature 17 at 5`.
  const brief = (opened, number) => `${short(opened, number)}${at(opened, opened.nodes.position[number])}`;

  function node(opened, number) {
    const kind = kindOf(opened, number);
    const { layer, position } = opened.nodes;
    if (kind === "feature") return `${short(opened, number)} of layer ${layer[number]}${at(opened, position[number])}`;
    if (kind === "token") return `${short(opened, number)} at ${position[number]}`;
    return kind === "logit" ? short(opened, number) : short(opened, number) + at(opened, position[number]);
  }

  const label = (opened, number) => opened.labels[number] || "";

  function item(opened, made, number) {
    const group = made.group[number];
    return group ? group.name : node(opened, made.first[number]);
  }

  const itemLabel = (opened, made, number) => (made.group[number] ? "" : label(opened, made.first[number]));

  // The head that moves the largest part of an edge.
  function head(opened, edge) {
    const { head_layer: layer, head: number, source, head_share: share } = opened.edges;
    if (number[edge] < 0) return "";
    const from = opened.nodes.position[source[edge]];
    const part = Number.isFinite(share[edge]) && share[edge] < 0.995 ? ` (${show.share(share[edge])})` : "";
    return `head ${layer[edge]}.${number[edge]}${from < 0 ? "" : ` from token ${from} \u201c${named(opened.tokens[from])}\u201d`}${part}`;
  }

  // Groups that are made automatically: key -> its nodes.
  const GROUPINGS = {
    expert: (nodes, _, n) => (nodes.expert[n] < 0 ? "" : `expert ${nodes.expert[n]} of layer ${nodes.layer[n]}, at ${nodes.position[n]}`),
    "expert-everywhere": (nodes, _, n) => (nodes.expert[n] < 0 ? "" : `expert ${nodes.expert[n]} of layer ${nodes.layer[n]}`),
    label: (nodes, labels, n) => (labels[n] ? `${labels[n]} (layer ${nodes.layer[n]}, at ${nodes.position[n]})` : ""),
    "label-everywhere": (nodes, labels, n) => labels[n] || "",
  };

  function groups(opened, by) {
    const made = new Map();
    if (!GROUPINGS[by]) return [];
    for (let number = 0; number < opened.count; number += 1) {
      if (kindOf(opened, number) !== "feature") continue;
      const key = GROUPINGS[by](opened.nodes, opened.labels, number);
      if (!key) continue;
      if (!made.has(key)) made.set(key, []);
      made.get(key).push(number);
    }
    return [...made].filter(([, nodes]) => nodes.length > 1).map(([name, nodes]) => ({ name, nodes, hand: false }));
  }

  return { kindOf, place, short, brief, node, label, item, itemLabel, head, groups, target };
})();
