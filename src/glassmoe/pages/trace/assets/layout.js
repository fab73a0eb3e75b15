// Where items stand: columns by token, rows by layer, tokens below; in a cell the most influential first. The view of
// pinned items has boxes instead, a row a layer.
"use strict";

const layout = (() => {
  const [PITCH, GAP, BETWEEN, WIDEST, MARGIN, GUTTER, TOKEN_HEIGHT] = [17, 10, 34, 110, 14, 76, 24];
  const [BOX_WIDTH, BOX_HEIGHT, BOX_GAP, BOX_BETWEEN] = [196, 60, 22, 66];
  const ASIDE = 120; // room on the right for edges that go around a box
  const MANY_LAYERS = 8; // rows of deeper models are closer together
  const LETTER = 7.6;

  const short = (text, most) => (text.length > most ? `${text.slice(0, most - 1)}\u2026` : text);
  // A text in two lines at most, cut at words where that is possible.
  function twoLines(text, most) {
    if (text.length <= most) return [text];
    const cut = text.lastIndexOf(" ", most);
    const first = text.slice(0, cut > most / 2 ? cut : most);
    return [first, short(text.slice(first.length).trim(), most)];
  }

  const tokenText = (text) => short(named(text) || "\u2423", 16);
  const pillText = (target) => `${short(named(target.text), 14)} ${show.share(target.probability)}${target.against_text ? ` less ${short(named(target.against_text), 10)}` : ""}`;

  function rowOf(opened, node) {
    return Math.min(opened.layers, opened.nodes.layer[node]);
  }

  const rowName = (opened, row) => (row < 0 ? "tokens" : row === opened.layers ? "logits" : `layer ${row}`);

  function cells(opened, made, visible) {
    const found = new Map();
    for (let item = 0; item < made.count; item += 1) {
      const node = made.first[item];
      const kind = opened.kinds[opened.nodes.kind[node]];
      if (!visible.item[item] || ((kind === "token" || kind === "logit") && !made.group[item])) continue;
      const key = `${rowOf(opened, node)} ${opened.nodes.position[node]}`;
      if (!found.has(key)) found.set(key, []);
      found.get(key).push(item);
    }
    for (const list of found.values()) list.sort((a, b) => made.influence[b] - made.influence[a] || a - b);
    return found;
  }

  // `aspect`: height of the frame by its width, which the space between rows fills.
  function grid(opened, made, visible, aspect) {
    const place = { x: new Float32Array(made.count), y: new Float32Array(made.count), r: new Float32Array(made.count), width: new Float32Array(made.count) };
    const found = cells(opened, made, visible);
    const size = opened.tokens.length;
    const [across, rows] = [new Int32Array(size + 1), new Int32Array(opened.layers + 2)];
    for (const [key, list] of found) {
      const position = Number(key.split(" ")[1]) + 1;
      across[position] = Math.max(across[position], Math.ceil(Math.sqrt(1.1 * list.length)));
    }
    for (const [key, list] of found) {
      const [row, position] = key.split(" ").map(Number);
      rows[row + 1] = Math.max(rows[row + 1], Math.ceil(list.length / across[position + 1]));
    }
    // Columns; the first holds what stands for all tokens.
    const columns = [];
    let x = GUTTER;
    for (let position = -1; position < size; position += 1) {
      const text = position < 0 ? "" : tokenText(opened.tokens[position]);
      const least = position < 0 ? 0 : LETTER * text.length + 9;
      const wide = Math.max(least, across[position + 1] * PITCH);
      columns.push({ position, text, x: x + wide / 2, wide });
      x += wide + (wide ? GAP : 0);
    }
    const pills = opened.logits.map((_, target) => LETTER * pillText(opened.targets[target]).length + 20);
    const shownLogits = opened.logits.map((node) => visible.item[made.itemOf[node]]);
    const pillsWide = pills.reduce((sum, wide, target) => sum + (shownLogits[target] ? wide + GAP : 0), 0);
    const width = Math.max(x, GUTTER + pillsWide) + MARGIN;
    // Rows, from the logits down to the tokens.
    const lines = [];
    const highs = Array.from(rows, (deep, row) => Math.max(row === opened.layers + 1 ? TOKEN_HEIGHT + 4 : row ? PITCH : TOKEN_HEIGHT, deep * PITCH));
    const free = aspect * width - 2 * MARGIN - highs.reduce((sum, high) => sum + high, 0);
    const between = Math.min(WIDEST, Math.max(opened.layers > MANY_LAYERS ? BETWEEN / 2 : BETWEEN, free / (opened.layers + 1)));
    let y = MARGIN;
    for (let row = opened.layers; row >= -1; row -= 1) {
      const high = highs[row + 1];
      lines.push({ row, y: y + high / 2, high, under: y + high + between / 2, name: rowName(opened, row) });
      y += high + (row < 0 ? 0 : between);
    }
    const height = y + MARGIN;
    const middle = (row) => lines[opened.layers - row].y;
    const most = Math.max(1e-12, ...made.influence.filter((_, item) => !made.always[item]));
    for (const [key, list] of found) {
      const [row, position] = key.split(" ").map(Number);
      const [column, wide] = [columns[position + 1], across[position + 1]];
      const deep = Math.ceil(list.length / wide);
      list.forEach((item, at) => {
        const line = Math.floor(at / wide);
        const inLine = Math.min(wide, list.length - line * wide);
        place.x[item] = column.x + ((at % wide) - (inLine - 1) / 2) * PITCH;
        place.y[item] = middle(row) + (line - (deep - 1) / 2) * PITCH;
        place.r[item] = 3.2 + 4.6 * Math.sqrt(Math.min(1, made.influence[item] / most));
      });
    }
    for (let item = 0; item < made.count; item += 1) {
      const node = made.first[item];
      if (made.group[item] || opened.kinds[opened.nodes.kind[node]] !== "token") continue;
      const column = columns[opened.nodes.position[node] + 1];
      [place.x[item], place.y[item], place.width[item]] = [column.x, middle(-1), Math.max(14, LETTER * column.text.length + 7)];
    }
    let left = Math.max(GUTTER, Math.min(columns[size].x + columns[size].wide / 2, width - MARGIN) - pillsWide + GAP);
    opened.logits.forEach((node, target) => {
      if (!shownLogits[target]) return;
      const item = made.itemOf[node];
      [place.x[item], place.y[item], place.width[item]] = [left + pills[target] / 2, middle(opened.layers), pills[target]];
      left += pills[target] + GAP;
    });
    return { ...place, size: [width, height], columns, lines, boxes: false };
  }

  // Boxes of some items alone.
  function boxes(opened, made, items) {
    const place = { x: new Float32Array(made.count), y: new Float32Array(made.count), r: new Float32Array(made.count), width: new Float32Array(made.count) };
    const rows = new Map();
    for (const item of items) {
      const row = rowOf(opened, made.first[item]);
      if (!rows.has(row)) rows.set(row, []);
      rows.get(row).push(item);
    }
    const order = [...rows.keys()].sort((a, b) => b - a);
    const longest = Math.max(1, ...[...rows.values()].map((list) => list.length));
    const width = GUTTER + longest * (BOX_WIDTH + BOX_GAP) + ASIDE + MARGIN;
    const lines = order.map((row, at) => {
      const list = rows.get(row).sort((a, b) => opened.nodes.position[made.first[a]] - opened.nodes.position[made.first[b]] || a - b);
      const y = MARGIN + BOX_HEIGHT / 2 + at * (BOX_HEIGHT + BOX_BETWEEN);
      const begin = GUTTER + (longest - list.length) * (BOX_WIDTH + BOX_GAP) / 2;
      list.forEach((item, number) => {
        [place.x[item], place.y[item], place.width[item]] = [begin + BOX_WIDTH / 2 + number * (BOX_WIDTH + BOX_GAP), y, BOX_WIDTH];
      });
      return { row, y, high: BOX_HEIGHT, under: y + (BOX_HEIGHT + BOX_BETWEEN) / 2, name: rowName(opened, row) };
    });
    const height = 2 * MARGIN + order.length * (BOX_HEIGHT + BOX_BETWEEN) - BOX_BETWEEN;
    return { ...place, size: [width, Math.max(height, 3 * BOX_HEIGHT)], columns: [], lines, boxes: true };
  }

  return { grid, boxes, short, twoLines, tokenText, pillText, GUTTER, BOX_HEIGHT, TOKEN_HEIGHT };
})();
