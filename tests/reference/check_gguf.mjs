// Compares GGUF files that `temper export` wrote with llama.cpp: tokenizer, greedy continuation and log-probabilities.
//
// usage: npm install --prefix LLAMA --ignore-scripts --omit=optional node-llama-cpp@3.22.1 @node-llama-cpp/linux-x64@3.22.1
//        temper generate --model M.gguf --data prompts.jsonl --temperature 0 --output answers.jsonl
//        node tests/reference/check_gguf.mjs LLAMA M.gguf answers.jsonl [--tolerance X] [--lora ADAPTER.gguf]
//        node tests/reference/check_gguf.mjs LLAMA --tokenizers FOLDER
//
// Prompts are texts, which llama.cpp encodes itself. --tolerance: largest difference of a log-probability in nats (default 0.02): llama.cpp
// keeps keys and values in f16, and rounds inputs of products with blocks to 8 bits, so that files of Q8_0 and Q4_0 need about 0.3.
// --lora: M.gguf is the adapter's base; the answers are those of `temper generate --model BASE --adapter ..`.
// Prints the largest difference and exits with 1 where it is larger, or where another token is the most probable one by more than that.
//
// --tokenizers: FOLDER/*/vocabulary.gguf and the ids in FOLDER/*/expected.json beside them, which the tests leave there (README.md). Prints
// the texts whose ids differ and exits with 1 if there are any.

import {existsSync, readFileSync, readdirSync} from "node:fs";
import {createRequire} from "node:module";
import {join, resolve} from "node:path";
import {pathToFileURL} from "node:url";
import {parseArgs} from "node:util";

const {values: options, positionals} = parseArgs({
    allowPositionals: true,
    options: {tolerance: {type: "string", default: "0.02"}, lora: {type: "string"}, tokenizers: {type: "string"}},
});
const [folder, modelPath, answersPath] = positionals;
const entry = createRequire(join(resolve(folder), "package.json")).resolve("node-llama-cpp");
const {getLlama, LlamaLogLevel} = await import(pathToFileURL(entry));
const llama = await getLlama({gpu: false, build: "never", logLevel: LlamaLogLevel.error});

/** The ids of a text, with BOS and EOS where the file says so. */
function encode(model, text) {
    const ids = model.tokenize(text, true);
    if (model.tokens.shouldPrependBosToken) ids.unshift(model.tokens.bos);
    if (model.tokens.shouldAppendEosToken) ids.push(model.tokens.eos);
    return ids;
}

async function compareTokenizer(folder) {
    const model = await llama.loadModel({modelPath: join(folder, "vocabulary.gguf")});
    const {rows} = JSON.parse(readFileSync(join(folder, "expected.json"), "utf8"));
    let others = 0;
    for (const {text, ids_with_special: expected} of rows) {
        const found = encode(model, text);
        if (found.join() !== expected.join()) {
            console.log(`${folder}: ${JSON.stringify(text)}\n  llama.cpp ${found.join(" ")}\n  expected  ${expected.join(" ")}`);
            others += 1;
        }
    }
    console.log(`${folder}: ${rows.length} texts, ${others} with other ids`);
    await model.dispose();
    return others;
}

async function compareAnswers(tolerance) {
    const model = await llama.loadModel({modelPath: resolve(modelPath)});
    const lora = options.lora && resolve(options.lora);
    const context = await model.createContext({contextSize: 1024, lora});
    let [largest, tokens, others] = [0, 0, 0];
    const lines = readFileSync(answersPath, "utf8").split("\n").filter((line) => line !== "");
    for (const line of lines) {
        const {prompt, ids, logprobs} = JSON.parse(line);
        const sequence = context.getSequence();
        const start = encode(model, prompt);
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
    return largest <= tolerance && others === 0;
}

if (options.tokenizers) {
    let others = 0;
    for (const name of readdirSync(options.tokenizers).sort()) {
        const folder = resolve(options.tokenizers, name);
        if (existsSync(join(folder, "vocabulary.gguf"))) others += await compareTokenizer(folder);
    }
    process.exit(others === 0 ? 0 : 1);
}
process.exit((await compareAnswers(Number(options.tolerance))) ? 0 : 1);
