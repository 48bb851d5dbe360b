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

// Sliders show their value beside them, also after a reset.
const show = (input) => { if (input.dataset.shows) at(input.dataset.shows).textContent = String(+(+input.value).toPrecision(6)); };
document.addEventListener("input", (event) => show(event.target));
document.addEventListener("reset", (event) => setTimeout(() => event.target.querySelectorAll("[data-shows]").forEach(show)));
