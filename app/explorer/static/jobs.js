// Progress as it comes: one stream for all jobs of the list; a job whose state has changed is fetched anew.
"use strict";

const SOON = 5000, LATE = 60000; // milliseconds

function follow(list, wait) {
  const source = new EventSource(list.dataset.live);
  const close = () => source.close();
  source.addEventListener("end", () => { close(); list.dataset.following = "ended"; });
  source.onopen = () => {
    if (list.dataset.following === "no") say("Progress is live again.");
    wait = SOON;
    list.dataset.following = "yes";
  };
  source.onmessage = (event) => show(JSON.parse(event.data));
  source.onerror = () => {
    if (source.readyState !== EventSource.CLOSED) return; // the browser asks again by itself
    removeEventListener("pagehide", close);
    list.dataset.following = "no";
    say("Progress is not live: it is asked for again in " + wait / 1000 + " s.");
    setTimeout(follow, wait, list, Math.min(2 * wait, LATE));
  };
  addEventListener("pagehide", close);
}

function show(job) {
  const row = at("job-" + job.id);
  if (!row) { meet(job); return; }
  const bar = row.querySelector("progress");
  bar.max = Math.max(1, job.total);
  bar.value = job.done;
  row.querySelector(".words").textContent = job.words;
  if (row.dataset.state === job.state) return;
  row.dataset.state = job.state;
  row.querySelector(".state").textContent = job.state;
  quietly("/explorer/jobs/" + job.id, row, "outerHTML", () => {
    const state = (at("job-" + job.id) || row).dataset.state; // it may have changed again
    say(job.kind + ", " + job.model + ": " + state);
  });
}

// A job that is not in the list: the list is fetched anew, once for all that come together.
let fetching = 0;
function meet(job) {
  const state = new URLSearchParams(location.search).get("state");
  if (state && state !== job.state) return;
  clearTimeout(fetching);
  fetching = setTimeout(() => quietly(location.pathname + location.search, list, "innerHTML", () => {}), 200);
}

// Fetched by an element of its own, as nobody has asked for it: what the page says of other requests stays.
function quietly(path, target, swap, then) {
  const source = document.createElement("span");
  source.dataset.quiet = "";
  list.after(source);
  htmx.ajax("GET", path, { source, target, swap }).then(then, () => {}).finally(() => source.remove());
}

const list = at("jobs");
if (list && list.dataset.live) follow(list, SOON);
