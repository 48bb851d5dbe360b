// Progress as it comes: one stream for all jobs of the list; a job whose state has changed is fetched anew.
"use strict";

function follow(list) {
  const source = new EventSource(list.dataset.live);
  source.addEventListener("end", () => { source.close(); list.dataset.following = "ended"; });
  source.onopen = () => { list.dataset.following = "yes"; };
  source.onmessage = (event) => show(JSON.parse(event.data));
  addEventListener("pagehide", () => source.close());
}

function show(job) {
  const row = document.getElementById("job-" + job.id);
  if (!row) return;
  const bar = row.querySelector("progress");
  bar.max = Math.max(1, job.total);
  bar.value = job.done;
  row.querySelector(".words").textContent = job.words;
  if (row.dataset.state === job.state) return;
  row.dataset.state = job.state;
  row.querySelector(".state").textContent = job.state;
  document.getElementById("status").textContent = job.kind + ", " + job.model + ": " + job.state;
  htmx.ajax("GET", "/explorer/jobs/" + job.id, { target: row, swap: "outerHTML", source: row });
}

const list = document.getElementById("jobs");
if (list && list.dataset.live) follow(list);
