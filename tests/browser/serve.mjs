// The chat page of `temper serve` in headless Chromium: see README.md.
import assert from "node:assert/strict";
import { cpSync, existsSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { accessible, check, end, fits, folder, lines, nothing, open, phone, repository, run, shot, start } from "./pages.mjs";

const hostile = "<img src=x onerror=alert(1)><script>alert(1)</script> Say something.";
const rows = () => (existsSync(join(folder, "thumbs.jsonl")) ? lines("thumbs.jsonl") : []);

/** Serves models; opens the page once it knows them. */
async function chat(args, options) {
  const server = await start(["serve", "--port", "0", "--preferences", "thumbs.jsonl", ...args], (_, err) => /listening on (\S+)/.exec(err)?.[1]);
  const page = await open(server.found, options);
  await page.waitForFunction(() => document.querySelector("#model-a").options.length > 0);
  await page.click("summary");
  await page.fill("#max_tokens", "20");
  await page.fill("#temperature", "1");
  return { server, page };
}

async function ask(page, text) {
  await page.fill("#message", text);
  await page.focus("#message");
  await page.keyboard.press("Enter");
}

const idle = (page) => page.waitForSelector("#send:not([hidden])");
const kept = (page, side) => page.waitForFunction((side) => document.querySelector("#notice").textContent.startsWith("Kept: the " + side), side);
const said = (page, side, n = 0) => page.locator(`#talk-${side} li.assistant .said`).nth(n).textContent();

await check(async () => {
  // ---- Two policies with a chat template ----
  cpSync(join(repository, "models/tiny"), join(folder, "chat"), { recursive: true });
  writeFileSync(join(folder, "chat/chat_template.jinja"),
    "{% for m in messages %}{{ '[' + m['role'] + '] ' + m['content'] + '\n' }}{% endfor %}{% if add_generation_prompt %}{{ '[assistant]' }}{% endif %}");
  writeFileSync(join(folder, "sft.ron"), `(name: "s", model: "./chat", stages: [
    Sft(name: "sft", data: (source: Posts(rows: 16, seed: 1)), peft: Lora(rank: 4), optim: (lr: 1e-2), batch_size: 8, max_length: 128)])`);
  run("recipe", "sft.ron", "--output", "run");
  const { server, page } = await chat(["--model", "base=./chat", "--model", "sft=run/sft"]);
  assert.deepEqual(await page.locator("#model-a option").allTextContents(), ["base", "sft"]);
  assert.equal(await page.inputValue("#model-b"), "sft");
  // A question by keyboard, answered on both sides; a thumb by mouse.
  await ask(page, hostile);
  await idle(page);
  assert.equal(await page.locator("li.user").count(), 2);
  assert.equal(await page.locator("li.assistant").count(), 2);
  assert.equal(await page.locator("img").count(), 0);
  await accessible(page, "chat, light");
  await shot(page, "chat-light");
  await page.locator("#talk-b .thumbs button").first().click();
  await kept(page, "right");
  const right = await said(page, "b");
  assert.deepEqual(rows().map((row) => [row.chosen, row.prompt.at(-1).content, row.chosen_model, row.rejected_model]),
    [[[{ role: "assistant", content: right }], hostile, "sft", "base"]]);
  // Both sides go on from the better answer; a thumb by keyboard.
  await ask(page, "And then?");
  await idle(page);
  await page.focus("#talk-a li:last-child .thumbs button:last-child");
  await page.keyboard.press("Enter");
  await kept(page, "right");
  assert.deepEqual(rows()[1].prompt.map((message) => message.role), ["user", "assistant", "user"]);
  assert.equal(rows()[1].prompt[1].content, right);
  // A stop: the answer ends, and a new conversation is empty.
  await page.fill("#max_tokens", "200");
  await page.fill("#message", "Once more, and long.");
  // A small model may be done before a hand is at the button.
  await page.evaluate(() => {
    document.getElementById("ask").requestSubmit();
    setTimeout(() => document.getElementById("stop").click(), 40);
  });
  await idle(page);
  const notes = await page.locator("li:last-child .note").allTextContents();
  assert(notes.length === 2 && notes.every((text) => /stopped|tokens/.test(text)), notes.join());
  if (notes.includes("stopped")) assert.equal(await page.locator("li:last-child .thumbs").count(), 0);
  else console.log("  nothing was left to stop");
  await page.click("#reset");
  assert.equal(await page.locator("li").count(), 0);
  // Dark, and a phone.
  await page.emulateMedia({ colorScheme: "dark" });
  await page.fill("#max_tokens", "20");
  await ask(page, "Hello.");
  await idle(page);
  await accessible(page, "chat, dark");
  await shot(page, "chat-dark");
  await page.setViewportSize(phone.viewport);
  await accessible(page, "chat, phone");
  await shot(page, "chat-phone");
  await fits(page);
  nothing(page);
  // The server goes away: the page says so, and a thumb is not lost without a word.
  await end(server, "SIGKILL");
  await page.locator("#talk-a .thumbs button").first().click();
  await page.waitForFunction(() => document.querySelector("#notice").textContent.startsWith("Not kept"));
  assert.equal(rows().length, 2);
  // What was chosen rates the policies.
  const [rated] = JSON.parse(run("elo", "thumbs.jsonl", "--json", "--anchor", "base"));
  assert.deepEqual(rated.policies.map((policy) => policy.name), ["sft", "base"]);
  console.log("chat: ok");

  // ---- Policies without a template continue texts; a thumb's rows are texts ----
  const texts = await chat(["--model", "tiny", "--model", "other=tiny"]);
  await ask(texts.page, "One day");
  await idle(texts.page);
  await accessible(texts.page, "texts");
  await shot(texts.page, "texts-light");
  await texts.page.locator("#talk-a .thumbs button").first().click();
  await kept(texts.page, "left");
  const row = rows()[2];
  assert.deepEqual([row.prompt, row.chosen, row.rejected], ["One day", await said(texts.page, "a"), await said(texts.page, "b")]);
  nothing(texts.page);
  await end(texts.server);
  console.log("texts: ok");

});
