"use strict";
// Every action by keyboard. Single keys can be switched off (WCAG 2.1.4), and never act while text is being written.
(() => {
  const follow = document.getElementById("follow");
  const back = document.getElementById("back");
  const form = document.getElementById("answer");
  const dialog = document.getElementById("keys");
  const toggle = document.getElementById("keys-on");
  const questions = form ? [...form.querySelectorAll(".question")] : [];
  let active = 0;

  function stored() {
    try { return localStorage.getItem("isr-study:keys") !== "off"; } catch { return true; }
  }
  function mark(index) {
    active = Math.min(questions.length - 1, Math.max(0, index));
    questions.forEach((q, i) => q.classList.toggle("active", i === active));
    questions[active]?.scrollIntoView({ block: "nearest" });
  }
  function say(value) {
    const input = questions[active]?.querySelector(`input[value="${value}"]`);
    if (!input || input.matches(":disabled")) return;
    input.checked = true;
    input.dispatchEvent(new Event("input", { bubbles: true }));
    const open = questions.findIndex((q, i) => i > active && !q.querySelector("input:checked"));
    if (open >= 0) mark(open);
    else mark(active + 1);
  }

  if (toggle) {
    toggle.checked = stored();
    toggle.addEventListener("change", () => {
      try { localStorage.setItem("isr-study:keys", toggle.checked ? "on" : "off"); } catch { /* private mode */ }
    });
    document.getElementById("show-keys").addEventListener("click", () => dialog.showModal());
  }
  questions.forEach((question, index) => question.addEventListener("focusin", () => mark(index)));
  if (questions.length) mark(Math.max(0, questions.findIndex((q) => !q.querySelector("input:checked"))));

  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || event.defaultPrevented) return;
    const on = event.target;
    if (dialog?.open) return;
    if (on.matches("textarea, input[type=text]")) {
      if (event.key === "Escape") on.blur();
      return;
    }
    if (toggle && !toggle.checked) return;
    const view = window.viewer?.actions;
    const onControl = on.matches("button, a, summary, input[type=checkbox]");
    const acts = {
      1: () => say("yes"), 2: () => say("no"), 3: () => say("cannot"),
      j: () => mark(active + 1), k: () => mark(active - 1),
      f: () => view?.flicker(), "+": () => view?.in(), "=": () => view?.in(), "-": () => view?.out(), 0: () => view?.whole(),
      m: () => document.getElementById("comment")?.focus(),
      b: () => back?.click(),
      "?": () => dialog?.showModal(),
    };
    if (!onControl) {
      acts.Enter = () => (form ? form.requestSubmit() : follow?.click());
      acts[" "] = () => view?.swap();
    }
    // In a group of radio buttons the arrows change the choice, as everywhere.
    if (!on.matches("input[type=radio]")) {
      Object.assign(acts, {
        ArrowLeft: () => view?.left(), ArrowRight: () => view?.right(), ArrowUp: () => view?.up(), ArrowDown: () => view?.down(),
      });
    } else { delete acts[" "]; }
    const act = acts[event.key.length === 1 ? event.key.toLowerCase() : event.key];
    if (!act || (event.key.startsWith("Arrow") && !view)) return;
    event.preventDefault();
    act();
  });
})();
