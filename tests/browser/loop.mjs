// The loop of docs/people.md, command by command, with a person's part done in headless Chromium: see README.md.
import assert from "node:assert/strict";
import { cpSync } from "node:fs";
import { join } from "node:path";
import { accessible, check, end, folder, lines, nothing, open, repository, run, shot, start, write } from "./pages.mjs";

const begun = Date.now();
const log = (text) => console.log(`${((Date.now() - begun) / 1000).toFixed(0).padStart(5)} s  ${text}`);
const command = (args) => { log("$ temper " + args); return args.split(" "); };

/** How well a text sums up a post, to the person at this desk: words of the post, each once, and not many others. */
function worth(prompt, text) {
  const words = (text) => text.toLowerCase().match(/[a-z]+/g) || [];
  const post = new Set(words(prompt));
  const found = words(text);
  return new Set(found.filter((word) => post.has(word))).size - 0.3 * found.length;
}

await check(async () => {
  cpSync(join(repository, "recipes"), join(folder, "recipes"), { recursive: true });
  // SFT and pairs; then the run waits for people.
  const going = await start(command("recipe recipes/people.ron"), (_, err) => /http:\S+#\w+/.exec(err)?.[0]);
  log(going.said().split("\n").filter((line) => line.includes("waits for people")).join(""));
  const ann = await open(going.found);
  await ann.locator("#work").waitFor();
  for (let n = 1; n <= 30; n++) {
    const texts = [];
    for (const i of [0, 1]) texts.push(await ann.locator(`[data-text="${i}"]`).first().textContent());
    const prompt = await ann.locator("#prompt").textContent();
    const better = worth(prompt, texts[0]) - worth(prompt, texts[1]);
    if (n === 1) await shot(ann, "loop-label");
    // Grades from left to right: four for the left one, a tie, four for the right one.
    await ann.keyboard.press(Math.abs(better) < 0.2 ? "5" : better > 0 ? (better > 1 ? "1" : "3") : better < -1 ? "9" : "7");
    await ann.keyboard.press("Enter");
    if (n < 30) await ann.waitForFunction((n) => document.getElementById("count").textContent.startsWith(`${n} by you`), n);
  }
  log("30 pairs judged");
  // Reward model and PPO go on by themselves.
  assert.deepEqual(await going.exit, { code: 0, signal: null }, going.said());
  const last = (stage, metric) => lines(`runs/people/${stage}/metrics.jsonl`).map((row) => row[metric]).filter((x) => x !== undefined).at(-1);
  log(`the run is over: ${lines("runs/people/labels/train.jsonl").length} comparisons of people, ${lines("runs/people/gold/train.jsonl").length} of gold; ` +
    `accuracy of the reward model ${last("rm", "eval/accuracy")}`);
  const gold = lines("runs/people/ppo/metrics.jsonl").map((row) => row["eval/gold_scores"]).filter((x) => x !== undefined);
  log(`gold scores along PPO: ${gold.map((x) => x.toFixed(3)).join(", ")}`);
  const report = run(...command("label --store runs/people/labels/labels.db --report"));
  assert(report.includes("30 judgements"), report);
  log("\n" + report);

  // Serve, chat, rate.
  const server = await start(command("serve --run runs/people --stage sft,ppo,rm --preferences thumbs.jsonl"), (_, err) => /listening on (\S+)/.exec(err)?.[1]);
  const chat = await open(server.found);
  await chat.waitForFunction(() => document.querySelector("#model-a").options.length > 0);
  const posts = lines("runs/people/gold_pairs/valid.jsonl").map((row) => row.prompt).slice(0, 12);
  let thumbs = 0;
  for (const post of posts) {
    await chat.fill("#message", post);
    await chat.focus("#message");
    await chat.keyboard.press("Enter");
    await chat.waitForSelector("#send:not([hidden])");
    const said = await Promise.all(["a", "b"].map((side) => chat.locator(`#talk-${side} li.assistant .said`).last().textContent()));
    const [l, r] = said.map((text) => worth(post, text));
    if (said[0] === said[1] || l === r) continue;
    await chat.locator(`#talk-${l > r ? "a" : "b"} li:last-child .thumbs button`).first().click();
    await chat.waitForFunction(() => document.querySelector("#notice").textContent.startsWith("Kept"));
    thumbs += 1;
  }
  await accessible(chat, "chat");
  await shot(chat, "loop-chat");
  nothing(chat);
  log(`${posts.length} posts asked, ${thumbs} thumbs`);
  assert.equal(lines("thumbs.jsonl").length, thumbs);
  const scored = await fetch(server.found + "/v1/score", {
    method: "POST", headers: { "Content-Type": "application/json" },
    body: JSON.stringify({ model: "rm", input: lines("thumbs.jsonl").slice(0, 2).map((row) => ({ prompt: row.prompt, completion: row.chosen })) }),
  });
  log("/v1/score: " + JSON.stringify((await scored.json()).data.map((row) => row.score)));
  await end(server);
  log("\n" + run(...command("elo thumbs.jsonl")));

  // The same policies side by side and blind.
  write("prompts.jsonl", posts.map((prompt) => ({ prompt })));
  const blind = await start(command("label --run runs/people --policies sft,ppo --data prompts.jsonl --store blind.db --until-done"),
    (out) => /http:\S+/.exec(out)?.[0]);
  const judge = await open(blind.found);
  await judge.locator("#work").waitFor();
  while (await judge.locator("#work").isVisible()) {
    const prompt = await judge.locator("#prompt").textContent();
    const [a, b] = [await judge.locator('[data-text="0"]').first().textContent(), await judge.locator('[data-text="1"]').first().textContent()];
    const before = await judge.locator("#count").textContent();
    const better = worth(prompt, a) - worth(prompt, b);
    await judge.keyboard.press(better > 0 ? "1" : better < 0 ? "3" : "2");
    await judge.keyboard.press("Enter");
    await judge.waitForFunction((before) => document.getElementById("count").textContent !== before || !document.getElementById("over").hidden, before);
  }
  await blind.exit;
  log("\n" + run(...command("label --store blind.db --export blind")));
  log("\n" + run(...command("elo blind/comparisons.jsonl --anchor sft --html ratings.html")));
});
