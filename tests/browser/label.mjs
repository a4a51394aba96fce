// `temper label` in headless Chromium: see README.md.
import assert from "node:assert/strict";
import { writeFileSync } from "node:fs";
import { join } from "node:path";
import { accessible, check, end, fits, folder, lines, nothing, open as visit, phone as onPhone, run, shot, start, write } from "./pages.mjs";

/** Starts a server; gives the addresses of its annotators. */
async function serve(args, annotators) {
  const server = await start(["label", ...args], (out) => {
    const lines = out.split("\n").slice(0, -1);
    return lines.length >= annotators && lines.map((line) => line.split(": ")[1]);
  });
  return { ...server, urls: server.found };
}

/** An annotator's page. */
async function open(url, options) {
  const page = await visit(url, options);
  await page.locator("#work, #over").filter({ visible: true }).first().waitFor();
  return page;
}

const saved = (page, n) => page.waitForFunction((n) => document.getElementById("count").textContent.startsWith(`${n} by you`), n);
const text = (page, i) => page.locator(`[data-text="${i}"]`).first().textContent();

/** Drags as a hand does: the mouse is moving before the page scrolls. */
async function drag(page, from, to) {
  const middle = async (selector) => {
    const { x, y, width, height } = await page.locator(selector).boundingBox();
    return [x + width / 2, y + height / 2];
  };
  await page.locator(from).scrollIntoViewIfNeeded();
  const [x, y] = await middle(from);
  await page.mouse.move(x, y);
  await page.mouse.down();
  await page.mouse.move(x + 8, y + 8, { steps: 4 });
  await page.mouse.move(...await middle(to), { steps: 8 });
  await page.mouse.up();
}

/** A pair's shorter response gets the digit of its side. */
async function judgeByKey(page, keys) {
  const [a, b] = [await text(page, 0), await text(page, 1)];
  await page.keyboard.press(a.length < b.length ? keys[0] : keys[1]);
  await page.keyboard.press("Enter");
}

const script = "<script>document.title='owned'</script><img src=x onerror=\"document.title='owned'\">";
const pair = (i) => {
  const sides = [" word".repeat(1 + (i % 5)), " thing".repeat(6 + (i % 3))];
  return { prompt: `Post ${i}.\n\nTL;DR:`, responses: i % 2 ? sides.reverse() : sides, policies: ["sft", "ppo"] };
};

await check(async () => {
  // ---- Pairs by keyboard, two annotators at once, reload, kill, resume ----
  write("pairs.jsonl", Array.from({ length: 24 }, (_, i) => pair(i)));
  let server = await serve(["--data", "pairs.jsonl", "--store", "pairs.db", "--annotators", "ann,bob", "--grades", "4", "--no-ties", "--port", "0"], 2);
  let ann = await open(server.urls[0]);
  const bob = await open(server.urls[1]);
  await accessible(ann, "pairwise, light");
  await shot(ann, "pairwise-light");
  const prompts = new Set();
  for (let n = 1; n <= 6; n++) {
    for (const page of [ann, bob]) {
      const prompt = await page.locator("#prompt").textContent();
      assert(!prompts.has(prompt), "one task in two hands");
      prompts.add(prompt);
    }
    await Promise.all([judgeByKey(ann, ["1", "8"]), judgeByKey(bob, ["2", "7"])]);
    await Promise.all([saved(ann, n), saved(bob, n)]);
  }
  // A reload in the middle: the same task, with what was chosen.
  const before = await ann.locator("#prompt").textContent();
  await ann.keyboard.press((await text(ann, 0)).length < (await text(ann, 1)).length ? "3" : "6");
  await ann.keyboard.press("d");
  assert.equal(await ann.locator("#differences").getAttribute("aria-pressed"), "true");
  assert(await ann.locator("mark").count() > 0, "no differences are marked");
  await shot(ann, "pairwise-differences");
  await ann.reload();
  await ann.locator("#work").waitFor();
  assert.equal(await ann.locator("#prompt").textContent(), before);
  assert.equal(await ann.locator("#form input:checked").count(), 1);
  // Killed in the middle: the answer waits until a server is there again, at the same port.
  const port = new URL(server.urls[0]).port;
  await end(server, "SIGKILL");
  await ann.keyboard.press("Enter");
  await ann.waitForFunction(() => document.getElementById("notice").textContent.includes("does not answer"));
  server = await serve(["--store", "pairs.db", "--port", port], 2);
  await saved(ann, 7);
  // Undo: the earlier answer is filled in.
  await ann.keyboard.press("u");
  await ann.waitForFunction(() => document.getElementById("count").textContent.startsWith("6 by you"));
  assert.equal(await ann.locator("#prompt").textContent(), before);
  assert.equal(await ann.locator("#form input:checked").count(), 1);
  await ann.keyboard.press("Enter");
  await saved(ann, 7);
  // Skip with a reason.
  await ann.keyboard.press("s");
  await accessible(ann, "skip dialog");
  await ann.getByRole("button", { name: "not understood" }).click();
  await ann.keyboard.press("Enter");
  await ann.waitForFunction(() => document.getElementById("count").textContent.includes("1 skipped"));
  // Another annotator's address, and none.
  const lost = await visit(server.urls[0].split("#")[0] + "#0123456789abcdef0123456789abcdef");
  await lost.waitForFunction(() => document.getElementById("notice").textContent.includes("not valid"));
  assert.equal(await lost.locator("#work").isVisible(), false);
  let of_ann = 7, of_bob = 6;
  while (await ann.locator("#work").isVisible()) {
    await judgeByKey(ann, ["1", "8"]);
    of_ann++;
    await saved(ann, of_ann);
    if (of_ann + of_bob >= 22) break;
  }
  while (of_ann + of_bob < 24) {
    await bob.reload();
    await bob.locator("#work").waitFor();
    await judgeByKey(bob, ["2", "7"]);
    of_bob++;
    await saved(bob, of_bob);
  }
  await bob.locator("#over").waitFor();
  await accessible(bob, "all done");
  nothing(ann);
  nothing(bob);
  await end(server);
  console.log("pairs: ok");

  // ---- Export, reward model ----
  run("label", "--store", "pairs.db", "--export", "labels");
  const rows = lines("labels/preferences.jsonl");
  assert.equal(rows.length, 24);
  assert(rows.every((row) => row.chosen.startsWith(" word")));
  writeFileSync(join(folder, "rm.ron"), `(name: "rm", model: "tiny", stages: [RewardModel(name: "rm", init: Base,
    data: (source: Jsonl("labels/preferences.jsonl")), eval_data: (source: Jsonl("labels/preferences.jsonl")), use_margin: true,
    peft: Lora(rank: 4), optim: (lr: 1e-2), batch_size: 8, epochs: 4, max_length: 128)])`);
  run("recipe", "rm.ron", "--output", "run");
  const accuracy = lines("run/rm/metrics.jsonl").map((row) => row["eval/accuracy"]).filter((x) => x !== undefined).at(-1);
  assert(accuracy > 0.9, `accuracy ${accuracy}`);
  console.log(`export and reward model: ok, accuracy ${accuracy}`);

  // ---- Ranking by keyboard, by click and by drag, with hostile texts, on dark ----
  const words = ["a good answer", "an answer", "a bad answer", script];
  write("ranked.jsonl", Array.from({ length: 3 }, (_, i) => ({
    prompt: [{ role: "user", content: `Question ${i} ${script}` }], responses: words.map((word) => `${word} ${i}`),
  })));
  server = await serve(["--data", "ranked.jsonl", "--store", "ranked.db", "--form", "rank", "--port", "0"], 1);
  const dark = await open(server.urls[0], { colorScheme: "dark" });
  await accessible(dark, "rank, dark");
  const wanted = { "a good": 1, "an ans": 2, "a bad ": 3, "<scrip": 3 };
  const rankOf = async (i) => wanted[(await text(dark, i)).slice(0, 6)];
  // By keyboard: arrows choose a response, digits rank it.
  for (let i = 0; i < 4; i++) {
    await dark.keyboard.press(String(await rankOf(i)));
    await dark.keyboard.press("ArrowRight");
  }
  assert.equal(await dark.locator(".tile").count(), 4);
  await shot(dark, "rank-dark");
  await dark.keyboard.press("Enter");
  await saved(dark, 1);
  // By drag, onto the columns; the last one by a click on its rank.
  for (let i = 0; i < 3; i++) {
    await drag(dark, `.grip[data-drag="${i}"]`, `.slot[data-rank="${await rankOf(i)}"]`);
  }
  await dark.locator('input[name="rank-3"]').nth((await rankOf(3)) - 1).check({ force: true });
  await dark.locator("#submit").click();
  await saved(dark, 2);
  // Without a rank for all, nothing is saved.
  await dark.keyboard.press("1");
  await dark.keyboard.press("Enter");
  await dark.waitForFunction(() => document.getElementById("notice").textContent.includes("has no rank"));
  assert.equal(await dark.title(), "temper label", "a text of the data ran as script");
  assert(await dark.locator("img").count() === 0);
  nothing(dark);
  await end(server);
  for (const { answer, responses } of run("label", "--store", "ranked.db", "--export", "ranked") && lines("ranked/judgements.jsonl")) {
    assert.deepEqual(answer.ranks, responses.map((response) => wanted[response.slice(0, 6)]));
  }
  console.log("ranking: ok");

  // ---- InstructGPT's form on a phone, and light ----
  write("rated.jsonl", [{ prompt: "Explain the tides.", responses: ["The moon pulls.", "It is magic."] }]);
  server = await serve(["--data", "rated.jsonl", "--store", "rated.db", "--form", "instructgpt", "--port", "0"], 1);
  const phone = await open(server.urls[0], onPhone);
  await accessible(phone, "instructgpt, phone");
  await fits(phone);
  const first = (await text(phone, 0)).startsWith("The moon");
  await phone.locator(`input[name="field-0-overall"]`).nth(first ? 5 : 1).check({ force: true });
  await phone.locator(`input[name="field-1-overall"]`).nth(first ? 1 : 5).check({ force: true });
  await phone.locator(`input[name="field-${first ? 1 : 0}-hallucination"]`).check();
  await phone.locator(`textarea[name="field-0-notes"]`).fill("a note, with s and u and d");
  await phone.locator('input[name="rank-0"]').nth(first ? 0 : 1).check({ force: true });
  await phone.locator('input[name="rank-1"]').nth(first ? 1 : 0).check({ force: true });
  await shot(phone, "instructgpt-phone");
  await phone.locator("#submit").tap();
  await phone.locator("#over").waitFor();
  nothing(phone);
  await end(server);
  run("label", "--store", "rated.db", "--export", "rated");
  const rated = Object.fromEntries(lines("rated/ratings.jsonl").map((row) => [row.completion, row]));
  assert.deepEqual([rated["The moon pulls."].rating, rated["It is magic."].rating, rated["It is magic."].hallucination], [6, 2, 1]);
  const [preferred] = lines("rated/preferences.jsonl");
  assert.equal(preferred.chosen, "The moon pulls.");
  console.log("InstructGPT's form: ok");

  // ---- Own fields, and a dialogue ----
  writeFileSync(join(folder, "form.ron"), `(instructions: "How helpful is the answer?", fields: [
    Scale(name: "helpful", label: "Helpful", from: 1, to: 5), Choice(name: "tone", label: "Tone", options: ["warm", "cold"])])`);
  write("single.jsonl", [{ prompt: "Hello", completion: "Hi." }]);
  server = await serve(["--data", "single.jsonl", "--store", "own.db", "--form", "form.ron", "--port", "0"], 1);
  const own = await open(server.urls[0]);
  await accessible(own, "own fields");
  await own.keyboard.press("4");
  await own.locator("select").selectOption("warm");
  await shot(own, "own-light");
  await own.locator("#submit").click();
  await own.locator("#over").waitFor();
  nothing(own);
  await end(server);
  write("dialogue.jsonl", [{ turns: [
    { prompt: "Hello", responses: ["Hi.", "What?"], continued: 0 }, { prompt: "A joke?", responses: ["No.", "Knock, knock."] },
  ] }]);
  server = await serve(["--data", "dialogue.jsonl", "--store", "dialogue.db", "--form", "dialogue", "--port", "0"], 1);
  const dialogue = await open(server.urls[0], { colorScheme: "dark" });
  await accessible(dialogue, "dialogue, dark");
  assert.equal(await dialogue.locator(".turn").filter({ visible: true }).count(), 1);
  await dialogue.keyboard.press("1");
  assert.equal(await dialogue.locator(".turn").filter({ visible: true }).count(), 2);
  await dialogue.keyboard.press("2");
  await shot(dialogue, "dialogue-dark");
  await dialogue.keyboard.press("?");
  await accessible(dialogue, "keys");
  await shot(dialogue, "keys-dark");
  await dialogue.keyboard.press("Escape");
  await dialogue.keyboard.press("Control+Enter");
  await dialogue.locator("#over").waitFor();
  nothing(dialogue);
  await end(server);
  console.log("own fields and dialogue: ok");
});
