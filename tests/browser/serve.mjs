// Drives the chat page of `temper serve` in Chromium: a question to both sides by keyboard, a thumb by mouse and by keyboard, a stop,
// script in answers, dark and light, phone width. Run in a folder with playwright-core:
//
//   temper serve --model NAME --preferences thumbs.jsonl --port 8123
//   node serve.mjs http://127.0.0.1:8123 thumbs.jsonl SHOTS
//
// Screenshots go to the folder SHOTS. Exits with 1 at the first thing that is wrong.

import assert from "node:assert/strict";
import { existsSync, mkdirSync, readFileSync } from "node:fs";
import { createRequire } from "node:module";

const { chromium } = createRequire(process.cwd() + "/")("playwright-core");
const [url, file, shots] = process.argv.slice(2);
mkdirSync(shots, { recursive: true });
const rows = () => (existsSync(file) ? readFileSync(file, "utf8").trim().split("\n").filter(Boolean).map(JSON.parse) : []);

const browser = await chromium.launch({
  executablePath: process.env.CHROMIUM || "/usr/bin/chromium", args: ["--no-sandbox", "--disable-dev-shm-usage"],
});
const page = await browser.newPage({ viewport: { width: 1200, height: 800 } });
const complaints = [];
page.on("console", (line) => line.type() === "error" && complaints.push(line.text()));
page.on("pageerror", (error) => complaints.push(String(error)));
page.on("dialog", (dialog) => complaints.push("dialog: " + dialog.message()));
const foreign = [];
page.on("request", (request) => request.url().startsWith(url) || foreign.push(request.url()));
await page.goto(url);
await page.waitForFunction(() => document.querySelector("#model-a").options.length > 0);

async function ask(text) {
  await page.focus("#message");
  await page.keyboard.type(text);
  await page.keyboard.press("Enter");
}
const idle = () => page.waitForSelector("#send:not([hidden])", { timeout: 120_000 });

// A question by keyboard, answered on both sides; a thumb by mouse.
const before = rows().length;
await page.click("summary");
await page.fill("#max_tokens", "20");
await page.fill("#temperature", "1");
await ask("<img src=x onerror=alert(1)> Say something.");
await idle();
assert.equal(await page.locator("li.user").count(), 2);
assert.equal(await page.locator("li.assistant").count(), 2);
assert.equal(await page.locator("img").count(), 0);
await page.screenshot({ path: `${shots}/light.png` });
await page.locator("#talk-b .thumbs button").first().click();
await page.waitForFunction(() => document.querySelector("#notice").textContent.startsWith("Kept: the right"));
let kept = rows();
assert.equal(kept.length, before + 1);
const right = await page.locator("#talk-b li.assistant .said").first().textContent();
assert.equal(kept.at(-1).chosen[0].content, right);
assert.equal(kept.at(-1).prompt.at(-1).content, "<img src=x onerror=alert(1)> Say something.");

// Both sides go on from the better answer; a thumb by keyboard.
await ask("And then?");
await idle();
await page.focus("#talk-a li:last-child .thumbs button:last-child");
await page.keyboard.press("Enter");
await page.waitForFunction(() => document.querySelector("#notice").textContent.startsWith("Kept: the right"));
kept = rows();
assert.equal(kept.length, before + 2);
assert.deepEqual(kept.at(-1).prompt.map((message) => message.role), ["user", "assistant", "user"]);
assert.equal(kept.at(-1).prompt[1].content, right);

// A stop: the answer ends, and the next question stands alone.
await page.fill("#max_tokens", "200");
await ask("Once more, and long.");
await page.click("#stop");
await idle();
assert.ok((await page.locator("li:last-child .note").allTextContents()).some((text) => /stopped|tokens/.test(text)));
await page.click("#reset");
assert.equal(await page.locator("li").count(), 0);

// Dark, and a phone.
await page.emulateMedia({ colorScheme: "dark" });
await page.fill("#max_tokens", "20");
await ask("Hello.");
await idle();
await page.screenshot({ path: `${shots}/dark.png` });
await page.setViewportSize({ width: 375, height: 740 });
await page.screenshot({ path: `${shots}/phone.png`, fullPage: true });
const width = await page.evaluate(() => document.documentElement.scrollWidth);
assert.ok(width <= 375, `the page is ${width} wide on a phone`);

assert.deepEqual(foreign, []);
assert.deepEqual(complaints, []);
await browser.close();
console.log("the chat page: all well");
