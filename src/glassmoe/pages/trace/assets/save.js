// Files: the picture as SVG or PNG, and the graph as the JSON of other viewers. Made here, since the page has no server.
"use strict";

const save = (() => {
  const STYLE = ["fill", "stroke", "stroke-width", "stroke-opacity", "stroke-dasharray", "stroke-linecap", "paint-order", "opacity", "font-family", "font-size", "font-weight", "text-anchor"];
  const SCALE = 2;

  function download(blob, name) {
    const link = el("a", { href: URL.createObjectURL(blob), download: name });
    document.body.append(link);
    link.click();
    link.remove();
    setTimeout(() => URL.revokeObjectURL(link.href), 10000);
  }

  // The picture as a file of its own: light, on white, with the style in attributes, which every program reads.
  function svgText(drawn, title) {
    const theme = document.documentElement.dataset.theme;
    document.documentElement.dataset.theme = "light";
    const copy = drawn.cloneNode(true);
    const [from, to] = [drawn.querySelectorAll("*"), copy.querySelectorAll("*")];
    from.forEach((each, place) => {
      const style = getComputedStyle(each);
      for (const name of STYLE) {
        const value = style.getPropertyValue(name);
        if (value && value !== "normal" && value !== "auto") to[place].setAttribute(name, value);
      }
      for (const name of ["class", "data-item", "data-edge"]) to[place].removeAttribute(name);
    });
    document.documentElement.dataset.theme = theme;
    const names = copy.lastElementChild;
    names.removeAttribute("transform");
    const [, , width, height] = copy.getAttribute("viewBox").split(" ").map(Number);
    for (const { name } of [...copy.attributes]) if (name !== "viewBox") copy.removeAttribute(name);
    const head = 30;
    copy.setAttribute("xmlns", "http://www.w3.org/2000/svg");
    copy.setAttribute("width", width);
    copy.setAttribute("height", height + head);
    copy.setAttribute("viewBox", `0 ${-head} ${width} ${height + head}`);
    copy.prepend(el("svg:rect", { x: 0, y: -head, width, height: height + head, fill: "#ffffff" }),
      el("svg:text", { x: 14, y: -10, "font-family": "sans-serif", "font-size": 13, fill: "#1d1f23" }, visible(title)));
    return [new XMLSerializer().serializeToString(copy), width, height + head];
  }

  function svg(drawn, title, name) {
    const [text] = svgText(drawn, title);
    download(new Blob([text], { type: "image/svg+xml" }), `${name}.svg`);
  }

  async function png(drawn, title, name) {
    const [text, width, height] = svgText(drawn, title);
    const image = new Image();
    image.src = `data:image/svg+xml;charset=utf-8,${encodeURIComponent(text)}`;
    await image.decode();
    const scale = Math.min(SCALE, 16000 / width, 16000 / height);
    const canvas = el("canvas", { width: Math.round(scale * width), height: Math.round(scale * height) });
    canvas.getContext("2d").drawImage(image, 0, 0, canvas.width, canvas.height);
    const blob = await new Promise((resolve) => canvas.toBlob(resolve, "image/png"));
    download(blob, `${name}.png`);
  }

  // What circuit-tracer's and Neuronpedia's viewers read, with the pins and groups of this page.
  async function json(opened, state, groups, name) {
    const viewer = await glass.load("viewer");
    const ids = viewer.nodes.map((node) => node.node_id);
    const pinned = new Set([...state.pins, ...groups.flatMap((group) => group.nodes)]);
    const parameters = {
      ...viewer.qParams,
      pinnedIds: [...pinned].map((node) => ids[node]),
      supernodes: groups.map((group) => [group.name, ...group.nodes.map((node) => ids[node])]),
      clickedId: state.at >= 0 ? ids[state.at] : "",
    };
    download(new Blob([JSON.stringify({ ...viewer, qParams: parameters })], { type: "application/json" }), `${name}.json`);
  }

  return { svg, png, json };
})();
