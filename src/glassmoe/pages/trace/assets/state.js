// What the reader has chosen, and the address that holds it, so that a view can be sent to someone.
"use strict";

const state = (() => {
  const numbers = (text, limit) => (text || "").split(".").filter((each) => /^\d+$/.test(each)).map(Number).filter((each) => each < limit);

  const share = (text, fallback) => {
    const value = Number(text);
    return text !== null && value > 0 && value <= 1 ? value : fallback;
  };

  // The state of an address. Whatever cannot be read is left out.
  function read(hash, opened) {
    const found = new URLSearchParams(hash.replace(/^#/, ""));
    const whole = (name, limit, fallback) => (/^-?\d+$/.test(found.get(name) || "") && Number(found.get(name)) < limit ? Number(found.get(name)) : fallback);
    const taken = new Set(opened.logits);
    const groups = found.getAll("group").map((text) => {
      const cut = text.lastIndexOf("|");
      const nodes = numbers(text.slice(cut + 1), opened.count).filter((node) => !taken.has(node));
      nodes.forEach((node) => taken.add(node));
      return { name: text.slice(0, Math.max(0, cut)) || "group", nodes, hand: true };
    }).filter((group) => group.nodes.length);
    return {
      target: whole("target", opened.logits.length, -1),
      node: share(found.get("node"), opened.starts.node),
      edge: share(found.get("edge"), opened.starts.edge),
      at: found.has("at") ? whole("at", opened.count, -1) : opened.logits[Math.max(0, whole("target", opened.logits.length, 0))],
      by: found.get("by") || "",
      view: found.get("view") === "pins" ? "pins" : "graph",
      all: found.get("all") === "1",
      pins: new Set(numbers(found.get("pin"), opened.count)),
      marks: new Set(),
      groups,
    };
  }

  function write(now, opened) {
    const made = new URLSearchParams();
    if (now.target >= 0) made.set("target", now.target);
    if (now.node !== opened.starts.node) made.set("node", now.node);
    if (now.edge !== opened.starts.edge) made.set("edge", now.edge);
    made.set("at", now.at);
    if (now.by) made.set("by", now.by);
    if (now.view !== "graph") made.set("view", now.view);
    if (now.all) made.set("all", "1");
    if (now.pins.size) made.set("pin", [...now.pins].join("."));
    for (const group of now.groups) made.append("group", `${group.name}|${group.nodes.join(".")}`);
    return `#${made}`;
  }

  return { read, write };
})();
