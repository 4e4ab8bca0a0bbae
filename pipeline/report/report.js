"use strict";
// Draws the features from the JSON in this page. Text of the corpus only ever becomes text nodes, never markup.
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const list = document.getElementById("list");
  const find = document.getElementById("find");
  const sort = document.getElementById("sort");
  const count = document.getElementById("count");
  const tabs = document.querySelector(".tabs");
  const state = { dictionary: 0, query: "", sort: "max", feature: null };
  const BATCH = 12;
  const orders = {
    density: (a, b) => b.density - a.density || a.latent - b.latent,
    rare: (a, b) => a.density - b.density || a.latent - b.latent,
    max: (a, b) => b.max - a.max || a.latent - b.latent,
    latent: (a, b) => a.latent - b.latent,
  };
  let shown = [];
  let drawn = 0;

  const make = (tag, name, ...children) => {
    const element = document.createElement(tag);
    if (name) element.className = name;
    element.append(...children);
    return element;
  };
  const number = (value) => (value >= 100 ? value.toFixed(0) : value >= 10 ? value.toFixed(1) : value.toFixed(2));

  // Spaces, tabs and line ends get a faint sign of their own; a line end also breaks the line once a context is open.
  const signs = { " ": "\u00b7", "\t": "\u21e5", "\n": "\u21b5", "\r": "\u240d" };
  const readable = (text, breaks) => {
    const parts = [];
    for (const run of text.split(/([ \t\n\r]+)/)) {
      if (!run) continue;
      if (!(run[0] in signs)) parts.push(run);
      else parts.push(make("span", "ws", [...run].map((c) => signs[c] + (breaks && c === "\n" ? "\n" : "")).join("")));
    }
    return parts.length ? parts : ["\u2205"];
  };
  const rate = (density) => {
    const share = 10 ** density;
    return share >= 0.001 ? `${(100 * share).toPrecision(2)} % of rows` : `1 in ${Math.round(1 / share).toLocaleString("en")} rows`;
  };

  const token = (context, index, feature, breaks) => {
    const value = context.values[index];
    const span = make("span", index === context.top ? "t top-token" : "t", ...readable(context.tokens[index], breaks));
    if (value > 0) {
      span.style.setProperty("--a", `calc(var(--heat-most) * ${(0.12 + 0.88 * value / feature.max).toFixed(3)})`);
      span.title = `${JSON.stringify(context.tokens[index])}  ${number(value)}`;
    } else span.style.setProperty("--a", "0");
    return span;
  };
  const contextRow = (context, feature, breaks) => {
    const spans = context.tokens.map((_, index) => token(context, index, feature, breaks));
    const before = make("span", "before", make("span", "", ...spans.slice(0, context.top)));
    const after = make("span", "after", make("span", "", ...spans.slice(context.top)));
    const value = make("span", "value", number(context.values[context.top]));
    const row = make("li", "context", value, make("div", "text", before, after));
    value.title = `document ${context.document}, position ${context.position}, row ${context.row}, ${context.held_out ? "held out" : "training"}`;
    return row;
  };
  const fill = (contexts, feature, open) => {
    contexts.classList.toggle("open", open);
    contexts.replaceChildren(...feature.contexts.map((one) => contextRow(one, feature, open || innerWidth <= 720)));
  };

  const svg = (tag, attributes, text) => {
    const element = document.createElementNS("http://www.w3.org/2000/svg", tag);
    for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
    if (text !== undefined) element.textContent = text;
    return element;
  };
  const spark = (feature) => {
    const peak = Math.max(...feature.histogram);
    const chart = svg("svg", { class: "spark", viewBox: "0 0 150 46", role: "img", "aria-label": `Activation values from 0 to ${number(feature.max)}` });
    chart.append(svg("title", {}, `${feature.found} activations, values from 0 to ${number(feature.max)}`));
    const width = 150 / feature.histogram.length;
    feature.histogram.forEach((value, bin) => {
      const height = value ? Math.max(1, 32 * value / peak) : 0;
      chart.append(svg("rect", { x: (bin * width + 0.5).toFixed(2), y: 33 - height, width: (width - 1).toFixed(2), height }));
    });
    chart.append(svg("path", { d: "M0 33.5H150" }), svg("text", { x: 0, y: 44 }, "0"), svg("text", { x: 150, y: 44, "text-anchor": "end" }, number(feature.max)));
    return chart;
  };

  const card = (feature) => {
    const facts = make("small", "", rate(feature.density));
    facts.title = `log10 density ${feature.density.toFixed(2)}: fired on ${feature.fired} evaluation rows`;
    const title = make("h3", "", `Feature ${feature.latent}`, facts, make("small", "", `max ${number(feature.max)}`));
    const tops = make("div", "tops", ...feature.tokens.map((top) => {
      const chip = make("span", "chip t", ...readable(top.text, false));
      chip.style.setProperty("--a", `calc(var(--heat-most) * ${(0.5 * Math.min(1, top.mean / feature.max)).toFixed(3)})`);
      chip.title = `${JSON.stringify(top.text)}: mean ${number(top.mean)}, active on ${top.active} of ${top.occurrences}`;
      return chip;
    }));
    tops.setAttribute("aria-label", "Top tokens by mean activation");
    const meaning = make("p", "meaning");
    if (feature.explanation !== undefined) {
      meaning.append(make("span", "", feature.explanation));
      for (const [label, value] of feature.scores) meaning.append(make("small", "", `${label} ${value}`));
    }
    const contexts = make("ol", "contexts");
    const more = make("button", "more", "Show whole contexts");
    more.type = "button";
    more.tabIndex = -1;
    const article = make("article", `feature s${state.dictionary % 8}`, make("header", "", make("div", "", title, tops, meaning), spark(feature)), contexts, more);
    article.tabIndex = 0;
    article.id = `f${feature.latent}`;
    article.dataset.latent = feature.latent;
    article.setAttribute("aria-label", `Feature ${feature.latent}`);
    article.style.containIntrinsicSize = `auto ${110 + 24 * feature.contexts.length}px`;
    const toggle = () => {
      const open = !contexts.classList.contains("open");
      fill(contexts, feature, open);
      more.textContent = open ? "Show one line each" : "Show whole contexts";
    };
    more.addEventListener("click", toggle);
    article.addEventListener("keydown", (event) => {
      if (event.key === "Enter" && event.target === article) toggle();
    });
    fill(contexts, feature, false);
    return article;
  };

  // Searching looks at what is visible: context text and top tokens, spaces as spaces.
  const searchText = (feature) => (feature.text ??= [
    ...feature.contexts.map((one) => one.tokens.join("")), ...feature.tokens.map((one) => one.text), feature.explanation ?? "",
  ].join("\u0000").toLowerCase());
  const matches = (feature) => {
    const query = state.query.toLowerCase();
    return !query.trim() || String(feature.latent) === query.trim().replace(/^#/, "") || searchText(feature).includes(query);
  };

  const watcher = new IntersectionObserver((entries) => {
    if (entries.some((entry) => entry.isIntersecting)) drawMore();
  }, { rootMargin: "1500px" });
  const sentinel = make("div");
  const drawMore = () => {
    watcher.unobserve(sentinel);
    sentinel.remove();
    list.append(...shown.slice(drawn, drawn + BATCH).map(card));
    drawn = Math.min(shown.length, drawn + BATCH);
    if (drawn < shown.length) {
      list.append(sentinel);
      watcher.observe(sentinel);
    }
  };
  const draw = () => {
    const all = data.dictionaries[state.dictionary]?.features ?? [];
    shown = all.filter(matches).sort(orders[state.sort]);
    drawn = 0;
    list.replaceChildren();
    count.textContent = shown.length === all.length ? `${all.length} features` : `${shown.length} of ${all.length} features`;
    if (shown.length) drawMore();
    else list.append(make("p", "empty", all.length ? "No feature has that token. Clear the filter to see all." : "No features were asked for, or none fired."));
    [...tabs.children].forEach((tab, index) => {
      tab.setAttribute("aria-selected", index === state.dictionary);
      tab.tabIndex = index === state.dictionary ? 0 : -1;
    });
  };
  const remember = () => {
    const parts = new URLSearchParams();
    if (state.dictionary) parts.set("dictionary", data.dictionaries[state.dictionary].name);
    if (state.query) parts.set("find", state.query);
    if (state.sort !== "max") parts.set("sort", state.sort);
    if (state.feature !== null) parts.set("feature", state.feature);
    history.replaceState(null, "", `#${parts.toString() || "features"}`);
  };
  const focusFeature = (index) => {
    if (index < 0 || index >= shown.length) return;
    while (drawn <= index) drawMore();
    const target = document.getElementById(`f${shown[index].latent}`);
    target.focus({ preventScroll: true });
    target.scrollIntoView({ block: "nearest" });
    state.feature = shown[index].latent;
    remember();
  };

  const restore = () => {
    const parts = new URLSearchParams(location.hash.slice(1));
    const named = data.dictionaries.findIndex((one) => one.name === parts.get("dictionary"));
    state.dictionary = Math.max(0, named);
    state.query = find.value = parts.get("find") ?? "";
    state.sort = sort.value = parts.get("sort") in orders ? parts.get("sort") : "max";
    draw();
    if (parts.has("feature")) focusFeature(shown.findIndex((one) => String(one.latent) === parts.get("feature")));
  };

  data.dictionaries.forEach((dictionary, index) => {
    const tab = make("button", `s${index % 8}`, make("span", "key"), dictionary.name);
    tab.type = "button";
    tab.setAttribute("role", "tab");
    tab.setAttribute("aria-controls", "list");
    tab.addEventListener("click", () => {
      state.dictionary = index;
      state.feature = null;
      draw();
      remember();
    });
    tabs.append(tab);
  });
  tabs.addEventListener("keydown", (event) => {
    const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    if (!step) return;
    const next = tabs.children[(state.dictionary + step + tabs.children.length) % tabs.children.length];
    next.click();
    next.focus();
  });
  find.addEventListener("input", () => {
    state.query = find.value;
    state.feature = null;
    draw();
    remember();
  });
  sort.addEventListener("change", () => {
    state.sort = sort.value;
    draw();
    remember();
  });
  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    if (event.key === "/" && event.target !== find) {
      event.preventDefault();
      find.focus();
      find.select();
      return;
    }
    if (event.key === "Escape" && (event.target === find || list.contains(event.target))) {
      find.value = state.query = "";
      draw();
      remember();
      return;
    }
    const step = { ArrowDown: 1, ArrowUp: -1, j: 1, k: -1 }[event.key];
    const inside = event.target.closest?.(".feature");
    const fromSearch = event.target === find && event.key === "ArrowDown";
    if (!step || !(inside || fromSearch)) return;
    event.preventDefault();
    const place = inside ? shown.findIndex((one) => String(one.latent) === inside.dataset.latent) : -1;
    if (place + step < 0) find.focus();
    else focusFeature(place + step);
  });
  addEventListener("hashchange", () => {
    if (location.hash.includes("=")) restore();
  });
  restore();
})();
