// Elements, numbers, tokens and boards. Text is always added as text, so nothing from the data becomes markup.
"use strict";

// el("a", {href: "#1", class: "x"}, "text", child, ...): an element. Null children are left out.
function el(tag, attributes, ...children) {
  const svg = tag.startsWith("svg:");
  const made = svg ? document.createElementNS("http://www.w3.org/2000/svg", tag.slice(4)) : document.createElement(tag);
  for (const [name, value] of Object.entries(attributes || {})) {
    if (value !== null && value !== undefined && value !== false) made.setAttribute(name, value === true ? "" : value);
  }
  made.append(...children.flat().filter((child) => child !== null && child !== undefined && child !== ""));
  return made;
}

const show = {
  count: (value) => value.toLocaleString("en-US"),
  number(value) {
    if (value === null || value === undefined) return "\u2013";
    const size = Math.abs(value);
    if (size !== 0 && (size < 0.001 || size >= 1e6)) return value.toExponential(1);
    return Number(value.toPrecision(3)).toLocaleString("en-US", { maximumSignificantDigits: 3 });
  },
  score: (value) => (value === null || value === undefined ? "\u2013" : value.toFixed(2)),
  share(value) {
    if (value === null || value === undefined) return "\u2013";
    if (value === 0) return "0%";
    const percent = 100 * value;
    return percent < 0.01 ? "<0.01%" : `${Number(percent.toPrecision(2))}%`;
  },
  signed: (value) => (value > 0 ? "+" : value < 0 ? "\u2212" : "") + show.number(Math.abs(value)),
};

// Shows characters that are invisible or change the direction of a line as visible signs (as words.py does).
function visible(text) {
  return text.replace(/[\u0000-\u001f\u007f\u200b-\u200f\u2028-\u202e\u2060-\u2069\ufeff\ud800-\udfff]/gu, (letter) => {
    const code = letter.codePointAt(0);
    if (letter === "\n") return "\u21b5";
    if (letter === "\t") return "\u21e5";
    if (code < 32) return String.fromCodePoint(0x2400 + code);
    return `\u2039U+${code.toString(16).toUpperCase().padStart(4, "0")}\u203a`;
  });
}

// A token by itself. A space at its beginning is shown, since it belongs to the token.
const named = (token) => visible(token).replace(/^ /, "\u2423");

const isolated = (text) => el("bdi", {}, visible(text));

// The tokens of an example, tinted by the strength of the feature; the peak is also framed.
function tokenLine(example, maximum, separator) {
  const line = el("p", { class: "line" });
  const { before, after } = example;
  line.append(el("span", { class: "around" }, isolated(before || "")));
  example.tokens.forEach((token, place) => {
    if (place > 0 && separator) line.append(separator);
    const strength = example.strengths[place];
    const level = strength > 0 ? Math.max(1, Math.min(9, Math.ceil((9 * strength) / (maximum || 1)))) : 0;
    const peak = place === example.peak;
    line.append(el("bdi", {
      class: `tok${level ? ` t${level}` : ""}${peak ? " peak" : ""}`,
      title: strength > 0 ? `${peak ? "peak, " : ""}strength ${show.number(strength)}` : null,
    }, visible(token)));
  });
  if (after) line.append(el("span", { class: "around" }, isolated(after)));
  return line;
}

// The label of a link to a feature: its explanation, or its strongest token with the text before it.
function label(given) {
  if (!given) return el("span", { class: "quiet silent" }, "silent: never fires");
  if (typeof given === "string") return isolated(given);
  return el("span", { class: "snippet" }, isolated(given[0]), el("bdi", { class: "tok t6 peak" }, named(given[1])));
}

const squaresOf = (text) => (text.match(/\b[a-h][1-8]\b/g) || []);
const corner = (square) => [40 * (square.charCodeAt(0) - 97), 40 * (8 - Number(square[1]))];

// A position (piece placement of a FEN), drawn as pages/boards.py draws it. `move`: its squares are tinted. `squares`:
// framed.
function board(placement, move, squares) {
  const drawing = el("svg:svg", {
    class: "board", viewBox: "0 0 320 320", role: "img",
    "aria-label": `position ${placement}${move ? ` after ${move}` : ""}${squares.length ? `; framed: ${squares}` : ""}`,
  }, el("svg:rect", { width: 320, height: 320, fill: "url(#squares)" }));
  for (const square of move ? [move.slice(0, 2), move.slice(2, 4)] : []) {
    const [x, y] = corner(square);
    drawing.append(el("svg:rect", { class: "moved", x, y, width: 40, height: 40 }));
  }
  placement.split("/").forEach((rank, row) => {
    let file = 0;
    for (const letter of rank) {
      if (letter >= "1" && letter <= "8") {
        file += Number(letter);
        continue;
      }
      const side = letter === letter.toUpperCase() ? "white" : "black";
      const at = { x: 40 * file, y: 40 * row, width: 40, height: 40 };
      drawing.append(el("svg:use", { href: `#${letter.toLowerCase()}`, class: side, ...at }));
      file += 1;
    }
  });
  for (const square of squares) {
    const [x, y] = corner(square);
    drawing.append(el("svg:rect", { class: "frame", x: x + 1.5, y: y + 1.5, width: 37, height: 37 }));
  }
  return drawing;
}

// The number of tokens by strength; a bin is a quarter of an octave.
function histogram(found, edges, unit) {
  const { first, counts } = found;
  const most = Math.max(...counts);
  const [width, height, base] = [320, 132, 108];
  const step = Math.min(16, (width - 16) / counts.length);
  const drawing = el("svg:svg", {
    class: "histogram", viewBox: `0 0 ${width} ${height}`, role: "img",
    "aria-label": `strengths from ${show.number(edges[first])} to ${show.number(edges[first + counts.length])}`,
  });
  const left = (width - step * counts.length) / 2;
  counts.forEach((count, place) => {
    const tall = count ? Math.max(1.5, (96 * count) / most) : 0;
    const range = `${show.number(edges[first + place])} to ${show.number(edges[first + place + 1])}`;
    drawing.append(el("svg:rect", {
      x: (left + step * place).toFixed(1), y: (base - tall).toFixed(1), width: Math.max(1, step - 1.2).toFixed(1),
      height: tall.toFixed(1), rx: 1,
    }, el("svg:title", {}, `${range}: ${show.count(count)} ${unit}s`)));
  });
  drawing.append(el("svg:path", { class: "axis", d: `M0 ${base + 0.5}H${width}` }));
  const every = 4 * Math.max(1, Math.ceil(counts.length / 4 / 7));
  for (let place = (4 - (first % 4)) % 4; place <= counts.length; place += every) {
    const x = (left + step * place).toFixed(1);
    drawing.append(el("svg:path", { class: "axis", d: `M${x} ${base}v4` }));
    drawing.append(el("svg:text", { x, y: base + 17, "text-anchor": "middle" }, show.number(Number(edges[first + place].toPrecision(2)))));
  }
  return drawing;
}

// A share as a small bar.
const meter = (value, most) => el("svg:svg", { class: "meter", viewBox: "0 0 60 6", "aria-hidden": "true" },
  el("svg:rect", { class: "track", width: 60, height: 6, rx: 2 }),
  el("svg:rect", { width: (60 * Math.min(1, (value || 0) / (most || 1))).toFixed(1), height: 6, rx: 2 }));
