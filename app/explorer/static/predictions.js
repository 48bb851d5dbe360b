// Sliders show their value beside them, also after a reset.
"use strict";

const show = (input) => {
  if (!input.dataset.shows) return;
  document.getElementById(input.dataset.shows).textContent = String(+(+input.value).toPrecision(6));
};
document.addEventListener("input", (event) => show(event.target));
document.addEventListener("reset", (event) => {
  const sliders = event.target.querySelectorAll("[data-shows]");
  setTimeout(() => sliders.forEach(show)); // when they have their values again
});
