// The annotators' page. Texts of the data reach the document by textContent alone.
"use strict";

const token = location.hash.slice(1);
const $ = (id) => document.getElementById(id);
const letter = (i) => String.fromCharCode(65 + i);

/** An element: attributes, then children (elements or texts). */
function el(tag, attributes, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes || {})) {
    if (value === true) element.setAttribute(name, "");
    else if (value !== false && value !== null && value !== undefined) element.setAttribute(name, value);
  }
  for (const child of children) element.append(child);
  return element;
}

let now = null; // what the server said last
let marked = false; // whether differences are marked
let current = 0; // the response that digits are for
let seconds = 0; // time on this task while the page was visible
let sending = false;
let drawn = []; // the rank of each response, as the board shows it

// ---- Server ----

class Refused extends Error {}

/** Asks the server; tries again as long as it does not answer. Every request may be repeated: answers carry the task's number. */
async function ask(path, body) {
  for (let wait = 500; ; wait = Math.min(2 * wait, 8000)) {
    let response;
    try {
      response = await fetch("/api/" + path, {
        method: "POST",
        headers: { "Authorization": "Bearer " + token, "Content-Type": "application/json" },
        body: JSON.stringify(body || {}),
      });
    } catch {
      say("The server does not answer. Nothing is lost: this page tries again until it does.", true);
      await new Promise((done) => setTimeout(done, wait));
      continue;
    }
    if (response.status === 429) {
      await new Promise((done) => setTimeout(done, 1000));
      continue;
    }
    const text = await response.text();
    let answer;
    try { answer = JSON.parse(text); } catch { answer = { error: text }; }
    if (!response.ok) throw new Refused(answer.error || "the server answered " + response.status);
    return answer;
  }
}

function say(text, bad) {
  $("notice").textContent = text;
  $("notice").classList.toggle("bad", !!bad);
}

/** Sends something that leads to the next task. */
async function send(path, body, done) {
  if (sending) return;
  sending = true;
  $("submit").disabled = true;
  try {
    const answer = await ask(path, body);
    if (now && now.task) forget(now.task.nonce);
    say(done || "");
    show(answer);
  } catch (error) {
    say(error.message, true);
    if (!(error instanceof Refused)) throw error;
  } finally {
    sending = false;
    $("submit").disabled = false;
  }
}

/** Looks whether there is more after all was done: the next round of a run, at the same address. A server that is gone is no trouble. */
async function look(answer) {
  if (now !== answer || sending) return;
  try {
    const response = await fetch("/api/next", { method: "POST", headers: { "Authorization": "Bearer " + token }, body: "" });
    const next = response.ok ? await response.json() : null;
    if (next && next.state !== "done" && now === answer) { show(next); return; }
  } catch { /* not there yet */ }
  setTimeout(() => look(answer), 15000);
}

// ---- What is filled in: kept for a reload, until it is sent ----

const remember = () => {
  if (now && now.task) sessionStorage.setItem("label." + now.task.nonce, JSON.stringify({ answer: collect(), seconds }));
};
const forget = (nonce) => sessionStorage.removeItem("label." + nonce);
function remembered(nonce) {
  try { return JSON.parse(sessionStorage.getItem("label." + nonce)); } catch { return null; }
}

// ---- Drawing ----

function show(answer) {
  now = answer;
  const { mine, skipped, judged, tasks } = answer.progress;
  $("who").textContent = answer.annotator;
  $("bar").max = Math.max(tasks, 1);
  $("bar").value = judged;
  $("count").textContent = `${mine} by you, ${judged} of ${tasks} in all` + (skipped ? `, ${skipped} skipped` : "");
  $("work").hidden = answer.state !== "task";
  $("over").hidden = answer.state === "task";
  if (answer.state !== "task") {
    const wait = answer.state === "wait";
    $("over-title").textContent = wait ? "Nothing for you at the moment" : "All done";
    $("over-text").textContent = wait
      ? "What is left is in the hands of others. This page looks again every few seconds."
      : "Thank you. All tasks are judged; you may close this page.";
    $("over-undo").hidden = mine + skipped === 0;
    if (wait) setTimeout(() => { if (now === answer) send("next"); }, 5000);
    else setTimeout(() => look(answer), 15000);
    return;
  }
  seconds = 0;
  current = 0;
  const { form, task } = answer;
  $("instructions").hidden = !form.instructions;
  $("instructions").textContent = form.instructions || "";
  drawPrompt(task.prompt);
  const place = $("task");
  place.replaceChildren();
  if (form.kind === "dialogue") drawDialogue(place, form, task);
  else {
    place.append(drawResponses(task.responses, form));
    if (form.kind === "pairwise") place.append(grades(form, "grade", "Which response is better?"));
    if (form.rank && task.responses.length > 1) place.append(drawBoard(task.responses.length));
  }
  $("differences").hidden = form.kind !== "dialogue" && task.responses.length < 2;
  const kept = remembered(task.nonce);
  fill((kept && kept.answer) || task.draft);
  if (kept) seconds = kept.seconds || 0;
  mark();
  tick(0);
  window.scrollTo(0, 0);
  $("main").focus({ preventScroll: true });
}

function drawPrompt(prompt) {
  const place = $("prompt");
  place.replaceChildren();
  $("prompt-part").hidden = prompt.length === 0;
  if (typeof prompt === "string") {
    place.textContent = prompt;
    return;
  }
  for (const message of prompt) {
    const content = typeof message.content === "string" ? message.content : JSON.stringify(message.content);
    place.append(el("div", { class: "message" }, el("span", { class: "role" }, String(message.role)), content));
  }
}

/** One of several values, drawn as buttons: radio inputs, so that arrow keys and screen readers know them. */
function radios(name, legend, values, hints) {
  const choices = el("div", { class: "choices" });
  values.forEach(([value, text], i) => {
    const input = el("input", { type: "radio", name, value });
    const label = el("label", { class: "choice" }, input, el("span", {}, text));
    if (hints) label.append(el("kbd", { "aria-hidden": "true" }, String(i + 1)));
    choices.append(label);
  });
  return el("fieldset", {}, el("legend", {}, legend), choices);
}

function grades(form, name, legend) {
  const set = radios(name, legend, form.grades.map(([value, text]) => [String(value), text]), true);
  set.classList.add("grades");
  return set;
}

function card(i, text, title) {
  const id = `response-${title}`;
  const head = el("div", { class: "head" }, el("h3", { id }, `Response ${letter(i)}`));
  const body = el("div", { class: "text", tabindex: "0", role: "group", "aria-labelledby": id, "data-text": String(i) });
  body.textContent = text;
  return el("article", { class: "card", "data-index": String(i), "aria-labelledby": id }, head, body);
}

function drawResponses(responses, form) {
  const all = el("section", { class: "responses", "aria-label": "Responses", "data-count": String(responses.length) });
  responses.forEach((text, i) => {
    const one = card(i, text, letter(i));
    for (const field of form.fields || []) one.append(drawField(field, i));
    if (form.rank && responses.length > 1) {
      const ranks = responses.map((_, rank) => [String(rank + 1), String(rank + 1)]);
      one.append(radios(`rank-${i}`, `Rank of response ${letter(i)} (1 is the best)`, ranks, false));
      const grip = el("span", { class: "grip", draggable: "true", "data-drag": String(i), "aria-hidden": "true" }, "drag");
      one.querySelector(".head").append(grip);
    }
    one.addEventListener("focusin", () => choose(i));
    one.addEventListener("click", () => choose(i));
    all.append(one);
  });
  return all;
}

function drawField(field, i) {
  const [kind, of] = Object.entries(field)[0];
  const name = `field-${i}-${of.name}`;
  switch (kind) {
    case "Scale": {
      const values = [];
      for (let n = of.from; n <= of.to; n++) values.push([String(n), String(n)]);
      return radios(name, of.label, values, false);
    }
    case "Flag": {
      const input = el("input", { type: "checkbox", name });
      return el("label", { class: "flag" }, input, el("span", {}, of.label));
    }
    case "Choice": {
      const select = el("select", { name, id: name }, el("option", { value: "" }, "choose .."));
      for (const option of of.options) select.append(el("option", { value: option }, option));
      return el("div", { class: "field" }, el("label", { for: name }, of.label), select);
    }
    default:
      return el("div", { class: "field" }, el("label", { for: name }, of.label), el("textarea", { name, id: name, maxlength: "5000" }));
  }
}

function drawBoard(count) {
  const board = el("ol", { class: "board", "aria-label": "Order of the responses" });
  for (let rank = 1; rank <= count; rank++) {
    const name = rank === 1 ? "rank 1 (best)" : rank === count ? `rank ${rank} (worst)` : `rank ${rank}`;
    const slot = el("li", { class: "slot", "data-rank": String(rank) }, el("span", { class: "name" }, name), el("span", { class: "tiles" }));
    slot.addEventListener("dragover", (event) => { event.preventDefault(); slot.classList.add("over"); });
    slot.addEventListener("dragleave", () => slot.classList.remove("over"));
    slot.addEventListener("drop", (event) => {
      event.preventDefault();
      slot.classList.remove("over");
      const i = Number(event.dataTransfer.getData("text/plain"));
      if (Number.isInteger(i) && i >= 0 && i < count) setRank(i, rank);
    });
    board.append(slot);
  }
  const section = el("section", { class: "order", "aria-label": "Order" }, el("h2", {}, "Order: drag the responses, or give each a rank"), board);
  return section;
}

document.addEventListener("dragstart", (event) => {
  const i = event.target.dataset && event.target.dataset.drag;
  if (i === undefined) return;
  event.dataTransfer.setData("text/plain", i);
  event.dataTransfer.effectAllowed = "move";
});

/** Gives a response a rank. Without ties, whoever had it gets the rank that becomes free. */
function setRank(i, rank) {
  const count = now.task.responses.length;
  // As last drawn: a radio that was clicked has its new value already.
  const before = drawn[i];
  if (!now.form.ties) {
    for (let other = 0; other < count; other++) {
      if (other !== i && valueOf(`rank-${other}`) === String(rank)) check(`rank-${other}`, before);
    }
  }
  check(`rank-${i}`, String(rank));
  changed();
}

function drawTiles() {
  drawn = now.task.responses.map((_, i) => valueOf(`rank-${i}`));
  for (const slot of document.querySelectorAll(".slot")) {
    const tiles = slot.querySelector(".tiles");
    tiles.replaceChildren();
    for (let i = 0; i < now.task.responses.length; i++) {
      if (valueOf(`rank-${i}`) === slot.dataset.rank) {
        tiles.append(el("span", { class: "tile", draggable: "true", "data-drag": String(i) }, letter(i)));
      }
    }
  }
}

/** The turns so far: the next one appears when the one before is answered, as it went on in the recorded dialogue. */
function drawDialogue(place, form, task) {
  task.turns.forEach((turn, t) => {
    const section = el("section", { class: "turn", "data-turn": String(t), "aria-label": `Turn ${t + 1} of ${task.turns.length}` });
    section.append(el("h2", {}, `Turn ${t + 1} of ${task.turns.length}`));
    const said = el("p", { class: "said text" });
    said.append(el("span", { class: "role" }, "user"), turn.prompt);
    section.append(said);
    const pair = el("div", { class: "responses" });
    turn.responses.forEach((text, i) => pair.append(card(i, text, `${t}-${letter(i)}`)));
    section.append(pair, grades(form, `turn-${t}`, "Which answer is better at this turn?"));
    const went = el("p", { class: "went" }, `The dialogue went on with answer ${letter(turn.continued)}.`);
    if (t + 1 < task.turns.length) section.append(went);
    place.append(section);
  });
}

function openTurns() {
  let open = true;
  for (const section of document.querySelectorAll(".turn")) {
    section.hidden = !open;
    const answered = valueOf(`turn-${section.dataset.turn}`) !== null;
    const went = section.querySelector(".went");
    if (went) went.hidden = !answered;
    open = open && answered;
  }
}

// ---- Values ----

function valueOf(name) {
  const checked = document.querySelector(`#form input[name="${name}"]:checked`);
  return checked ? checked.value : null;
}
function check(name, value) {
  for (const input of document.querySelectorAll(`#form input[name="${name}"]`)) input.checked = input.value === value;
}
const numberOf = (name) => { const value = valueOf(name); return value === null ? null : Number(value); };

/** The answer as filled in so far; missing values are null. */
function collect() {
  const { form, task } = now;
  const each = (body) => task.responses.map((_, i) => body(i));
  const ranks = () => each((i) => numberOf(`rank-${i}`));
  switch (form.kind) {
    case "pairwise": return { grade: numberOf("grade") };
    case "dialogue": return { turns: task.turns.map((_, t) => numberOf(`turn-${t}`)) };
    case "rank": return { ranks: ranks() };
    default: {
      const fields = each((i) => {
        const values = {};
        for (const field of form.fields) {
          const [kind, of] = Object.entries(field)[0];
          const name = `field-${i}-${of.name}`;
          if (kind === "Scale") values[of.name] = numberOf(name);
          else {
            const input = document.querySelector(`#form [name="${name}"]`);
            values[of.name] = kind === "Flag" ? input.checked : input.value;
          }
        }
        return values;
      });
      const ratings = { fields };
      if (form.rank && task.responses.length > 1) ratings.ranks = ranks();
      return { ratings };
    }
  }
}

/** Fills in an answer, also an incomplete one. */
function fill(answer) {
  const { form, task } = now;
  if (answer) {
    const set = (name, value) => { if (value !== null && value !== undefined) check(name, String(value)); };
    if (form.kind === "pairwise") set("grade", answer.grade);
    if (form.kind === "dialogue") (answer.turns || []).forEach((grade, t) => set(`turn-${t}`, grade));
    const ratings = answer.ratings || {};
    (answer.ranks || ratings.ranks || []).forEach((rank, i) => set(`rank-${i}`, rank));
    (ratings.fields || []).forEach((values, i) => {
      for (const field of form.fields) {
        const [kind, of] = Object.entries(field)[0];
        const name = `field-${i}-${of.name}`;
        const value = values[of.name];
        const input = document.querySelector(`#form [name="${name}"]`);
        if (kind === "Scale") set(name, value);
        else if (kind === "Flag") input.checked = value === true;
        else input.value = value || "";
      }
    });
  }
  drawTiles();
  if (form.kind === "dialogue") openTurns();
  if (task.draft && answer === task.draft) say("This is your earlier answer: change it, or save it again.");
}

function changed() {
  drawTiles();
  if (now.form.kind === "dialogue") openTurns();
  remember();
}

/** What is still missing, in words; empty if nothing is. */
function missing() {
  const { form, task } = now;
  const answer = collect();
  if (form.kind === "pairwise" && answer.grade === null) return "Choose a grade first.";
  if (form.kind === "dialogue" && answer.turns.includes(null)) return `Answer turn ${answer.turns.indexOf(null) + 1} first.`;
  const ratings = answer.ratings || {};
  for (const [i, values] of (ratings.fields || []).entries()) {
    for (const field of form.fields) {
      const [kind, of] = Object.entries(field)[0];
      if ((kind === "Scale" && values[of.name] === null) || (kind === "Choice" && !values[of.name])) {
        return `Response ${letter(i)}: ${of.label} is missing.`;
      }
    }
  }
  const ranks = answer.ranks || ratings.ranks;
  if (ranks && ranks.includes(null)) return `Response ${letter(ranks.indexOf(null))} has no rank.`;
  if (ranks && !form.ties && new Set(ranks).size < task.responses.length) return "Two responses have the same rank.";
  return "";
}

// ---- Differences ----

const words = (text) => text.match(/\s+|[\p{L}\p{N}_']+|[^\s\p{L}\p{N}_']/gu) || [];

/** For each word of `a` whether it is outside of the longest common subsequence with `b`. */
function differing(a, b) {
  const n = a.length, m = b.length;
  if (n * m > 4e6) return a.map(() => false);
  const best = Array.from({ length: n + 1 }, () => new Uint16Array(m + 1));
  for (let i = n - 1; i >= 0; i--) {
    for (let j = m - 1; j >= 0; j--) {
      best[i][j] = a[i] === b[j] ? best[i + 1][j + 1] + 1 : Math.max(best[i + 1][j], best[i][j + 1]);
    }
  }
  const differs = a.map(() => true);
  for (let i = 0, j = 0; i < n && j < m;) {
    if (a[i] === b[j]) { differs[i] = false; i++; j++; }
    else if (best[i + 1][j] >= best[i][j + 1]) i++;
    else j++;
  }
  return differs;
}

function draw(place, text, other) {
  place.replaceChildren();
  if (other === null) { place.textContent = text; return; }
  const own = words(text);
  const differs = differing(own, words(other));
  own.forEach((word, i) => place.append(differs[i] && word.trim() ? el("mark", {}, word) : word));
}

/** Marks the words in which responses differ: two from each other, more from the current one. */
function mark() {
  $("differences").setAttribute("aria-pressed", String(marked));
  const { form, task } = now;
  const groups = form.kind === "dialogue"
    ? task.turns.map((turn, t) => [document.querySelector(`.turn[data-turn="${t}"]`), turn.responses])
    : [[document, task.responses]];
  for (const [place, responses] of groups) {
    responses.forEach((text, i) => {
      const body = place.querySelector(`[data-text="${i}"]`);
      const reference = responses.length === 2 ? 1 - i : current;
      draw(body, text, marked && responses.length > 1 && reference !== i ? responses[reference] : null);
    });
  }
}

function choose(i) {
  if (i === current && document.querySelector(".card.current")) return;
  current = i;
  for (const one of document.querySelectorAll(".card")) one.classList.toggle("current", Number(one.dataset.index) === i);
  if (marked && now.form.kind !== "dialogue" && now.task.responses.length > 2) mark();
}

// ---- Actions ----

function submit() {
  if (!now || now.state !== "task") return;
  const problem = missing();
  if (problem) { say(problem, true); return; }
  send("judge", { nonce: now.task.nonce, answer: collect(), seconds }, "Saved.");
}
function undo() { send("undo", {}, "Taken back."); }
function differences() { marked = !marked; mark(); }
function skip() {
  if (!now || now.state !== "task") return;
  $("reason").value = "";
  $("skip-dialog").showModal();
  $("reason").focus();
}
function help() {
  const kind = now && now.form ? now.form.kind : "";
  const keys = [
    ["1 .. 9", { pairwise: "the grades, from left to right", dialogue: "the grades of the open turn, from left to right",
      rank: "the rank of the marked response", rate: "the first scale of the marked response" }[kind] || "the answers"],
    ["Shift + 1 .. 9", "the rank of the marked response, in forms with ratings"],
    ["\u2190 \u2192", "the marked response"],
    ["Enter", "save and go on (Ctrl + Enter within a text)"],
    ["s", "skip with a reason"], ["u", "undo the last answer"], ["d", "mark differences"], ["p", "to the prompt"], ["?", "these keys"],
  ];
  $("keys").replaceChildren();
  for (const [key, text] of keys) $("keys").append(el("dt", {}, el("kbd", {}, key)), el("dd", {}, text));
  $("help-dialog").showModal();
}

/** A digit: a grade, a rank or a rating. */
function digit(n, shift) {
  const { form, task } = now;
  if (form.kind === "pairwise" || form.kind === "dialogue") {
    const grade = form.grades[n - 1];
    if (!grade) return;
    let name = "grade";
    if (form.kind === "dialogue") {
      const open = task.turns.findIndex((_, t) => valueOf(`turn-${t}`) === null);
      name = `turn-${open < 0 ? task.turns.length - 1 : open}`;
    }
    check(name, String(grade[0]));
    say(grade[1]);
    changed();
    return;
  }
  const ranks = form.kind === "rank" || shift;
  if (ranks && form.rank && task.responses.length > 1) {
    if (n > task.responses.length) return;
    setRank(current, n);
    say(`Response ${letter(current)}: rank ${n}`);
    return;
  }
  const scale = (form.fields || []).find((field) => field.Scale);
  if (scale && n >= scale.Scale.from && n <= scale.Scale.to) {
    check(`field-${current}-${scale.Scale.name}`, String(n));
    say(`Response ${letter(current)}: ${scale.Scale.label} ${n}`);
    changed();
  }
}

function step(by) {
  const cards = document.querySelectorAll("#task > .responses > .card");
  if (!cards.length) return;
  choose((current + by + cards.length) % cards.length);
  cards[current].querySelector(".text").focus();
}

document.addEventListener("keydown", (event) => {
  if (document.querySelector("dialog[open]")) return;
  const target = event.target;
  const typing = target.matches("textarea, select, input:not([type])");
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) { event.preventDefault(); submit(); return; }
  if (typing || event.ctrlKey || event.metaKey || event.altKey || !now) return;
  const code = /^Digit([1-9])$/.exec(event.code) || /^Numpad([1-9])$/.exec(event.code);
  const radio = target.matches("input[type=radio]");
  if (event.key === "?") help();
  else if (event.key === "u") undo();
  else if (now.state !== "task") return;
  else if (code) digit(Number(code[1]), event.shiftKey);
  else if (event.key === "Enter" && !target.matches("button, a")) submit();
  else if (event.key === "s") skip();
  else if (event.key === "d") differences();
  else if (event.key === "p") $("prompt").focus();
  else if (event.key === "ArrowRight" && !radio) step(1);
  else if (event.key === "ArrowLeft" && !radio) step(-1);
  else return;
  event.preventDefault();
});

$("form").addEventListener("submit", (event) => { event.preventDefault(); submit(); });
$("form").addEventListener("change", (event) => {
  const of = /^rank-(\d+)$/.exec(event.target.name || "");
  // A radio without ties takes the rank from whoever has it.
  if (of && !now.form.ties) setRank(Number(of[1]), Number(event.target.value));
  changed();
});
$("form").addEventListener("input", remember);
$("skip").addEventListener("click", skip);
$("undo").addEventListener("click", undo);
$("over-undo").addEventListener("click", undo);
$("differences").addEventListener("click", differences);
$("help").addEventListener("click", help);
$("help-close").addEventListener("click", () => $("help-dialog").close());
$("skip-cancel").addEventListener("click", () => $("skip-dialog").close());
$("skip-form").addEventListener("submit", (event) => {
  event.preventDefault();
  const reason = $("reason").value.trim();
  if (!reason) return;
  $("skip-dialog").close();
  send("skip", { nonce: now.task.nonce, reason, seconds }, "Skipped.");
});
for (const reason of ["cannot be decided", "not understood", "not in my language", "offensive", "broken text"]) {
  const button = el("button", { type: "button" }, reason);
  button.addEventListener("click", () => { $("reason").value = reason; $("reason").focus(); });
  $("reasons").append(button);
}

// ---- Time: only while the page is visible ----

let last = performance.now();
function tick() {
  const at = performance.now();
  // A page that slept, with its machine, was not looked at.
  if (document.visibilityState === "visible" && now && now.state === "task") seconds += Math.min((at - last) / 1000, 5);
  last = at;
  const whole = Math.floor(seconds);
  $("timer").textContent = `${Math.floor(whole / 60)}:${String(whole % 60).padStart(2, "0")}`;
}
setInterval(tick, 1000);
setInterval(() => {
  if (now && now.state === "task" && document.visibilityState === "visible") {
    remember();
    ask("alive", { nonce: now.task.nonce }).catch(() => {});
  }
}, 60000);
window.addEventListener("pagehide", remember);
window.addEventListener("hashchange", () => location.reload());

if (token) send("next");
else say("This address has no token: open the one that `temper label` has printed for you.", true);
