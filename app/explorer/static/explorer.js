// What HTML cannot do by itself: telling what goes on, copying, and words for answers that are no page.
"use strict";

const at = (id) => document.getElementById(id);
const say = (text) => { const place = at("status"); if (place) place.textContent = text; };

function complain(text) {
  const place = at("problem"), line = document.createElement("p");
  line.className = "problem";
  line.textContent = text;
  place.replaceChildren(line);
}

document.addEventListener("htmx:beforeRequest", (event) => {
  if (event.detail.elt.closest("[data-quiet]")) return;
  at("problem").replaceChildren();
  say(event.detail.elt.dataset.doing || "Working …");
});
document.addEventListener("htmx:afterRequest", (event) => {
  if (event.detail.elt.closest("[data-quiet]")) return;
  say(event.detail.successful ? event.detail.elt.dataset.done || "Done." : "");
});
document.addEventListener("htmx:sendError", () => complain("The server cannot be reached."));
document.addEventListener("htmx:beforeSwap", (event) => {
  const answer = event.detail.xhr;
  if ((answer.getResponseHeader("Content-Type") || "").startsWith("text/html")) return;
  event.detail.shouldSwap = false; // an error from before our pages
  let words = "The server answered " + answer.status + ".";
  try { words = JSON.parse(answer.responseText).detail || words; } catch { /* not JSON */ }
  complain(words);
});

document.addEventListener("click", async (event) => {
  const button = event.target.closest("[data-copy]");
  if (!button) return;
  const text = at(button.dataset.copy).textContent;
  try {
    await navigator.clipboard.writeText(text);
    say("Copied.");
  } catch {
    getSelection().selectAllChildren(at(button.dataset.copy)); // where browsers lend no clipboard: without TLS
    say("Selected: press Ctrl-C to copy.");
  }
});

// One map at a time: of the whole target, or of the token that was chosen.
function choose(button) {
  const map = button.closest(".map");
  for (const each of map.querySelectorAll("[data-view]")) {
    const chosen = each === button;
    each.setAttribute("aria-pressed", String(chosen));
    at(each.dataset.view).hidden = !chosen;
  }
}
function begin() {
  for (const first of document.querySelectorAll('[data-view][aria-pressed="true"]')) choose(first);
}
document.addEventListener("click", (event) => {
  const button = event.target.closest("[data-view]");
  if (button) choose(button);
});
document.addEventListener("DOMContentLoaded", begin);
document.addEventListener("htmx:afterSwap", (event) => {
  begin();
  if (event.detail.target.id === "result") {
    const calm = matchMedia("(prefers-reduced-motion: reduce)").matches;
    event.detail.target.scrollIntoView({ block: "nearest", behavior: calm ? "auto" : "smooth" });
  }
});
