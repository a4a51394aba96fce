// The llama.cpp peer of benches/compare.sh: sampling from a GGUF file on a CPU, through node-llama-cpp 3.22.1.
//
// usage: llama.mjs FOLDER MODEL.gguf ROWS.jsonl ROWS NEW_TOKENS     FOLDER: where node_modules/node-llama-cpp is
// Prints one line: RATE new tokens per second, prompts included in the time, the best of three; FIRST seconds until the first begins.
// As many sequences as rows, which llama.cpp decodes as one batch; no response ends early.

import {readFileSync} from "node:fs";
import {createRequire} from "node:module";
import {availableParallelism} from "node:os";
import {join} from "node:path";
import {pathToFileURL} from "node:url";

const begin = performance.now();
const [folder, modelPath, path, rowsText, newTokensText] = process.argv.slice(2);
const [rows, newTokens] = [Number(rowsText), Number(newTokensText)];
const entry = createRequire(join(folder, "package.json")).resolve("node-llama-cpp");
const {getLlama, LlamaLogLevel} = await import(pathToFileURL(entry));

const threads = availableParallelism();
const llama = await getLlama({gpu: false, build: "never", logLevel: LlamaLogLevel.error, maxThreads: threads});
const model = await llama.loadModel({modelPath});
const lines = readFileSync(path, "utf8").split("\n").slice(0, rows);
const prompts = lines.map((line) => model.tokenize(JSON.parse(line).prompt));
const longest = Math.max(...prompts.map((prompt) => prompt.length));
const context = await model.createContext({
    sequences: rows,
    contextSize: longest + newTokens,
    batchSize: rows * longest,
    threads,
});

// Prompt and new tokens of one row.
async function sample(prompt) {
    const sequence = context.getSequence();
    let count = 0;
    for await (const _ of sequence.evaluate(prompt, {temperature: 1, yieldEogToken: true, contextShift: {size: 1}})) {
        count += 1;
        if (count === newTokens) break;
    }
    await sequence.dispose();
    if (count !== newTokens) throw new Error(`a response ended after ${count} tokens`);
}

const first = (performance.now() - begin) / 1000;
let best = Infinity;
for (let run = 0; run < 3; run++) {
    const start = performance.now();
    await Promise.all(prompts.map(sample));
    best = Math.min(best, (performance.now() - start) / 1000);
}
console.log(`RATE ${((rows * newTokens) / best).toFixed(1)} FIRST ${first.toFixed(1)}`);
process.exit(0);
