// What the scripts share: temper in a folder of its own, Chromium, axe-core. See README.md.
import assert from "node:assert/strict";
import { spawn, spawnSync } from "node:child_process";
import { createRequire } from "node:module";
import { mkdirSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { dirname, join, resolve } from "node:path";
import { fileURLToPath } from "node:url";
import { chromium } from "playwright-core";

export const repository = resolve(dirname(fileURLToPath(import.meta.url)), "../..");
const temper = resolve(process.env.TEMPER || join(repository, "target/debug/temper"));
const axe = readFileSync(createRequire(import.meta.url).resolve("axe-core/axe.min.js"), "utf8");
const shots = process.argv[2] ? resolve(process.argv[2]) : null;
if (shots) mkdirSync(shots, { recursive: true });
// Milliseconds that a page waits for what it expects.
const patience = Number(process.env.PATIENCE || 60) * 1000;

export const folder = mkdtempSync(join(tmpdir(), "temper-pages-"));
export const lines = (name) => readFileSync(join(folder, name), "utf8").trim().split("\n").map((line) => JSON.parse(line));
export const write = (name, rows) => writeFileSync(join(folder, name), rows.map((row) => JSON.stringify(row) + "\n").join(""));

/** Runs temper to its end; gives what it prints. */
export function run(...args) {
  const { status, stdout, stderr } = spawnSync(temper, args, { cwd: folder, encoding: "utf8" });
  assert.equal(status, 0, `temper ${args.join(" ")}: ${stderr}`);
  return stdout;
}

const running = new Set();

/** Starts temper; waits until `ready` finds something in what it has printed to stdout and stderr. */
export async function start(args, ready) {
  const child = spawn(temper, args, { cwd: folder });
  running.add(child);
  let out = "", err = "";
  const exit = new Promise((done) => child.on("exit", (code, signal) => { running.delete(child); done({ code, signal }); }));
  const found = await new Promise((done, fail) => {
    const look = () => { const found = ready(out, err); if (found) done(found); };
    child.stdout.on("data", (data) => { out += data; look(); });
    child.stderr.on("data", (data) => { err += data; look(); });
    child.on("exit", () => fail(new Error(`temper ${args.join(" ")} ended: ${err}`)));
  });
  return { child, found, exit, said: () => err };
}

export async function end(server, signal = "SIGTERM") {
  server.child.kill(signal);
  return server.exit;
}

/** Findings of axe-core on the page; serious ones fail. */
export async function accessible(page, what) {
  await page.evaluate(axe);
  const { violations } = await page.evaluate(() => window.axe.run(document, { resultTypes: ["violations"] }));
  for (const { id, impact, nodes } of violations) console.log(`  axe, ${what}: ${impact} ${id}: ${nodes.map((n) => n.target).join(", ")}`);
  assert.deepEqual(violations.filter((v) => ["serious", "critical"].includes(v.impact)).map((v) => v.id), [], what);
}

/** The page is not wider than its window. */
export async function fits(page) {
  const [wide, window] = await page.evaluate(() => [document.documentElement.scrollWidth, document.documentElement.clientWidth]);
  assert(wide <= window, `the page is ${wide} wide in a window of ${window}`);
}

export async function shot(page, name) {
  if (shots) await page.screenshot({ path: join(shots, name + ".png"), fullPage: true });
}

const browser = await chromium.launch({
  executablePath: process.env.CHROMIUM || "/usr/bin/chromium",
  args: ["--no-sandbox", "--disable-dev-shm-usage"],
});

/** A page whose `problems` are its errors, its dialogs and its requests to other hosts. */
export async function open(url, options = {}) {
  const context = await browser.newContext({ viewport: { width: 1200, height: 850 }, ...options });
  context.setDefaultTimeout(patience);
  const page = await context.newPage();
  page.problems = [];
  page.on("pageerror", (error) => page.problems.push(String(error)));
  page.on("console", (line) => {
    // A server that is away on purpose is no problem of the page.
    if (line.type() === "error" && !/ERR_CONNECTION|ERR_EMPTY_RESPONSE|ERR_INCOMPLETE/.test(line.text())) page.problems.push(line.text());
  });
  page.on("dialog", (dialog) => page.problems.push("dialog " + dialog.message()));
  page.on("request", (request) => {
    if (new URL(request.url()).hostname !== "127.0.0.1" && !request.url().startsWith("data:")) page.problems.push("request to " + request.url());
  });
  await page.goto(url);
  return page;
}

export const phone = { viewport: { width: 390, height: 844 }, hasTouch: true, isMobile: true };
export const nothing = (page) => assert.deepEqual(page.problems, []);

/** Runs a script; whatever comes of it, nothing is left. */
export async function check(script) {
  try {
    await script();
  } catch (error) {
    console.error(error);
    process.exitCode = 1;
  } finally {
    await browser.close();
    for (const child of running) child.kill("SIGKILL");
    rmSync(folder, { recursive: true, force: true });
  }
}
