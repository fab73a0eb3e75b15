// The page of a layer: the view that the address asks for, and the keys.
"use strict";
(() => {
  const root = document.getElementById("view");
  const helps = {
    list: [["/", "search"], ["j k", "move"], ["Enter", "open"], ["Esc", "clear, or back to all layers"], ["t", "light or dark"]],
    feature: [["n p", "next, previous"], ["/", "search"], ["Esc", "back to the list"], ["t", "light or dark"]],
    experts: [["Esc", "back to the list"], ["t", "light or dark"]],
    pair: [["Esc", "back to the list"], ["t", "light or dark"]],
    scatter: [["Esc", "back to the list"], ["t", "light or dark"]],
    prompts: [["Esc", "back to the list"], ["t", "light or dark"]],
  };
  let at = { view: "list", id: null };
  let turn = 0;

  function asked() {
    const hash = decodeURIComponent(location.hash.slice(1));
    if (/^\d+$/.test(hash)) return { view: "feature", id: Number(hash) };
    if (["experts", "scatter", "prompts"].includes(hash)) return { view: hash, id: null };
    const two = /^(\d+),(\d+)$/.exec(hash);
    if (two) return { view: "pair", id: [Number(two[1]), Number(two[2])] };
    const one = /^expert-(\d+)$/.exec(hash);
    return one ? { view: "expert", id: Number(one[1]) } : { view: "list", id: null };
  }

  const live = () => Boolean(glass.values.get("live"));

  async function open() {
    at = asked();
    const mine = (turn += 1);
    await glass.load("live");
    let children;
    let title;
    if (at.view === "list") {
      await list.open();
      if (mine !== turn) return;
      children = list.view();
    } else if (at.view === "feature") {
      const [meta, record] = await feature.load(at.id);
      children = feature.view(at.id, meta, record);
      title = `feature ${at.id}`;
    } else if (at.view === "pair") {
      const loaded = await Promise.all(at.id.map(feature.load));
      children = feature.pair(at.id, loaded[0][0], loaded.map(([, record]) => record));
      title = `features ${at.id.join(" and ")}`;
    } else if (at.view === "scatter") {
      await list.open();
      children = list.scatter();
      title = "density and score";
    } else if (at.view === "prompts") {
      children = prompt.view(await prompt.load());
      title = "features of a text";
    } else {
      const [meta, experts] = await expert.load();
      children = at.view === "experts" ? expert.all(meta, experts) : expert.one(at.id, meta, experts);
      title = at.view === "experts" ? "experts" : `expert ${at.id}`;
    }
    if (mine !== turn) return;
    if (at.view !== "list") list.leave();
    root.replaceChildren(...children);
    const meta = glass.values.get("meta");
    document.title = `${title ? `${title}, ` : ""}${meta.reader} of ${meta.run} - glassmoe`;
    frame(meta);
    if (at.view !== "list") scrollTo(0, 0);
    requestAnimationFrame(() => { document.documentElement.dataset.ready = performance.now().toFixed(1); });
  }

  function frame(meta) {
    const tabs = [["#", "features", ["list", "feature", "pair"].includes(at.view)],
      ["#scatter", "scatter", at.view === "scatter"],
      ...(meta.prompts || live() ? [["#prompts", "texts", at.view === "prompts"]] : []),
      ...(meta.experts ? [["#experts", "experts", at.view.startsWith("expert")]] : [])];
    document.getElementById("tabs").replaceChildren(...tabs.map(([href, name, on]) => el("a", { href, "aria-current": on ? "page" : null }, name)));
    const stepped = at.view === "feature" || at.view === "expert";
    document.getElementById("steps").replaceChildren(...(stepped ? [["p", -1, "previous", "\u2190"], ["n", 1, "next", "\u2192"]] : []).map(([key, by, name, sign]) => {
      const button = el("button", { type: "button", id: name, title: `${name} (${key})`, "aria-label": name }, sign);
      button.addEventListener("click", () => step(by));
      return button;
    }));
    const keys = helps[at.view === "expert" ? "feature" : at.view].filter(([key]) => at.view !== "expert" || key !== "/");
    document.getElementById("keys").replaceChildren(...keys.flatMap(([key, name]) => [
      el("span", {}, ...key.split(" ").map((one) => el("kbd", {}, one)), ` ${name}`)]));
  }

  // The next feature in the list's order, or the next expert.
  async function step(by) {
    // From what the address says by then, so that of several quick steps none is lost.
    if (at.view === "expert") {
      const { experts } = await glass.load("meta");
      location.hash = `#expert-${(asked().id + by + experts) % experts}`;
      return;
    }
    const ids = await list.order();
    const place = ids.indexOf(asked().id);
    location.hash = `#${ids[place < 0 ? 0 : (place + by + ids.length) % ids.length]}`;
  }

  function key(event) {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    const field = event.target.closest("input, select, textarea");
    if (event.key === "Escape") {
      if (at.view !== "list") location.hash = "#";
      else if (field && field.value && field.type === "search") {
        field.value = "";
        field.dispatchEvent(new Event("input"));
      } else if (field) field.blur();
      else location.href = document.getElementById("home").href;
    } else if (field) {
      if (field.type === "search" && (event.key === "ArrowDown" || event.key === "Enter")) list.key({ key: "j" });
      else return;
    } else if (event.key === "/") {
      if (at.view === "list") list.search();
      else {
        location.hash = "#";
        addEventListener("shown", list.search, { once: true });
      }
    } else if (at.view === "list") {
      if (!list.key(event)) return;
    } else if (event.key === "n" || event.key === "p") step(event.key === "n" ? 1 : -1);
    else return;
    event.preventDefault();
  }

  const go = () => open().then(() => dispatchEvent(new Event("shown"))).catch((error) => {
    root.replaceChildren(el("h1", {}, "This page could not be opened"), el("p", {}, error.message));
  });
  addEventListener("hashchange", go);
  document.addEventListener("keydown", key);
  go();
})();
