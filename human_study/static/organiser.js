"use strict";
// The raters' table is fetched again every ten seconds, unless somebody is about to press a button in it.
(() => {
  const box = document.getElementById("raters");
  if (!box) return;
  setInterval(async () => {
    if (document.hidden || box.contains(document.activeElement)) return;
    try {
      const answer = await fetch(box.dataset.refresh, { credentials: "same-origin" });
      if (answer.ok) {
        const page = new DOMParser().parseFromString(await answer.text(), "text/html");
        box.replaceChildren(...page.body.childNodes);
      }
    } catch { /* the next round tries again */ }
  }, 10000);
})();
