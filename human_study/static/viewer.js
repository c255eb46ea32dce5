"use strict";
// The two pictures: zoom and move in step, and flicker between them in one place. Other scripts use window.viewer.
(() => {
  const panes = document.getElementById("panes");
  if (!panes) return;
  const frames = [...panes.querySelectorAll(".frame")];
  const figures = [...panes.querySelectorAll(".pane")];
  const readout = document.getElementById("zoom");
  const flickerButton = document.querySelector('[data-do="flicker"]');
  const swapButton = document.querySelector('[data-do="swap"]');
  const calm = window.matchMedia("(prefers-reduced-motion: reduce)");
  const MAX = 16;
  const FLICKER_MS = 700; // well under three changes a second
  // Position as a share of the frame, so that frames of unlike size stay in step.
  let scale = 1, x = 0, y = 0, timer = null;

  function draw() {
    x = Math.min(0, Math.max(1 - scale, x));
    y = Math.min(0, Math.max(1 - scale, y));
    for (const frame of frames) {
      const image = frame.querySelector("img");
      image.style.transform = `translate(${x * frame.clientWidth}px, ${y * frame.clientHeight}px) scale(${scale})`;
      frame.classList.toggle("zoomed", scale > 1);
      frame.classList.toggle("close", scale >= 6);
    }
    readout.value = `${Math.round(scale * 100)} %`;
  }

  // Zoom by a factor around a point of the frame (shares; the middle if none is given).
  function zoom(factor, px = 0.5, py = 0.5) {
    const next = Math.min(MAX, Math.max(1, scale * factor));
    x = px - (px - x) * (next / scale);
    y = py - (py - y) * (next / scale);
    scale = next;
    draw();
  }

  function move(dx, dy) { x += dx; y += dy; draw(); }
  function whole() { scale = 1; x = 0; y = 0; draw(); }

  function swap() {
    if (!panes.classList.contains("flicker")) return;
    for (const figure of figures) figure.classList.toggle("on");
  }

  function flicker() {
    if (figures.length < 2) return;
    const on = panes.classList.toggle("flicker");
    figures.forEach((figure, index) => figure.classList.toggle("on", on && index === figures.length - 1));
    flickerButton.setAttribute("aria-pressed", String(on));
    swapButton.hidden = !on;
    clearInterval(timer);
    if (on && !calm.matches) timer = setInterval(swap, FLICKER_MS);
    draw();
  }

  function swapByHand() { clearInterval(timer); swap(); }

  // One pointer drags, two pinch.
  const held = new Map();
  for (const frame of frames) {
    frame.addEventListener("wheel", (event) => {
      event.preventDefault();
      const box = frame.getBoundingClientRect();
      zoom(Math.exp(-event.deltaY * 0.0015), (event.clientX - box.left) / box.width, (event.clientY - box.top) / box.height);
    }, { passive: false });
    frame.addEventListener("dblclick", (event) => {
      const box = frame.getBoundingClientRect();
      if (scale > 1) whole();
      else zoom(3, (event.clientX - box.left) / box.width, (event.clientY - box.top) / box.height);
    });
    frame.addEventListener("pointerdown", (event) => {
      frame.setPointerCapture(event.pointerId);
      held.set(event.pointerId, [event.clientX, event.clientY]);
      frame.classList.add("held");
    });
    frame.addEventListener("pointermove", (event) => {
      const from = held.get(event.pointerId);
      if (!from) return;
      const box = frame.getBoundingClientRect();
      if (held.size === 2) {
        const other = [...held.entries()].find(([id]) => id !== event.pointerId)[1];
        const before = Math.hypot(from[0] - other[0], from[1] - other[1]);
        const after = Math.hypot(event.clientX - other[0], event.clientY - other[1]);
        const mx = (event.clientX + other[0]) / 2, my = (event.clientY + other[1]) / 2;
        if (before > 0) zoom(after / before, (mx - box.left) / box.width, (my - box.top) / box.height);
      } else {
        move((event.clientX - from[0]) / box.width, (event.clientY - from[1]) / box.height);
      }
      held.set(event.pointerId, [event.clientX, event.clientY]);
    });
    for (const end of ["pointerup", "pointercancel"]) {
      frame.addEventListener(end, (event) => {
        held.delete(event.pointerId);
        frame.classList.remove("held");
      });
    }
  }

  const actions = {
    in: () => zoom(1.5), out: () => zoom(1 / 1.5), whole, flicker, swap: swapByHand,
    left: () => move(0.1, 0), right: () => move(-0.1, 0), up: () => move(0, 0.1), down: () => move(0, -0.1),
  };
  for (const button of document.querySelectorAll("[data-do]")) {
    button.addEventListener("click", () => actions[button.dataset.do]());
  }
  window.addEventListener("resize", draw);
  window.viewer = { actions, state: () => ({ scale, x, y, flicker: panes.classList.contains("flicker") }) };
  draw();
  for (const mark of document.querySelectorAll("[data-preload]")) new Image().src = mark.dataset.preload;
})();
