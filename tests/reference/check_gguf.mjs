// Compares a GGUF file that `temper export` wrote with llama.cpp: its tokenizer, the greedy continuation and the log-probabilities.
//
// usage: npm install --prefix LLAMA --ignore-scripts --omit=optional node-llama-cpp@3.22.1 @node-llama-cpp/linux-x64@3.22.1
//        temper generate --model M.gguf --data prompts.jsonl --temperature 0 --output answers.jsonl
//        node tests/reference/check_gguf.mjs LLAMA M.gguf answers.jsonl [TOLERANCE]
//
// Prompts are texts, which llama.cpp encodes itself. TOLERANCE: largest difference of a log-probability in nats (default 0.02): llama.cpp
// keeps keys and values in f16, and rounds inputs of products with blocks to 8 bits, so that files of Q8_0 and Q4_0 need about 0.3.
// Prints the largest difference and exits with 1 where it is larger, or where another token is the most probable one by more than that.

import {readFileSync} from "node:fs";
import {createRequire} from "node:module";
import {join, resolve} from "node:path";
import {pathToFileURL} from "node:url";

const [folder, modelPath, answersPath, toleranceText] = process.argv.slice(2);
const tolerance = Number(toleranceText ?? 0.02);
const entry = createRequire(join(resolve(folder), "package.json")).resolve("node-llama-cpp");
const {getLlama, LlamaLogLevel} = await import(pathToFileURL(entry));

const llama = await getLlama({gpu: false, build: "never", logLevel: LlamaLogLevel.error});
const model = await llama.loadModel({modelPath: resolve(modelPath)});
const context = await model.createContext({contextSize: 1024});

let [largest, tokens, others] = [0, 0, 0];
const lines = readFileSync(answersPath, "utf8").split("\n").filter((line) => line !== "");
for (const line of lines) {
    const {prompt, ids, logprobs} = JSON.parse(line);
    const sequence = context.getSequence();
    const start = model.tokenize(prompt, true);
    if (model.tokens.shouldPrependBosToken) start.unshift(model.tokens.bos);
    const fed = [...start, ...ids.slice(0, -1)];
    const input = fed.map((token, at) =>
        at < start.length - 1 ? token : [token, {generateNext: {logits: true, options: {temperature: 0}}}],
    );
    const results = await sequence.controlledEvaluate(input);
    for (const [at, id] of ids.entries()) {
        const logits = results[start.length - 1 + at].next.logits;
        const values = [...logits.values()];
        const most = values.reduce((a, b) => Math.max(a, b));
        const sum = values.reduce((total, x) => total + Math.exp(x - most), 0);
        const logprob = logits.get(id) - most - Math.log(sum);
        largest = Math.max(largest, Math.abs(logprob - logprobs[at]));
        others += most - logits.get(id) > tolerance ? 1 : 0;
        tokens += 1;
    }
    await sequence.dispose();
}
console.log(`${lines.length} rows, ${tokens} tokens: largest difference ${largest.toExponential(1)} nats, ${others} other choices`);
process.exit(largest <= tolerance && others === 0 ? 0 : 1);
