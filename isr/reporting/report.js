"use strict";
// The cases: filters, pages and a viewer over data that stands in this file. All foreign text enters as text, never as HTML.
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const OUTCOMES = { success: ["●", "defeated"], failure: ["○", "not defeated"], undetermined: ["◐", "undetermined"] };
  const CONTROLS = { success: "defeated", failure: "ok", undetermined: "undetermined" };
  const RANKS = ["judges disagree", "a verdict is missing", ""];
  const PAIRS = { broken: "broken: the control was ok", mended: "mended: the control was defeated", ok_ok: "control ok", both: "control defeated too", open: "pair undetermined" };
  const FACETS = ["method", "editor", "prompt_kind", "category", "purifier"];
  const LABELS = ["original", "edit of the unprotected original", "edit of the immunized image"];
  const form = document.getElementById("filters");
  const list = document.getElementById("list");
  const pagers = [...document.querySelectorAll("[data-pager]")];
  const size = document.querySelector("select[name=size]");
  const viewer = document.getElementById("viewer");
  const template = document.getElementById("case");
  let found = data.cases;
  let page = 0;
  let viewed = 0;

  function make(tag, className, text) {
    const node = document.createElement(tag);
    if (className) node.className = className;
    if (text !== undefined) node.textContent = text;
    return node;
  }

  function pairOf(row) {
    const control = row.control === undefined ? undefined : data.controls[row.control];
    if (!control || control.outcome === "undetermined" || row.outcome === "undetermined") return "open";
    const [before, after] = [control.outcome === "success", row.outcome === "success"];
    return before ? (after ? "both" : "mended") : after ? "broken" : "ok_ok";
  }

  // One lower-case line per case to search in, made once.
  for (const row of data.cases) {
    const words = row.answers.flatMap((a) => [a.judge, a.words, ...(a.why ?? []).map((w) => w[1])]);
    const tags = Object.entries(row.tags ?? {}).flat();
    row.pair = pairOf(row);
    row.haystack = [row.key, row.prompt, ...row.names, row.image_id, row.seed, ...FACETS.map((f) => row[f]), ...tags, ...words]
      .filter((v) => v !== undefined).join("\n").toLowerCase();
  }

  function says(answer, wanted) {
    if (wanted === "no_verdict") return answer.kind === "no_verdict";
    if (answer.kind !== "verdict") return false;
    const defeated = answer.semantic_mismatch || answer.degradation;
    if (wanted === "defeated") return defeated;
    if (wanted === "ok") return !defeated;
    return answer[wanted];
  }

  function filter() {
    const wanted = Object.fromEntries(new FormData(form));
    const text = wanted.text.trim().toLowerCase();
    found = data.cases.filter((row) =>
      (!wanted.rank || row.rank === Number(wanted.rank)) &&
      (!wanted.outcome || row.outcome === wanted.outcome) &&
      (!wanted.pair || row.pair === wanted.pair) &&
      FACETS.every((f) => !wanted[f] || String(row[f]) === wanted[f]) &&
      (!wanted.judge && !wanted.answer || row.answers.some((a) => (!wanted.judge || a.judge === wanted.judge) && (!wanted.answer || says(a, wanted.answer)))) &&
      (!text || row.haystack.includes(text)));
    page = 0;
    draw();
  }

  function source(place) {
    if (typeof place === "number") return "data:image/png;base64," + document.getElementById("picture-" + place).textContent;
    return `${encodeURIComponent(data.assets)}/${place}.png`;
  }

  function pictures(row, opens) {
    const shown = [];
    row.pictures.forEach((place, index) => {
      if (place === null && !row.has[index]) return;
      const figure = make("figure");
      if (place === null) {
        figure.append(make("span", "missing", row.state === "left out" ? "picture left out" : "no picture"));
      } else {
        const image = make("img");
        image.alt = `${LABELS[index]}: ${row.prompt}`;
        if (data.assets) image.loading = "lazy";
        image.decoding = "async";
        image.src = source(place);
        if (opens) {
          const button = make("button", "picture");
          button.type = "button";
          button.setAttribute("aria-label", `Enlarge the ${LABELS[index]}`);
          button.append(image);
          button.addEventListener("click", opens);
          figure.append(button);
        } else figure.append(image);
      }
      figure.append(make("figcaption", "", LABELS[index]));
      shown.push(figure);
    });
    return shown;
  }

  function answers(row) {
    const blocks = row.answers.map(answerBlock);
    const control = row.control === undefined ? undefined : data.controls[row.control];
    if (control) {
      const details = make("details", "control-answers");
      details.append(make("summary", "", `Control ${CONTROLS[control.outcome]}: what the judges said of it`));
      details.append(...control.answers.map(answerBlock));
      blocks.push(details);
    }
    return blocks;
  }

  function answerBlock(answer) {
    const block = make("div", "answer");
    const head = make("p", "said");
    head.append(make("b", "", answer.judge), " ");
    if (answer.kind === "verdict") {
      head.append(chip("mismatch", answer.semantic_mismatch), " ", chip("degraded", answer.degradation, "not degraded"));
      if (answer.overall !== undefined) head.append(" ", chip("defeated overall", answer.overall, "not defeated overall"));
      for (const [key, yes] of Object.entries(answer.other ?? {})) head.append(" ", chip(key.replaceAll("_", " "), yes));
    } else head.append(make("span", "chip none", answer.words));
    block.append(head);
    for (const [key, text] of answer.why ?? []) {
      const line = make("p", "why");
      if (key) line.append(make("span", "key", key + ": "));
      line.append(text);
      block.append(line);
    }
    return block;
  }

  function chip(word, yes, otherwise) {
    return make("span", yes ? "chip yes" : "chip no", yes ? "✓ " + word : "– " + (otherwise ?? "no " + word));
  }

  function state(row, into) {
    const [sign, word] = OUTCOMES[row.outcome];
    into.replaceChildren(make("span", "badge " + row.outcome, `${sign} ${word}`));
    const flags = [RANKS[row.rank], row.control === undefined ? "" : PAIRS[row.pair]].filter(Boolean);
    into.append(...flags.map((f) => make("span", "flag", f)));
  }

  function about(row) {
    const parts = [...FACETS.map((f) => row[f]), row.names[0], row.seed === undefined ? undefined : "seed " + row.seed];
    return parts.filter((v) => v !== undefined).join(" · ") + Object.entries(row.tags ?? {}).map(([k, v]) => ` · ${k}: ${v}`).join("");
  }

  function card(row, place) {
    const node = template.content.firstElementChild.cloneNode(true);
    const title = node.querySelector(".prompt");
    node.id = "case-" + row.key;
    title.id = "title-" + row.key;
    node.setAttribute("aria-labelledby", title.id);
    node.dataset.place = place;
    title.textContent = `“${row.prompt}”`;
    state(row, node.querySelector(".state"));
    const line = node.querySelector(".about");
    const link = make("a", "anchor", "#");
    link.href = "#case-" + row.key;
    link.setAttribute("aria-label", "Link to this case");
    line.append(about(row) + " ", link);
    node.querySelector(".pictures").append(...pictures(row, () => enlarge(place)));
    node.querySelector(".answers").append(...answers(row));
    return node;
  }

  function draw() {
    const per = Number(size.value);
    const first = page * per;
    const last = Math.min(first + per, found.length);
    list.replaceChildren(...found.slice(first, last).map((row, i) => card(row, first + i)));
    const all = data.cases.length === found.length ? "" : ` (of ${data.cases.length})`;
    for (const pager of pagers) {
      pager.querySelector(".where").textContent = found.length ? `${first + 1}–${last} of ${found.length}${all}` : `No case fits${all}`;
      pager.querySelector("[data-step='-1']").disabled = page === 0;
      pager.querySelector("[data-step='1']").disabled = last >= found.length;
    }
    if (list.firstElementChild) list.firstElementChild.tabIndex = 0;
  }

  function turn(step) {
    page += step;
    draw();
    document.getElementById("cases").scrollIntoView();
  }

  // Brings the case at this place of the filtered list onto the page and gives it the focus.
  function focus(place) {
    if (place < 0 || place >= found.length) return;
    const wanted = Math.floor(place / Number(size.value));
    if (wanted !== page) { page = wanted; draw(); }
    const node = list.querySelector(`[data-place="${place}"]`);
    for (const other of list.children) other.tabIndex = -1;
    node.tabIndex = 0;
    node.focus();
  }

  function enlarge(place) {
    viewed = place;
    show();
    if (!viewer.open) viewer.showModal();
  }

  function show() {
    const row = found[viewed];
    viewer.querySelector(".prompt").textContent = `“${row.prompt}”`;
    state(row, viewer.querySelector(".state"));
    viewer.querySelector(".pictures").replaceChildren(...pictures(row, null));
    viewer.querySelector(".answers").replaceChildren(...answers(row));
    viewer.querySelector(".where").textContent = `${viewed + 1} of ${found.length}`;
    viewer.querySelector("[data-step='-1']").disabled = viewed === 0;
    viewer.querySelector("[data-step='1']").disabled = viewed + 1 >= found.length;
    viewer.scrollTop = 0;
  }

  function step(by) {
    if (viewed + by < 0 || viewed + by >= found.length) return;
    viewed += by;
    show();
  }

  function fromAddress() {
    const key = location.hash.startsWith("#case-") ? location.hash.slice(6) : "";
    if (!key) return;
    let place = found.findIndex((row) => row.key === key);
    if (place < 0) {
      form.reset();
      filter();
      place = found.findIndex((row) => row.key === key);
    }
    focus(place);
  }

  const KEYS = { ArrowRight: 1, j: 1, ArrowLeft: -1, k: -1 };
  list.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    const node = event.target.closest(".case");
    if (event.key in KEYS) {
      event.preventDefault();
      focus(Number(node.dataset.place) + KEYS[event.key]);
    } else if (event.key === "Enter" && event.target === node) {
      event.preventDefault(); // or the same key press would click the viewer's first button
      enlarge(Number(node.dataset.place));
    }
  });
  viewer.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || !(event.key === "ArrowRight" || event.key === "ArrowLeft")) return;
    event.preventDefault();
    step(KEYS[event.key]);
  });
  viewer.addEventListener("close", () => focus(viewed));
  for (const button of viewer.querySelectorAll("[data-step]")) button.addEventListener("click", () => step(Number(button.dataset.step)));
  viewer.querySelector("[data-close]").addEventListener("click", () => viewer.close());
  viewer.querySelector("[data-zoom]").addEventListener("click", (event) => {
    event.target.setAttribute("aria-pressed", String(viewer.classList.toggle("pixels")));
  });

  let waiting = 0;
  form.addEventListener("input", () => { clearTimeout(waiting); waiting = setTimeout(filter, 120); });
  form.addEventListener("reset", () => setTimeout(filter, 0));
  form.addEventListener("submit", (event) => event.preventDefault());
  size.addEventListener("change", () => { page = 0; draw(); });
  for (const pager of pagers) {
    pager.hidden = false;
    for (const button of pager.querySelectorAll("[data-step]")) button.addEventListener("click", () => turn(Number(button.dataset.step)));
  }
  form.hidden = false;
  window.addEventListener("hashchange", fromAddress);
  draw();
  fromAddress();
})();
