"use strict";
// Two policies answer every message. A thumb says which answer is better and becomes a row of preferences; both sides then go on
// from the better answer. A policy without a chat template continues each message as a text by itself. All text is set by
// textContent.

const at = (id) => document.getElementById(id);
const sides = ["a", "b"].map((name) => ({
  talk: at("talk-" + name), select: at("model-" + name), messages: [], answer: null,
}));
// Policies without a chat template.
const plain = new Set();
// Most new tokens of a text, unless the user says otherwise: those of `temper generate`.
const TEXT_TOKENS = 64;
let takesPreferences = false;
let asking = null;

function headers() {
  const result = { "Content-Type": "application/json" };
  const key = at("key").value;
  if (key) result.Authorization = "Bearer " + key;
  return result;
}

function notice(text, bad) {
  at("notice").textContent = text;
  at("notice").className = bad ? "bad" : "";
}

async function call(path, body) {
  const response = await fetch(path, {
    method: body ? "POST" : "GET", headers: headers(), body: body && JSON.stringify(body),
  });
  if (!response.ok) throw new Error(await reason(response));
  return response.json();
}

// The server's own words, or the status.
async function reason(response) {
  const text = await response.text();
  try {
    return JSON.parse(text).error.message;
  } catch {
    return text || "status " + response.status;
  }
}

async function connect() {
  try {
    const [models, preferences] = await Promise.all([call("/v1/models"), call("/preferences")]);
    takesPreferences = preferences.takes;
    const policies = models.data.filter((m) => m.kind === "policy");
    const names = policies.map((m) => m.id);
    plain.clear();
    policies.filter((m) => !m.has_chat_template).forEach((m) => plain.add(m.id));
    sides.forEach((side, place) => {
      const before = side.select.value;
      side.select.replaceChildren(...names.map((name) => {
        const option = document.createElement("option");
        option.value = name;
        option.textContent = plain.has(name) ? name + " (continues texts)" : name;
        return option;
      }));
      if (names.length) side.select.value = names.includes(before) ? before : names[Math.min(place, names.length - 1)];
    });
    at("send").disabled = names.length === 0;
    if (!names.length) notice("This server has no policy.", true);
    else if (!takesPreferences) notice("Thumbs are not kept: start the server with --preferences FILE.jsonl.");
    else notice("");
  } catch (error) {
    notice(error.message, true);
    at("send").disabled = true;
    document.querySelector("details").open = true;
  }
}

function entry(side, role, text) {
  const item = document.createElement("li");
  item.className = role;
  const said = document.createElement("div");
  said.className = "said";
  said.textContent = text;
  item.append(said);
  side.talk.append(item);
  return { item, said };
}

function note(item, text, bad) {
  const line = document.createElement("div");
  line.className = bad ? "note bad" : "note";
  line.textContent = text;
  item.append(line);
}

function settings() {
  const body = { temperature: Number(at("temperature").value), top_p: Number(at("top_p").value) };
  if (at("max_tokens").value) body.max_tokens = Number(at("max_tokens").value);
  return body;
}

// The conversation as the model reads it; without a chat template the last message.
function prompt(side) {
  if (plain.has(side.select.value)) return side.messages.at(-1).content;
  const system = at("system").value.trim();
  return (system ? [{ role: "system", content: system }] : []).concat(side.messages);
}

async function stream(side, place, signal) {
  const shown = entry(side, "assistant", "");
  side.answer = { text: "", done: false, item: shown.item };
  const answer = side.answer;
  try {
    const isPlain = plain.has(side.select.value);
    const body = {
      ...(isPlain ? { max_tokens: TEXT_TOKENS } : {}), ...settings(), model: side.select.value,
      [isPlain ? "prompt" : "messages"]: prompt(side), stream: true, stream_options: { include_usage: true },
    };
    // The same seed on both sides would give one model the same answer twice.
    if (at("seed").value) body.seed = Number(at("seed").value) + place;
    const begin = performance.now();
    const response = await fetch(isPlain ? "/v1/completions" : "/v1/chat/completions", {
      method: "POST", headers: headers(), body: JSON.stringify(body), signal,
    });
    if (!response.ok) throw new Error(await reason(response));
    const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
    let rest = "", finish = null, usage = null;
    for (;;) {
      const { value, done } = await reader.read();
      if (done) break;
      const events = (rest + value).split("\n\n");
      rest = events.pop();
      for (const event of events) {
        const data = event.replace(/^data: /, "");
        if (data === "[DONE]") continue;
        const chunk = JSON.parse(data);
        if (chunk.error) throw new Error(chunk.error.message);
        if (chunk.usage) usage = chunk.usage;
        for (const choice of chunk.choices) {
          answer.text += (isPlain ? choice.text : choice.delta.content) || "";
          finish = choice.finish_reason || finish;
        }
        shown.said.textContent = answer.text;
      }
    }
    answer.done = finish !== null;
    if (!answer.done) throw new Error("the answer was cut");
    const seconds = (performance.now() - begin) / 1000;
    const tokens = usage ? usage.completion_tokens + " tokens, " + seconds.toFixed(1) + " s" : "";
    note(shown.item, tokens + (finish === "length" ? "; cut at its limit" : ""));
  } catch (error) {
    note(shown.item, error.name === "AbortError" ? "stopped" : error.message, error.name !== "AbortError");
  }
}

function thumbs() {
  const [left, right] = sides;
  if (!left.answer?.done || !right.answer?.done) return;
  if (!takesPreferences) return;
  if (typeof prompt(left) !== typeof prompt(right)) {
    notice("One model has a chat template and the other continues texts: their prompts differ, so that their answers cannot be compared.");
    return;
  }
  if (JSON.stringify(prompt(left)) !== JSON.stringify(prompt(right))) {
    notice("The two conversations differ, so that their answers cannot be compared; a new conversation is common again.");
    return;
  }
  if (left.answer.text === right.answer.text) {
    notice("Both answers are the same.");
    return;
  }
  const question = prompt(left);
  const answers = sides.map((side) => ({ text: side.answer.text, model: side.select.value, item: side.answer.item }));
  const buttons = [];
  const choose = async (chosen, pressed) => {
    buttons.forEach((button) => { button.disabled = true; });
    const rejected = 1 - chosen;
    try {
      await call("/preferences", {
        prompt: question, chosen: answers[chosen].text, rejected: answers[rejected].text,
        chosen_model: answers[chosen].model, rejected_model: answers[rejected].model,
      });
      pressed.setAttribute("aria-pressed", "true");
      // Both go on from the better answer.
      sides[rejected].answer = { ...sides[rejected].answer, text: answers[chosen].text };
      const goesOn = typeof question === "string" ? "" : " Both sides go on from it.";
      notice("Kept: the " + (chosen === 0 ? "left" : "right") + " answer is better." + goesOn);
    } catch (error) {
      buttons.forEach((button) => { button.disabled = false; });
      notice("Not kept: " + error.message, true);
    }
  };
  answers.forEach((answer, place) => {
    const row = document.createElement("div");
    row.className = "thumbs";
    const name = place === 0 ? "left" : "right";
    for (const [sign, says, chosen] of [["\u{1F44D}", "better", place], ["\u{1F44E}", "worse", 1 - place]]) {
      const button = document.createElement("button");
      button.type = "button";
      // Not every machine has a font with the signs.
      button.textContent = sign + " " + says;
      button.setAttribute("aria-label", "the " + name + " answer is " + says);
      button.setAttribute("aria-pressed", "false");
      button.addEventListener("click", () => choose(chosen, button));
      buttons.push(button);
      row.append(button);
    }
    answer.item.append(row);
  });
}

async function ask(text) {
  for (const side of sides) {
    if (side.answer?.done) side.messages.push({ role: "assistant", content: side.answer.text });
    // An answer that failed or was stopped is not part of the conversation, nor is its question.
    else if (side.answer) side.messages.pop();
    side.talk.querySelectorAll(".thumbs button").forEach((button) => { button.disabled = true; });
    side.messages.push({ role: "user", content: text });
    entry(side, "user", text);
  }
  notice("");
  asking = new AbortController();
  at("send").hidden = true;
  at("stop").hidden = false;
  await Promise.all(sides.map((side, place) => stream(side, place, asking.signal)));
  asking = null;
  at("send").hidden = false;
  at("stop").hidden = true;
  thumbs();
  at("message").focus();
}

function reset() {
  asking?.abort();
  for (const side of sides) {
    side.messages = [];
    side.answer = null;
    side.talk.replaceChildren();
  }
  notice("");
}

at("ask").addEventListener("submit", (event) => {
  event.preventDefault();
  const text = at("message").value.trim();
  if (!text || asking || at("send").disabled) return;
  at("message").value = "";
  ask(text);
});
at("message").addEventListener("keydown", (event) => {
  if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
    event.preventDefault();
    at("ask").requestSubmit();
  }
});
at("stop").addEventListener("click", () => asking?.abort());
at("reset").addEventListener("click", reset);
at("key").value = sessionStorage.getItem("key") || "";
at("key").addEventListener("change", () => {
  sessionStorage.setItem("key", at("key").value);
  connect();
});
connect();
