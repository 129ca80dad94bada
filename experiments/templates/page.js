"use strict";
(() => {
  const byId = (id) => document.getElementById(id);
  const search = byId("search");
  const buttons = [...document.querySelectorAll("button[data-filter]")];
  const cards = [...document.querySelectorAll("article.claim")];
  const plain = (text) => text.normalize("NFKD").replace(/[\u0300-\u036f]/g, "").toLowerCase();
  const texts = new Map(cards.map((card) => [
    card,
    plain([...card.querySelectorAll(".searchable")].map((part) => part.textContent).join(" ")),
  ]));
  // The claim that the address points at is shown whatever the filters say, until they change.
  let linked = null;

  const chosen = (filter) =>
    buttons
      .filter((button) => button.dataset.filter === filter)
      .filter((button) => button.getAttribute("aria-pressed") === "true")
      .map((button) => button.dataset.value);

  function show() {
    const words = plain(search.value).split(/\s+/).filter(Boolean);
    const verdicts = chosen("verdict");
    const themes = chosen("theme");
    let shown = 0;
    for (const card of cards) {
      const matches =
        words.every((word) => texts.get(card).includes(word)) &&
        (!verdicts.length || verdicts.includes(card.dataset.verdict)) &&
        (!themes.length || themes.includes(card.dataset.theme));
      card.hidden = !matches && card.id !== linked;
      shown += card.hidden ? 0 : 1;
    }
    for (const section of document.querySelectorAll("section.theme")) {
      section.hidden = !section.querySelector("article.claim:not([hidden])");
    }
    const active = Boolean(words.length || verdicts.length || themes.length);
    byId("nothing").hidden = shown > 0 || !active;
    byId("clear").hidden = !active;
    byId("count").textContent = `${shown} of ${cards.length} claims`;
  }

  function readAddress() {
    const given = new URLSearchParams(location.search);
    search.value = given.get("q") ?? "";
    for (const button of buttons) {
      const pressed = given.getAll(button.dataset.filter).includes(button.dataset.value);
      button.setAttribute("aria-pressed", String(pressed));
    }
    followHash();
  }

  function writeAddress() {
    const given = new URLSearchParams();
    if (search.value.trim()) given.set("q", search.value.trim());
    for (const filter of ["verdict", "theme"]) {
      for (const value of chosen(filter)) given.append(filter, value);
    }
    const target = linkedCard();
    const hash = target && target.hidden ? "" : location.hash;
    const query = given.size ? `?${given}` : "";
    try {
      history.replaceState(null, "", `${location.pathname}${query}${hash}`);
    } catch {
      // Some browsers keep the address of a local file as it is; the filters work all the same.
    }
  }

  function linkedCard() {
    let id = location.hash.slice(1);
    try {
      id = decodeURIComponent(id);
    } catch {
      return null;
    }
    return cards.find((card) => card.id === id) ?? null;
  }

  function followHash() {
    const target = linkedCard();
    linked = target ? target.id : null;
    show();
    if (target) target.scrollIntoView();
  }

  function change() {
    linked = null;
    show();
    writeAddress();
    // What is found begins above where the reader of a long page stands.
    if (byId("claims").getBoundingClientRect().top < 0) byId("claims").scrollIntoView();
  }

  search.addEventListener("input", change);
  for (const button of buttons) {
    button.addEventListener("click", () => {
      const pressed = button.getAttribute("aria-pressed") === "true";
      button.setAttribute("aria-pressed", String(!pressed));
      change();
    });
  }
  byId("clear").addEventListener("click", () => {
    search.value = "";
    for (const button of buttons) button.setAttribute("aria-pressed", "false");
    change();
    search.focus();
  });
  byId("filters").addEventListener("submit", (event) => event.preventDefault());
  document.addEventListener("keydown", (event) => {
    const typing = event.target instanceof Element && event.target.closest("input, textarea, select");
    if (event.key === "/" && !typing && !event.ctrlKey && !event.metaKey && !event.altKey) {
      event.preventDefault();
      search.focus();
      search.select();
    } else if (event.key === "Escape" && event.target === search && search.value) {
      event.preventDefault();
      search.value = "";
      change();
    }
  });
  window.addEventListener("hashchange", followHash);
  window.addEventListener("popstate", readAddress);
  byId("filters").hidden = false;
  readAddress();
})();
