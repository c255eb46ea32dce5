"use strict";
// Tables: a button in every heading sorts (aria-sort says how), a line above filters rows.
(() => {
  const collator = new Intl.Collator(undefined, { numeric: true });

  function sortBy(table, index, heading) {
    const numeric = heading.classList.contains("number");
    const now = heading.getAttribute("aria-sort");
    // Numbers start with the largest, names with the first.
    const direction = now === null ? (numeric ? "descending" : "ascending") : now === "ascending" ? "descending" : "ascending";
    for (const other of table.tHead.rows[0].cells) other.removeAttribute("aria-sort");
    heading.setAttribute("aria-sort", direction);
    const sign = direction === "ascending" ? 1 : -1;
    const body = table.tBodies[0];
    const rows = [...body.rows].map((row) => {
      const value = row.cells[index].dataset.sort;
      return { row, value: value === undefined ? null : numeric ? Number(value) : value };
    });
    rows.sort((a, b) => {
      if (a.value === null || b.value === null) return (a.value === null) - (b.value === null); // what is absent stays last
      return sign * (numeric ? a.value - b.value : collator.compare(a.value, b.value));
    });
    body.append(...rows.map((r) => r.row));
  }

  function labelled(text, control) {
    const label = document.createElement("label");
    label.append(text + " ", control);
    return label;
  }

  function filters(box, table) {
    const rows = [...table.tBodies[0].rows];
    const line = document.createElement("div");
    line.className = "filters";
    const chosen = new Map();
    let text = "";
    const status = document.createElement("span");
    status.className = "soft";
    status.setAttribute("role", "status");
    const apply = () => {
      let shown = 0;
      for (const row of rows) {
        const fits = [...chosen].every(([i, v]) => v === "" || row.cells[i].textContent === v) && row.textContent.toLowerCase().includes(text);
        row.hidden = !fits;
        shown += fits;
      }
      status.textContent = shown === rows.length ? "" : `${shown} of ${rows.length} rows`;
    };
    [...table.tHead.rows[0].cells].forEach((heading, index) => {
      if (!("facet" in heading.dataset)) return;
      const values = [...new Set(rows.map((row) => row.cells[index].textContent))];
      if (values.length < 2) return;
      const select = document.createElement("select");
      select.append(new Option("all", ""), ...values.map((v) => new Option(v, v)));
      select.addEventListener("change", () => { chosen.set(index, select.value); apply(); });
      line.append(labelled(heading.textContent, select));
    });
    if (rows.length > 8) {
      const input = document.createElement("input");
      input.type = "search";
      input.addEventListener("input", () => { text = input.value.trim().toLowerCase(); apply(); });
      line.append(labelled("Find in this table", input));
    }
    if (line.childElementCount) {
      line.append(status);
      box.prepend(line);
    }
  }

  for (const box of document.querySelectorAll("[data-table]")) {
    const table = box.querySelector("table");
    filters(box, table);
    if (table.tBodies[0].rows.length < 2) continue;
    [...table.tHead.rows[0].cells].forEach((heading, index) => {
      const button = document.createElement("button");
      button.type = "button";
      button.append(...heading.childNodes);
      button.addEventListener("click", () => sortBy(table, index, heading));
      heading.append(button);
    });
  }

  const theme = document.getElementById("theme");
  if (theme) {
    const dark = () => (document.documentElement.dataset.theme ?? (matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light")) === "dark";
    const show = () => { theme.textContent = dark() ? "Light" : "Dark"; };
    theme.hidden = false;
    theme.setAttribute("aria-label", "Switch between light and dark");
    theme.addEventListener("click", () => { document.documentElement.dataset.theme = dark() ? "light" : "dark"; show(); });
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", show);
    show();
  }
})();
