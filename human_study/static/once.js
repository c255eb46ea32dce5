"use strict";
// A form goes out once: a double click on a slow line would cut off the first request, whose answer carries the cookie or the
// new link. After the browser's "back" the form may be sent again.
(() => {
  const sent = new WeakSet();
  document.addEventListener("submit", (event) => {
    if (sent.has(event.target)) event.preventDefault();
    else sent.add(event.target);
  });
  window.addEventListener("pageshow", (event) => { if (event.persisted) window.location.reload(); });
})();
