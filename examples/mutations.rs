//! Breaks one line at a time and sees whether a test fails. Writes the results to `docs/parity-mutations.md`, which
//! `parity_page` appends to `docs/parity.md`; of lines that were not broken this time the page keeps what it had.
//!
//!     cargo run --release --example mutations [WORD]    # about a minute each; WORD: only those whose description has it
//!
//! Files are changed in place and put back; do not edit them meanwhile.

use std::path::Path;
use std::process::{Command, Stdio};

/// One line broken.
struct Mutation {
    what: &'static str,
    file: &'static str,
    /// Text that occurs once in the file.
    from: &'static str,
    to: &'static str,
    /// Where a failure is expected: arguments of `cargo test`.
    tests: &'static [&'static str],
}

const LIB: &[&str] = &["--lib"];
const OPS: &[&str] = &["--test", "backends", "ops::"];
const FAMILIES: &[&str] = &["--test", "backends", "families"];

macro_rules! mutations {
    ($($what:literal: $file:literal, $from:literal => $to:literal, $tests:expr;)*) => {
        &[$(Mutation { what: $what, file: $file, from: $from, to: $to, tests: $tests }),*]
    };
}

const MUTATIONS: &[Mutation] = mutations! {
    "Flex's causal mask hides the diagonal": "src/ops/kernels/attention.rs",
        "keys - queries + i % queries + 1" => "(keys - queries + i % queries).max(1)", OPS;
    "the portable causal mask shows one token too many": "src/ops/portable/attention.rs",
        "let offset = (keys - queries) as i64;" => "let offset = (keys - queries) as i64 + 1;", OPS;
    "Flex's window is one key longer": "src/ops/cpu/attention/task.rs",
        "position as isize + 1 - n as isize" => "position as isize - n as isize", OPS;
    "the portable window is one key longer": "src/ops/portable/attention.rs",
        "let first = offset + 1 - n as i64;" => "let first = offset - n as i64;", OPS;
    "Flex's capped scores have the gradient of plain ones": "src/ops/cpu/attention/backward.rs",
        "kernels::multiply(ds, slopes);" => "let _ = slopes;", OPS;
    "a continued row's keys give their parent no gradient": "src/ops/cpu/attention/backward.rs",
        "scatter(out, width, column, head_dim, sum, true);" => "let _ = (&out, column, sum);", OPS;
    "rotary embedding turns the other way": "src/ops/portable/mod.rs",
        "first.clone() * cos.clone() - second.clone() * sin.clone()" =>
        "first.clone() * cos.clone() + second.clone() * sin.clone()", OPS;
    "RMSNorm without epsilon in its gradient": "src/ops/portable/mod.rs",
        "let rms = x.clone().square().mean_dim(1).add_scalar(eps).sqrt();
    let normed" => "let rms = x.clone().square().mean_dim(1).add_scalar(eps * 0.0).sqrt();
    let normed", OPS;
    "SwiGLU's slope loses a term": "src/ops/portable/mod.rs",
        "let slope = sigmoid.clone() + silu.clone() * (sigmoid.neg().add_scalar(1.0));" =>
        "let slope = sigmoid.clone() + silu.clone() * sigmoid.neg();", OPS;
    "a token's log-probability has no temperature in its gradient": "src/ops/portable/logprob.rs",
        ".narrow(0, i * chunk, len)
            .reshape([len, 1])
            .mul_scalar(inv_temperature);" => ".narrow(0, i * chunk, len)
            .reshape([len, 1]);", OPS;
    "AdamW adds epsilon before the bias correction": "src/ops/adamw.rs",
        "let root = B::float_sqrt(scale(v.clone(), 1.0 / s.bias_correction2));" =>
        "let root = scale(B::float_sqrt(v.clone()), 1.0 / s.bias_correction2);", OPS;
    "gradient clipping scales up instead of down": "src/optim/optimiser.rs",
        "(max / (norm + 1e-6)).min(1.0)" => "(max / norm).max(1.0)", &["--test", "backends", "trajectories"];
    "warm-up starts one step early": "src/optim/schedule.rs",
        "return peak * step as f64 / warmup_steps as f64;" =>
        "return peak * (step + 1) as f64 / warmup_steps as f64;", LIB;
    "GAE forgets lambda": "src/rl/gae.rs",
        "let advantage = delta + gamma * lam * next_advantage;" =>
        "let advantage = delta + gamma * next_advantage;", LIB;
    "whitening divides by n instead of n - 1": "src/rl/whiten.rs",
        "moments(values).1 * n / (n - 1.0).max(1.0)" => "moments(values).1", LIB;
    "a response is in its own leave-one-out baseline": "src/rl/rollout/group.rs",
        "(total - f64::from(reward)) / (size - 1) as f64" => "total / size as f64", LIB;
    "k3 with the sign of the ratio flipped": "src/rl/kl.rs",
        "(-logr).exp_m1() + logr" => "logr.exp_m1() - logr", LIB;
    "the KL controller is not bounded": "src/rl/kl.rs",
        "(kl / self.target - 1.0).clamp(-0.2, 0.2)" => "(kl / self.target - 1.0).clamp(-1.0, 1.0)", LIB;
    "the score is paid on the EOS instead of one later": "src/rl/layout.rs",
        "(len + 1).min(response_length)" => "len.min(response_length)", LIB;
    "KL is rewarded instead of punished": "src/rl/rewards.rs",
        "(-kl_coef * f64::from(kl)) as f32" => "(kl_coef * f64::from(kl)) as f32", LIB;
    "the missing-EOS penalty is added": "src/rl/rewards.rs",
        "(f64::from(*score) - penalty) as f32" => "(f64::from(*score) + penalty) as f32", LIB;
    "PPO takes the better of clipped and unclipped": "src/loss/ppo.rs",
        "(loss.clone() * ratio).max_pair(loss * clipped)" =>
        "(loss.clone() * ratio).min_pair(loss * clipped)", LIB;
    "the value loss is not clipped": "src/loss/ppo.rs",
        "square.max_pair(clipped_square).sum() * 0.5" => "(square + clipped_square * 0.0).sum() * 0.5", LIB;
    "llama 3's rope scaling blends the wrong way": "src/model/rotary.rs",
        "(1.0 - blend) * frequency / factor + blend * frequency" =>
        "blend * frequency / factor + (1.0 - blend) * frequency", FAMILIES;
    "GPT-NeoX's queries are not reordered as its keys are": "src/model/gpt_neox.rs",
        "[&reordered, &reordered, &plain]" => "[&plain, &reordered, &plain]", FAMILIES;
    "an adapter on GPT-NeoX's queries, keys and values keeps the file's order": "src/peft/lora/mod.rs",
        "let meta = meta(name, layer.width).ordered(order.clone());" => "let meta = meta(name, layer.width);", FAMILIES;
    "OPT's positions begin in row 0": "src/model/table.rs",
        "(p + self.offset) as i32" => "p as i32", FAMILIES;
    "a chunk of a prompt sees its first token alone": "src/ops/attend.rs",
        "self.mask.seen(position, len)" => "self.mask.seen(held, len)", FAMILIES;
    "rsLoRA divides by the rank": "src/peft/lora/config.rs",
        "if self.use_rslora { rank.sqrt() }" => "if self.use_rslora { rank }", LIB;
    "a pattern of ranks matches inside a name": "src/peft/patterns.rs",
        "^(?:.*\\.)?(?:{pattern})$" => "^.*(?:{pattern})$", LIB;
    "blocks of layers_to_transform are counted from 1": "src/peft/targets.rs",
        "layers.contains(&block)" => "layers.contains(&(block + 1))", LIB;
    "a template sees keys that hold nothing": "src/data/chat.rs",
        "message.iter().filter(|(_, value)| !value.is_null())" => "message.iter().filter(|_| true)", LIB;
    "a marked span ends before its last token": "src/data/encode/sequence.rs",
        "true => to," => "true => to - 1,", LIB;
    "an adapter's scale is lost where its ranks join the weight": "src/ops/kernels/gemm/pack.rs",
        "below[to + column] = part.scale * low.b[from + column];" => "below[to + column] = low.b[from + column];", LIB;
    "a response may not end at its first index that counts": "src/generate/batch.rs",
        "id == at.id && index >= at.after" => "id == at.id && index > at.after", &["--test", "backends", "ppo_details"];
    "pre-training text weighs by its own tokens alone": "src/train/rollout/ptx.rs",
        "loss.mul_scalar(self.coef * divisor / targets)" => "loss.mul_scalar(divisor / targets)", &["--test", "backends", "ppo_details"];
    "the best of K is any response": "src/loss/best_of_k.rs",
        ".narrow(1, 0, 1)" => ".narrow(1, 1, 1)", LIB;
    "the halves of a pair in bfloat16 change places": "src/ops/kernels/gemm/pack.rs",
        "*word = rounded(*a) | rounded(*b) >> 16;" => "*word = rounded(*b) | rounded(*a) >> 16;", LIB;
    "a gradient goes through the weight in f32 where products are in bfloat16": "src/ops/autodiff/matmul.rs",
        "let da = precision.matmul::<B>(grad.clone(), B::float_transpose(b));" => "let da = B::f32_matmul(grad.clone(), B::float_transpose(b));", &["--test", "backends", "mixed"];
    "inputs of 8-bit products are scaled by the group before": "src/ops/kernels/int8.rs",
        "let scale = panel.x.row(first + r).1[group];" => "let scale = panel.x.row(first + r).1[group.max(1) - 1];", LIB;
    "the sum of an 8-bit group is not moved back": "src/ops/reduced/int8.rs",
        "shifts[group][vector][lane] = -128 * sum;" => "shifts[group][vector][lane] = -127 * sum;", LIB;
    "a reduced head's targets come from the wrong column": "src/ops/reduced/mod.rs",
        "Panels::Int8(panels) => numbers.for_each(|(k, x)| *x = panels.at(k, column)),
                Panels::Blocks" => "Panels::Int8(panels) => numbers.for_each(|(k, x)| *x = panels.at(k, column.max(1) - 1)),
                Panels::Blocks", LIB;
    "a KL in the loss has no weight": "src/train/rollout/micro_batch.rs",
        "loss = loss + kl * coef;" => "loss = loss + kl;", &["--test", "backends", "ppo"];
    "LayerNorm's gradient keeps the mean": "src/ops/kernels/layer_norm.rs",
        "dx[i] - mean - normed[i] * along" => "dx[i] - normed[i] * along", &["--test", "backends", "ops::"];
    "GELU's slope leaves out the density": "src/ops/kernels/gelu.rs",
        "*dx = g * (phi + x * density);" => "*dx = g * phi;", &["--test", "backends", "ops::"];
    "recomputed layers leave out the first": "src/model/recompute.rs",
        "for index in (kept.lowest..last).rev()" => "for index in (kept.lowest + 1..last).rev()", FAMILIES;
    "a layer computed again drops nothing": "src/model/recompute.rs",
        "Pass::new(model.decoder(), &kept.batch, None, None, kept.dropout)" =>
        "Pass::new(model.decoder(), &kept.batch, None, None, None)", FAMILIES;
    "a completion's first token is not trained on": "src/train/forward.rs",
        "positions.push(range.start + i - 1);" => "positions.push(range.start + i);", &["--test", "backends", "trajectories"];
    "Flex's blocks of keys lose the sum of those before": "src/ops/cpu/attention/forward.rs",
        "*lse = both;" => "*lse = *later_lse;", &["--test", "backends", "flex_equals_ndarray"];
    "a long row's key has the gradient of its last query head alone": "src/ops/cpu/attention/backward.rs",
        "let added = !task.is_first(layout);" => "let added = false;", &["--test", "backends", "flex_equals_ndarray"];
    "each task of a transposed left side begins at its first row": "src/ops/kernels/gemm/mod.rs",
        "true => row," => "true => 0,", LIB;
    "columns behind a packed matrix are what was packed before": "src/ops/kernels/gemm/packed.rs",
        "false => words.fill(0)," => "false => {}", LIB;
    "a row that lies among others is read as if it lay alone": "src/ops/kernels/gemm/mod.rs",
        "Form::Full => factor.left_stride," => "Form::Full => depth,", LIB;
    "Flex's AdamW decays every parameter": "src/ops/adamw.rs",
        "false => 1.0," => "false => 1.0 - self.lr * self.weight_decay,", OPS;
    "models in one pass have each other's adapters": "src/ops/mod.rs",
        "filter(|&share| share != owner)" => "filter(|&share| share == owner)", &["--test", "backends", "together"];
    "the loss of a value head has no weight": "src/train/rollout/micro_batch.rs",
        "policy_loss + value_loss * weight" => "policy_loss + value_loss", &["--test", "backends", "ppo"];
    "a sum in place forgets the part before": "src/ops/kernels/gemm/mod.rs",
        "false => Sums::Continued," => "false => Sums::Written,", LIB;
    "a square is transposed in three rounds": "src/ops/kernels/gemm/square.rs",
        "for _ in 0..4 {" => "for _ in 0..3 {", LIB;
    "a residual's gradient reaches the stream alone": "src/ops/autodiff/mod.rs",
        "for node in ops.parents.into_iter().flatten() {" => "for node in ops.parents.into_iter().flatten().take(1) {", OPS;
    "the state after a response's last token is not read": "src/generate/batch.rs",
        "if full || row.ended && read_out.is_none() {" => "if full || row.ended {", &["--test", "backends", "invariants"];
};

const PAGE: &str = "docs/parity-mutations.md";

impl Mutation {
    /// A line of the table without the result.
    fn cells(&self) -> String {
        let tests = self.tests.join(" ");
        format!("| {} | `{}` | `{tests}` | ", self.what, self.file)
    }
}

/// The page with the result of one mutation; results that it has of others stay.
fn write_page(path: &Path, mutation: &Mutation, line: &str) -> std::io::Result<()> {
    let before = std::fs::read_to_string(path).unwrap_or_default();
    let result_of = |other: &Mutation| {
        if other.what == mutation.what {
            return Some(line);
        }
        let cells = other.cells();
        before.lines().find(|line| line.starts_with(&cells))
    };
    let lines: Vec<&str> = MUTATIONS.iter().filter_map(result_of).collect();
    // What is written below the table.
    let rest = before.lines().skip_while(|line| !line.starts_with('|'));
    let rest = rest.skip_while(|line| line.starts_with('|'));
    let rest: String = rest.map(|line| format!("{line}\n")).collect();
    let page = format!(
        "## Broken lines\nEach line is broken by itself, and the named tests run (`cargo run --release --example mutations`).\n\n\
         | what is broken | file | tests | result |\n|---|---|---|---|\n{}\n{rest}",
        lines.join("\n")
    );
    std::fs::write(path, page)
}

/// Unoptimised in this crate alone: its tests build in a fraction of the time, dependencies stay as they are.
const QUICK: &str = "profile.release.package.tempering.opt-level=0";

/// Whether the tests fail.
fn caught(root: &Path, tests: &[&str]) -> std::io::Result<bool> {
    let status = Command::new(env!("CARGO"))
        .current_dir(root)
        .args(["test", "--release", "--quiet", "--config", QUICK])
        .args(tests)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()?;
    Ok(!status.success())
}

/// Whether the crate with its tests still compiles: a line that does not compile proves nothing.
fn compiles(root: &Path, tests: &[&str]) -> std::io::Result<bool> {
    let status = Command::new(env!("CARGO"))
        .current_dir(root)
        .args([
            "test",
            "--release",
            "--quiet",
            "--no-run",
            "--config",
            QUICK,
        ])
        .args(tests)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()?;
    Ok(status.success())
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let word = std::env::args().nth(1).unwrap_or_default();
    for Mutation { file, from, .. } in MUTATIONS {
        let text = std::fs::read_to_string(root.join(file))?;
        if text.matches(from).count() != 1 {
            return Err(format!("{file}: not there once: {from}").into());
        }
    }
    let mut survivors = 0;
    for mutation in MUTATIONS.iter().filter(|m| m.what.contains(&word)) {
        let path = root.join(mutation.file);
        let whole = std::fs::read_to_string(&path)?;
        std::fs::write(&path, whole.replace(mutation.from, mutation.to))?;
        let outcome = compiles(root, mutation.tests).and_then(|ok| {
            Ok(if ok {
                Some(caught(root, mutation.tests)?)
            } else {
                None
            })
        });
        std::fs::write(&path, whole)?;
        let verdict = match outcome? {
            Some(true) => "caught",
            Some(false) => "**survives**",
            None => "**does not compile**",
        };
        survivors += usize::from(verdict != "caught");
        let line = format!("{}{verdict} |", mutation.cells());
        eprintln!("{line}");
        // After each one: a run may end before the last.
        write_page(&root.join(PAGE), mutation, &line)?;
    }
    if survivors > 0 {
        return Err(format!("{survivors} broken lines were not caught").into());
    }
    Ok(())
}
