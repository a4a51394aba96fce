// `temper watch` in headless Chromium, beside a run that goes on: see README.md.
import assert from "node:assert/strict";
import { writeFileSync } from "node:fs";
import { join } from "node:path";
import { accessible, check, end, fits, folder, nothing, open, phone, shot, start } from "./pages.mjs";

await check(async () => {
  writeFileSync(join(folder, "r.ron"), `(name: "watched", model: "tiny", stages: [
    Sft(name: "sft", data: (source: Posts(rows: 600, seed: 1)), eval_data: (source: Posts(rows: 16, seed: 2)), batch_size: 8, max_length: 128,
      cadence: (eval_steps: 10)),
    Rank(name: "rank", init: Stage("sft"), data: (source: Posts(rows: 16, seed: 3)), num_responses: 2, response_length: 16, reward: Gold),
  ])`);
  const going = await start(["recipe", "r.ron", "--output", "run"], (_, err) => /step|loss/.test(err));
  const server = await start(["watch", "run", "--port", "0"], (out) => /http:\S+/.exec(out)?.[0]);
  const page = await open(server.found);
  const step = () => page.evaluate(() => Number(/step (\d+)\/75/.exec(document.body.textContent)?.[1] ?? -1));
  await page.waitForFunction(() => /step \d+\/75/.test(document.body.textContent));
  const first = await step();
  await accessible(page, "run, light");
  await shot(page, "watch-light");
  // It changes by itself.
  await page.waitForFunction((first) => Number(/step (\d+)\/75/.exec(document.body.textContent)?.[1] ?? 99) > first, first);
  await page.emulateMedia({ colorScheme: "dark" });
  await page.locator('a[href="/sft/report.html"]').click();
  await page.locator("#report svg").first().waitFor();
  await accessible(page, "stage, dark");
  await shot(page, "watch-stage-dark");
  const small = await open(server.found, phone);
  await accessible(small, "run, phone");
  await shot(small, "watch-phone");
  await fits(small);
  // The run ends; the pages stay, and no reload is needed.
  await going.exit;
  await small.waitForFunction(() => document.body.textContent.includes("rank") && !/step \d+\/75/.test(document.body.textContent));
  await accessible(small, "run at its end");
  await shot(small, "watch-end-phone");
  // Watching goes away and comes back.
  await end(server);
  await page.waitForFunction(() => document.getElementById("state").textContent.startsWith("no connection"));
  const again = await start(["watch", "run", "--port", new URL(server.found).port], (out) => /http:\S+/.exec(out)?.[0]);
  await page.waitForFunction(() => document.getElementById("state").textContent.startsWith("live"));
  nothing(page);
  nothing(small);
  await end(again);
  console.log("watch: ok");
});
