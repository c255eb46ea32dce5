"use strict";
// One case at a time; every answer goes to the server that served this page, and nowhere else.
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const get = (id) => document.getElementById(id);
  const form = get("form");
  const said = new Map(Object.entries(data.said).map(([n, a]) => [Number(n), a]));
  const viewer = get("viewer");
  let current = 0;

  function make(tag, className, text) {
    const node = document.createElement(tag);
    if (className) node.className = className;
    if (text !== undefined) node.textContent = text;
    return node;
  }

  for (const question of data.questions) {
    const box = make("fieldset");
    box.append(make("legend", "", question.title), make("p", "question", question.question));
    const more = make("details");
    more.append(make("summary", "", "What counts"), make("p", "guidance", question.guidance));
    if (question.guidance) box.append(more);
    const choices = make("div", "choices");
    for (const [value, word] of [["yes", data.words.yes], ["no", data.words.no], ["cannot", data.words.cannot_judge]]) {
      const label = make("label");
      const input = make("input");
      Object.assign(input, { type: "radio", name: "q-" + question.key, value });
      label.append(input, word);
      choices.append(label);
    }
    box.append(choices);
    get("questions").append(box);
  }

  function pictures(number, opens) {
    const roles = data.items[number].original ? ["original", "edited"] : ["edited"];
    return roles.map((role) => {
      const figure = make("figure");
      const image = make("img");
      image.src = `picture/${number}/${role}`;
      image.alt = data.words[role];
      if (opens) {
        const button = make("button", "picture");
        button.type = "button";
        button.setAttribute("aria-label", `Enlarge: ${data.words[role]}`);
        button.append(image);
        button.addEventListener("click", () => {
          viewer.querySelector(".pictures").replaceChildren(...pictures(number, false));
          viewer.showModal();
        });
        figure.append(button);
      } else figure.append(image);
      figure.append(make("figcaption", "", data.words[role]));
      return figure;
    });
  }

  function count() {
    get("progress").value = said.size;
    get("count").textContent = `${said.size} of ${data.items.length} answered`;
  }

  function show(number) {
    current = number;
    get("done").hidden = true;
    get("item").hidden = false;
    get("where").textContent = `${data.words.prompt} · case ${number + 1} of ${data.items.length}`;
    get("prompt").textContent = `“${data.items[number].prompt}”`;
    get("pictures").replaceChildren(...pictures(number, true));
    get("problem").textContent = "";
    form.reset();
    const known = said.get(number);
    if (known) {
      for (const [key, value] of Object.entries(known.said)) {
        form.elements["q-" + key].value = value === null ? "cannot" : value ? "yes" : "no";
      }
      form.elements.note.value = known.note;
    }
    for (const button of form.querySelectorAll("[data-step]")) {
      const next = number + Number(button.dataset.step);
      button.disabled = next < 0 || next >= data.items.length;
    }
    scrollTo(0, 0);
    get("prompt").focus({ preventScroll: true });
  }

  function next() {
    for (let i = 1; i <= data.items.length; i++) {
      const number = (current + i) % data.items.length;
      if (!said.has(number)) return show(number);
    }
    get("item").hidden = true;
    get("done").hidden = false;
    get("done").querySelector("h1").focus();
  }

  async function send(where, value) {
    const reply = await fetch(where, { method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(value) });
    const text = await reply.text();
    if (!reply.ok) throw new Error(text.startsWith("{") ? JSON.parse(text).error : text);
  }

  form.addEventListener("submit", async (event) => {
    event.preventDefault();
    const number = current;
    const given = {};
    for (const question of data.questions) {
      const value = form.elements["q-" + question.key].value;
      if (!value) {
        get("problem").textContent = `Please answer: ${question.title}`;
        form.querySelector(`[name="q-${question.key}"]`).focus();
        return;
      }
      given[question.key] = value === "cannot" ? null : value === "yes";
    }
    const answer = { said: given, note: form.elements.note.value };
    const button = form.querySelector("[type=submit]");
    button.disabled = true;
    try {
      await send("answer", { item: number, ...answer });
      said.set(number, answer);
      count();
      next();
    } catch (error) {
      get("problem").textContent = `Not saved: ${error.message}. Is isr review still running?`;
    } finally {
      button.disabled = false;
    }
  });

  for (const button of form.querySelectorAll("[data-step]")) button.addEventListener("click", () => show(current + Number(button.dataset.step)));
  get("back").addEventListener("click", () => show(0));
  get("finish").addEventListener("click", async () => {
    try {
      await send("finish", {});
    } catch {
      // the server may be gone before its reply is read; what was saved is saved
    }
    for (const id of ["item", "done", "finish"]) get(id).hidden = true;
    get("ended").hidden = false;
    get("ended").querySelector("h1").focus();
  });
  viewer.querySelector("[data-close]").addEventListener("click", () => viewer.close());
  viewer.querySelector("[data-zoom]").addEventListener("click", (event) => {
    event.target.setAttribute("aria-pressed", String(viewer.classList.toggle("pixels")));
  });

  const ANSWERS = { y: "yes", n: "no", c: "cannot" };
  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || viewer.open || get("item").hidden || event.target.matches("textarea")) return;
    const key = event.key.toLowerCase();
    if (key in ANSWERS) {
      const open = data.questions.find((q) => !form.elements["q-" + q.key].value);
      if (!open) return;
      event.preventDefault();
      form.elements["q-" + open.key].value = ANSWERS[key];
      form.querySelector(`[name="q-${open.key}"]:checked`).focus();
    } else if (key === "enter" && !event.target.matches("button, summary, a")) {
      event.preventDefault();
      form.requestSubmit();
    } else if ((key === "arrowleft" || key === "arrowright") && !event.target.matches("input")) {
      const number = current + (key === "arrowright" ? 1 : -1);
      if (number >= 0 && number < data.items.length) show(number);
    }
  });

  count();
  current = -1;
  next();
})();
