// The graph as typed arrays, and what follows from it: items (nodes, or groups of nodes), the edges between them, and
// the thresholds up to which each is shown. Nothing here draws.
"use strict";

const graph = (() => {
  const TYPES = { u1: Uint8Array, i2: Int16Array, i4: Int32Array, f4: Float32Array };
  const [TOKEN, LOGIT] = [0, 4];

  function array([type, text]) {
    const letters = atob(text);
    const bytes = new Uint8Array(letters.length);
    for (let place = 0; place < bytes.length; place += 1) bytes[place] = letters.charCodeAt(place);
    return new TYPES[type](bytes.buffer);
  }

  const arrays = (columns) => Object.fromEntries(Object.entries(columns).map(([name, column]) => [name, array(column)]));

  // The data file with its columns decoded. `logits`: the nodes of the targets.
  function open(data) {
    const [nodes, edges] = [arrays(data.nodes), arrays(data.edges)];
    return { ...data, nodes, edges, count: nodes.kind.length, effects: data.effects.map(array), logits: data.targets.map((target) => target.node), weights: data.targets.map((target) => target.weight) };
  }

  // For every item the edges in a list: item i has `list[start[i]]` to before `list[start[i + 1]]`.
  function lists(ends, count) {
    const start = new Int32Array(count + 1);
    for (const item of ends) start[item + 1] += 1;
    for (let item = 0; item < count; item += 1) start[item + 1] += start[item];
    const free = start.slice();
    const list = new Int32Array(ends.length);
    ends.forEach((item, edge) => { list[free[item]] = edge; free[item] += 1; });
    return { start, list };
  }

  const edgesOf = ({ start, list }, item) => list.subarray(start[item], start[item + 1]);

  // Influence of every item, p (M + M^2 + ...) with p = `goal`, and what each edge carries, M_ts (p_t + influence of t):
  // M holds |weights| as shares of their sum into the target. `on`: the edges that count.
  function influence(edges, count, goal, layers, on) {
    const [sums, total] = [new Float64Array(count), new Float64Array(count)];
    const { source, target, weight } = edges;
    for (let edge = 0; edge < weight.length; edge += 1) if (!on || on[edge]) sums[target[edge]] += Math.abs(weight[edge]);
    const share = new Float64Array(weight.length);
    for (let edge = 0; edge < weight.length; edge += 1) {
      if ((!on || on[edge]) && sums[target[edge]] > 0) share[edge] = Math.abs(weight[edge]) / sums[target[edge]];
    }
    let reached = goal;
    // Groups may make circles, so that the steps are limited.
    for (let step = 0; step < 4 * layers + 8; step += 1) {
      const next = new Float64Array(count);
      let any = 0;
      for (let edge = 0; edge < weight.length; edge += 1) {
        const part = share[edge] * reached[target[edge]];
        next[source[edge]] += part;
        any += part;
      }
      if (any === 0) break;
      for (let item = 0; item < count; item += 1) total[item] += next[item];
      reached = next;
    }
    return { items: total, edges: share.map((value, edge) => value * (goal[target[edge]] + total[target[edge]])) };
  }

  // The fewest that hold a share of the sum of all, as a mask.
  function fewest(values, share) {
    const order = Array.from(values.keys()).sort((a, b) => values[b] - values[a] || a - b);
    let total = 0;
    for (const place of order) total += values[place];
    const chosen = new Uint8Array(values.length);
    let sum = 0;
    for (const place of order) {
      if (!(values[place] > 0 && sum < share * total * (1 - 1e-12))) break;
      chosen[place] = 1;
      sum += values[place];
    }
    return chosen;
  }

  // Edges between groups: the sum of the weights between their members.
  function merged(edges, itemOf, count) {
    const place = new Map();
    const [source, target, weight] = [[], [], []];
    edges.weight.forEach((value, edge) => {
      const [from, to] = [itemOf[edges.source[edge]], itemOf[edges.target[edge]]];
      if (from === to) return;
      const key = from * count + to;
      if (!place.has(key)) {
        place.set(key, source.length);
        source.push(from);
        target.push(to);
        weight.push(0);
      }
      weight[place.get(key)] += value;
    });
    return { source: Int32Array.from(source), target: Int32Array.from(target), weight: Float32Array.from(weight) };
  }

  // Items of the graph. `groups`: [{name, nodes, kind}], each of which becomes one item; other nodes are items of their own.
  // An item stands where its most influential node stands.
  function items(opened, groups, logit) {
    const { nodes, count } = opened;
    const goalOf = Float64Array.from({ length: count }, () => 0);
    opened.logits.forEach((node, place) => { goalOf[node] = logit < 0 ? opened.weights[place] : Number(node === logit); });
    const byNode = logit < 0 ? nodes.influence : influence(opened.edges, count, goalOf, opened.layers).items;
    const itemOf = new Int32Array(count).fill(-1);
    const kept = [];
    for (const group of groups) {
      const members = group.nodes.filter((node) => itemOf[node] < 0 && nodes.kind[node] !== LOGIT);
      if (!members.length) continue;
      members.sort((a, b) => byNode[b] - byNode[a] || a - b);
      for (const node of members) itemOf[node] = kept.length;
      kept.push({ name: group.name, hand: group.hand, members });
    }
    const [first, group] = [kept.map((each) => each.members[0]), kept.slice()];
    for (let node = 0; node < count; node += 1) {
      if (itemOf[node] >= 0) continue;
      itemOf[node] = first.length;
      first.push(node);
      group.push(null);
    }
    const made = { first: Int32Array.from(first), group, itemOf, count: first.length, opened };
    for (const name of ["influence", "goal"]) made[name] = new Float64Array(made.count);
    made.always = new Uint8Array(made.count);
    byNode.forEach((value, node) => {
      made.influence[itemOf[node]] += value;
      made.goal[itemOf[node]] += goalOf[node];
      if (nodes.kind[node] === TOKEN || nodes.kind[node] === LOGIT) made.always[itemOf[node]] = 1;
    });
    made.edges = kept.length ? merged(opened.edges, itemOf, made.count) : opened.edges;
    made.into = lists(made.edges.target, made.count);
    made.outOf = lists(made.edges.source, made.count);
    made.through = influence(made.edges, made.count, made.goal, opened.layers).items;
    return made;
  }

  // What is shown at two thresholds, as Graph.prune keeps it: the fewest items that hold a share of the influence, and the
  // fewest edges between them. Tokens, logits and `held` items stay; a feature needs an edge into it and one out of it,
  // what has no causes one out of it. Logits that are no target are left out.
  function shown(made, node, edge, held) {
    const { edges, count, first, opened } = made;
    const item = fewest(made.through, node);
    for (let place = 0; place < count; place += 1) if (made.always[place] || held.has(place)) item[place] = 1;
    for (const logit of opened.logits) if (made.goal[made.itemOf[logit]] === 0) item[made.itemOf[logit]] = 0;
    const drawn = edgesAmong(made, item, edge);
    for (let changed = true; changed;) {
      changed = false;
      const [into, outOf] = [new Uint8Array(count), new Uint8Array(count)];
      drawn.forEach((on, place) => {
        if (on) into[edges.target[place]] = outOf[edges.source[place]] = 1;
      });
      for (let place = 0; place < count; place += 1) {
        if (!item[place] || made.always[place] || held.has(place)) continue;
        const leaf = !made.group[place] && opened.kinds[opened.nodes.kind[first[place]]] !== "feature";
        if (!outOf[place] || !(leaf || into[place])) {
          item[place] = 0;
          changed = true;
        }
      }
      drawn.forEach((on, place) => {
        if (on && !(item[edges.source[place]] && item[edges.target[place]])) drawn[place] = 0;
      });
    }
    return { item, edge: drawn };
  }

  const between = ({ edges }, item) => Uint8Array.from(edges.source, (from, edge) => item[from] && item[edges.target[edge]]);

  // The fewest edges between some items that hold a share of the influence that edges between them carry.
  function edgesAmong(made, item, share) {
    return fewest(influence(made.edges, made.count, made.goal, made.opened.layers, between(made, item)).edges, share);
  }

  // Some items alone, and of the edges between them those that hold at least `least` of all that leads into their target.
  function among(made, least, items) {
    const { edges, count } = made;
    const item = new Uint8Array(count);
    for (const each of items) item[each] = 1;
    const sums = new Float64Array(count);
    edges.target.forEach((target, edge) => { sums[target] += Math.abs(edges.weight[edge]); });
    return { item, edge: between(made, item).map((on, edge) => Number(on && Math.abs(edges.weight[edge]) >= least * sums[edges.target[edge]])) };
  }

  return { open, items, shown, among, edgesOf };
})();
