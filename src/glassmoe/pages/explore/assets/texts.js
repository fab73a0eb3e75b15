// Texts and the strongest features of their tokens: given ones, and any text where a server answers.
"use strict";

const prompt = (() => {
  const state = { text: "", found: null };

  async function load() {
    const [meta, given, live] = await Promise.all([glass.load("meta"), glass.load("prompts"), glass.load("live")]);
    return { meta, given, live };
  }

  // A token and its features, strongest first.
  function tokenOf(found, place) {
    const strongest = found.strongest[place];
    return el("tr", {},
      el("th", { scope: "row" }, el("bdi", { class: "chip" }, named(found.tokens[place]))),
      el("td", { class: "active" }, show.count(found.active[place])),
      el("td", { class: "strongest" }, strongest.length ? el("ol", {}, strongest.map(([id, strength, words]) => el("li", {},
        el("a", { href: `#${id}` }, String(id)), " ", el("span", { class: "quiet" }, show.number(strength)), " ", label(words))))
        : el("span", { class: "quiet" }, "no feature fires")));
  }

  function card(found, meta) {
    return el("section", { class: "card scroll prompt" }, el("h2", {}, isolated(found.prompt)),
      el("table", {}, el("thead", {}, el("tr", {}, [meta.unit, "active", "strongest features"]
        .map((name) => el("th", { scope: "col" }, name)))),
      el("tbody", {}, found.tokens.map((_, place) => tokenOf(found, place)))));
  }

  function box(meta, place) {
    const field = el("textarea", { rows: 2, "aria-label": "Text to read", placeholder: "A text to read", id: "prompt" });
    field.value = state.text;
    const button = el("button", { type: "button", id: "read" }, "read");
    const status = el("span", { class: "quiet", role: "status" });
    const show_ = () => place.replaceChildren(...(state.found ? [state.found.error
      ? el("p", { class: "warn" }, visible(state.found.error)) : card(state.found, meta)] : []));
    const ask = async () => {
      state.text = field.value;
      if (!state.text.trim()) return;
      status.textContent = "reading\u2026";
      try {
        state.found = await glass.ask("prompt", { text: state.text });
        status.textContent = "";
      } catch (error) {
        state.found = { error: error.message };
        status.textContent = "";
      }
      show_();
    };
    button.addEventListener("click", ask);
    field.addEventListener("keydown", (event) => {
      if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) ask();
    });
    show_();
    return el("div", { class: "tools" }, field, button, status);
  }

  function view({ meta, given, live }) {
    const answer = el("div", {});
    return [
      el("h1", {}, "Features of a text", el("span", { class: "quiet of" }, " in ", isolated(meta.reader))),
      el("p", { class: "quiet" }, `The strongest features of each ${meta.unit}, strongest first. ${
        live ? "Ctrl+Enter reads the text." : "To read other texts, serve these pages: glassmoe explore --serve."}`),
      live ? box(meta, answer) : null,
      answer,
      ...given.map((found) => card(found, meta)),
    ].filter(Boolean);
  }

  return { load, view };
})();
