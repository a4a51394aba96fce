// Shows the report as it changes. The server says when; the page asks for the new content and keeps what was unfolded.
"use strict";

const report = document.getElementById("report");
const state = document.getElementById("state");

function show(html) {
  const open = new Set();
  report.querySelectorAll("details").forEach((fold, index) => fold.open && open.add(index));
  report.innerHTML = html;
  report.querySelectorAll("details").forEach((fold, index) => { fold.open = open.has(index); });
}

async function load() {
  try {
    const answer = await fetch(report.dataset.source);
    if (!answer.ok) throw new Error(answer.status);
    show(await answer.text());
    state.textContent = "live, changed " + new Date().toLocaleTimeString();
  } catch (error) {
    state.textContent = "cannot read the report: " + error.message;
  }
}

const events = new EventSource("/events");
let first = true;
events.addEventListener("changed", () => {
  // The page came with the content of now.
  if (!first) load();
  first = false;
  state.textContent = state.textContent.startsWith("live") ? state.textContent : "live";
});
events.onerror = () => {
  state.textContent = "no connection to temper watch; trying again";
  first = false;
};
