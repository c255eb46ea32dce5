"use strict";
// Saving. An answer is kept in this browser from the first click until the server has acknowledged it; the page goes on only
// then. Every attempt carries the same idempotency key, so a repeated one is never stored twice.
(() => {
  const form = document.getElementById("answer");
  if (!form) return;
  const status = document.getElementById("status");
  const save = document.getElementById("save");
  const here = form.dataset.position;
  const shelf = `isr-study:${form.dataset.who}:`;
  const questions = [...form.querySelectorAll(".question")];
  let sending = false, wait = 0, retry = null, visible = 0, since = document.hidden ? null : performance.now();

  // Seconds with the page in view.
  function seconds() {
    return ((visible + (since === null ? 0 : performance.now() - since)) / 1000).toFixed(2);
  }
  document.addEventListener("visibilitychange", () => {
    if (document.hidden && since !== null) { visible += performance.now() - since; since = null; }
    else if (!document.hidden && since === null) since = performance.now();
  });

  function newKey() {
    const bytes = crypto.getRandomValues(new Uint8Array(24));
    return [...bytes].map((b) => b.toString(16).padStart(2, "0")).join("");
  }

  // Storage may be switched off; then the page still keeps what is selected for as long as it is open.
  function keep(name, value) {
    try {
      if (value === null) localStorage.removeItem(shelf + name);
      else localStorage.setItem(shelf + name, JSON.stringify(value));
    } catch { /* private mode */ }
  }
  function kept(name) {
    try { return JSON.parse(localStorage.getItem(shelf + name)); } catch { return null; }
  }

  function fields() {
    const said = {};
    for (const question of questions) {
      const chosen = question.querySelector("input:checked");
      if (chosen) said[chosen.name] = chosen.value;
    }
    return { said, comment: form.elements.comment.value };
  }

  function fill(draft) {
    for (const [name, value] of Object.entries(draft.said)) {
      const input = form.querySelector(`input[name="${CSS.escape(name)}"][value="${CSS.escape(value)}"]`);
      if (input) input.checked = true;
    }
    form.elements.comment.value = draft.comment;
  }

  function tell(text, bad = false) {
    status.hidden = !text;
    status.textContent = text;
    status.classList.toggle("bad", bad);
  }

  function later(text) {
    wait = Math.min(15, wait ? wait * 2 : 1);
    tell(`${text} Your answer is kept on this device and is sent again by itself.`);
    clearTimeout(retry);
    retry = setTimeout(send, wait * 1000);
  }

  async function post(position, pending) {
    const body = new URLSearchParams({
      csrf: form.elements.csrf.value, key: pending.key, seconds: pending.seconds, comment: pending.comment, ...pending.said,
    });
    const stop = new AbortController();
    const clock = setTimeout(() => stop.abort(), 20000);
    try {
      return await fetch(`/item/${position}`, {
        method: "POST", body, signal: stop.signal, credentials: "same-origin", headers: { Accept: "application/json" },
      });
    } finally { clearTimeout(clock); }
  }

  // While an answer is on its way, what is selected is what was sent.
  function lock(on) {
    save.disabled = on;
    for (const question of questions) question.disabled = on;
    form.elements.comment.readOnly = on;
  }

  async function send() {
    const pending = form.pending || kept(`pending:${here}`);
    if (!pending || sending) return;
    sending = true;
    lock(true);
    clearTimeout(retry);
    let answer, body;
    try {
      answer = await post(here, pending);
      body = await answer.json();
    } catch {
      sending = false;
      later("No connection to the server.");
      return;
    }
    sending = false;
    if (answer.ok) {
      form.pending = null;
      keep(`pending:${here}`, null);
      keep(`draft:${here}`, null);
      tell("");
      window.location.assign(body.next);
      return;
    }
    if (answer.status === 429 || answer.status >= 500) { later("The server is busy."); return; }
    if (body.error === "key-used") {
      // An older attempt of this page got through with other content; this is a change of it.
      pending.key = newKey();
      form.pending = pending;
      keep(`pending:${here}`, pending);
      send();
      return;
    }
    lock(false);
    form.pending = null;
    if (answer.status === 401 || body.error === "csrf") {
      // Kept: after signing in again the page sends it.
      tell(`${body.text} Your answer is kept on this device.`, true);
      return;
    }
    keep(`pending:${here}`, null);
    tell(body.text, true);
  }

  form.addEventListener("submit", (event) => {
    event.preventDefault();
    if (sending || form.pending) return;
    for (const question of questions) question.classList.toggle("missing", !question.querySelector("input:checked"));
    const pending = { ...fields(), key: newKey(), seconds: seconds() };
    form.pending = pending;
    keep(`pending:${here}`, pending);
    send();
  });

  form.addEventListener("input", () => {
    keep(`draft:${here}`, fields());
    for (const question of questions) if (question.querySelector("input:checked")) question.classList.remove("missing");
  });
  form.addEventListener("invalid", (event) => event.target.closest(".question")?.classList.add("missing"), true);
  window.addEventListener("online", () => { wait = 0; send(); });
  // A page that the browser kept alive shows an old state: ask the server.
  window.addEventListener("pageshow", (event) => { if (event.persisted) window.location.reload(); });

  // What an interrupted visit left behind: an answer of this page goes out now, one of another page in the background.
  const left = kept(`pending:${here}`);
  if (left) { fill(left); form.pending = left; send(); }
  else if (form.dataset.answered === "no") { const draft = kept(`draft:${here}`); if (draft) fill(draft); }
  (async () => {
    const names = [];
    try { for (let i = 0; i < localStorage.length; i++) names.push(localStorage.key(i)); } catch { return; }
    for (const name of names.filter((n) => n && n.startsWith(`${shelf}pending:`))) {
      const position = name.slice(`${shelf}pending:`.length);
      if (position === here || !/^\d+$/.test(position)) continue;
      try {
        const answer = await post(position, kept(`pending:${position}`));
        if (answer.ok || answer.status === 409) keep(`pending:${position}`, null);
      } catch { return; }
    }
  })();

  // Whether "What counts" is open is remembered.
  for (const details of form.querySelectorAll("details")) {
    const name = `open:${details.closest(".question").dataset.key}`;
    const open = kept(name);
    if (open !== null) details.open = open;
    details.addEventListener("toggle", () => keep(name, details.open));
  }
})();
