"""One PPO rollout and four epochs on it, in plain torch, for tests/support/ppo.rs.  usage: ppo.py OUT_DIR

Writes OUT_DIR/ppo (see README.md): three tiny random llamas, the numbers of every array on the way from given responses
to advantages, the numbers of every minibatch, and all trained weights after the last step.

The arithmetic is that of "The N+ Implementation Details of RLHF with PPO" (arXiv:2403.17031) and follows its padded layout to
the letter: queries are padded on the left to one length, every response has exactly T sampled tokens, what stands after the
first EOS becomes PAD for the reward model and is masked for everything else, log-probabilities at masked positions are 1.0,
values at masked positions are 0. transformers computes the hidden states; nothing of TRL is imported.

tempering has no padding: a response ends at its EOS, and nothing stands after it. What is compared is therefore what this
script computes at the positions that count, cut out of the padded arrays at the end (`real_tokens`, `real_values`):
  - policy positions: tokens 0..L of a response, L the index of its EOS (T-1 without one): ~padding_mask of the paper's code;
  - value positions: the same and L+1 where L+1 < T: ~padding_mask_p1. The value at L+1 is the one read at the EOS token.
The tokens sampled after EOS (there are some in `sampled`) must not change any number; the Rust test never sees them.

Three more choices where the paper's code leaves one, and tempering's:
  - losses and statistics of a minibatch are means over all its positions that count. The paper's code averages each micro-batch
    over its own positions and then averages those means, so its result depends on how rows fall into micro-batches;
    with one micro-batch per minibatch, as here, the two agree.
  - statistics (approxkl, clipfrac, ratio, entropy) are masked means; the paper's code averages over padding too.
  - policy and value network have an optimiser each (but in the variants with one trunk), and gradients are clipped, if at all, by network. `value_grad_norm` and the
    clipping include the factor vf_coef, as they do where one optimiser sees `pg_loss + vf_coef * vf_loss`.
Weight decay, where a variant has it, is on everything but norms, as in transformers' Trainer.

The learning rates are such that ratios and values leave their clips and yet rounding stays rounding: with rates three times higher
Adam, which divides by the size of the gradient, turns the f32 errors of the first steps into 1e-4 of later gradients, in this
script too (f32 against f64).

Versions: torch==2.15.0 transformers==5.23.0 safetensors==0.8.0
"""
import json
import os
import sys

os.environ.update(HF_HUB_OFFLINE="1", TOKENIZERS_PARALLELISM="false", TRANSFORMERS_VERBOSITY="error")
import torch
from safetensors.torch import save_file
from transformers import LlamaConfig, LlamaForCausalLM, LlamaForSequenceClassification

VOCAB, HIDDEN, EOS, T = 32, 16, 2, 6
PAD = VOCAB  # a token of its own, outside the embedding: it must never reach a model
TEMPERATURE = 0.7
INVALID_LOGPROB = 1.0
STD = 0.3
OFFSET = 0.25  # subtracted from every score, as a reward model's centre is

CONFIG = dict(
    vocab_size=VOCAB, hidden_size=HIDDEN, intermediate_size=20, num_hidden_layers=2, num_attention_heads=4,
    num_key_value_heads=2, max_position_embeddings=32, rms_norm_eps=1e-5, bos_token_id=1, eos_token_id=EOS,
    pad_token_id=None, tie_word_embeddings=True,
)

# Of different lengths; one has an EOS of its own, which ends nothing.
QUERIES = [
    [5, 17, 9, 3], [12], [7, 0, 30, 21, 1, 26, 14], [8, EOS, 19], [25, 11, 4, 6, 13], [3, 3], [31, 10, 22, 16, 5, 18], [20, 15],
]
# Index of the first EOS (None: the response is cut off), and whether another one follows among the tokens to throw away.
ENDS = [(2, False), (None, False), (0, False), (1, False), (4, False), (5, False), (None, False), (3, True)]

DEFAULTS = dict(
    lora=False, trunk=False, kl_estimator="k1", kl_in="Reward", kl_coef=0.3, missing_eos=["replace", -1.0], whiten_rewards=False, gamma=1.0, lam=0.95,
    cliprange=0.2, cliprange_value=0.2, vf_coef=0.1, epochs=4, num_mini_batches=2, policy_lr=3e-4, value_lr=1e-3,
    max_grad_norm=None, weight_decay=0.0, seed=1,
)
VARIANTS = {
    "full_k1_replace": dict(),
    "full_k2_subtract": dict(
        kl_estimator="k2", missing_eos=["subtract", 0.5], num_mini_batches=4, gamma=0.9, policy_lr=1e-4, value_lr=1.5e-4, seed=2,
    ),
    "full_k3_whiten": dict(
        kl_estimator="k3", missing_eos=["subtract", 1.0], whiten_rewards=True, num_mini_batches=1, max_grad_norm=0.05,
        weight_decay=0.1, lam=0.8, seed=3,
    ),
    "full_k2_loss": dict(kl_estimator="k2", kl_in="Loss", policy_lr=1e-4, seed=5),
    "lora_k3_loss": dict(lora=True, kl_estimator="k3", kl_in="Loss", policy_lr=2e-3, value_lr=3e-3, seed=6),
    # The value function is a head on the policy: one model, one optimiser, one norm.
    "full_trunk": dict(trunk=True, max_grad_norm=1.0, policy_lr=3e-4, vf_coef=0.5, seed=7),
    "lora_trunk": dict(lora=True, trunk=True, missing_eos=["subtract", 1.0], policy_lr=2e-3, vf_coef=0.5, seed=8),
    "lora_k1_subtract": dict(lora=True, missing_eos=["subtract", 1.0], policy_lr=2e-3, value_lr=3e-3, seed=4),
}
LORA_RANK, LORA_ALPHA = 2, 4.0


# ---- models ----------------------------------------------------------------------------------------------------------

def randomise(model, seed):
    """Weights large enough that every part of the model moves the result; norms around 1."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            centre = 1.0 if "norm" in name else 0.0
            std = 1.0 / HIDDEN**0.5 if name == "score.weight" else STD
            parameter.copy_(centre + std * torch.randn(parameter.shape, generator=generator))


def build(kind):
    if kind == "reward":
        model = LlamaForSequenceClassification._from_config(LlamaConfig(**CONFIG, num_labels=1), attn_implementation="eager")
        randomise(model, 11)
        return model.eval()
    model = LlamaForCausalLM._from_config(LlamaConfig(**CONFIG), attn_implementation="eager")
    randomise(model, 10)
    if kind == "policy":
        # Some training has gone by: the KL to the reference is not zero.
        generator = torch.Generator().manual_seed(12)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.04 * torch.randn(parameter.shape, generator=generator))
    return model.eval()


class Lora(torch.nn.Module):
    """A linear layer with a low-rank product added: `W x + alpha / r * B A x`."""

    def __init__(self, base, generator):
        super().__init__()
        self.base = base
        bound = base.in_features**-0.5
        self.a = torch.nn.Parameter(bound * (2 * torch.rand(LORA_RANK, base.in_features, generator=generator) - 1))
        self.b = torch.nn.Parameter(torch.zeros(base.out_features, LORA_RANK))

    def forward(self, x):
        return self.base(x) + LORA_ALPHA / LORA_RANK * (x @ self.a.T @ self.b.T)


def add_lora(model, seed):
    """Adapters on every linear layer of the blocks; the rest is frozen but for a score head."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name == "score.weight")
    for path, module in list(model.named_modules()):
        if isinstance(module, torch.nn.Linear) and path.startswith("model."):
            parent, _, leaf = path.rpartition(".")
            setattr(model.get_submodule(parent), leaf, Lora(module, generator))


def trained(model):
    """Trained parameters under the names that files have."""
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            if name.endswith((".a", ".b")):
                name = f"base_model.model.{name[:-2]}.lora_{name[-1].upper()}.weight"
            yield name, parameter


# ---- padded batches --------------------------------------------------------------------------------------------------

def left_padded(queries):
    length = max(map(len, queries))
    return torch.tensor([[PAD] * (length - len(query)) + query for query in queries])


def forward(model, ids):
    """Hidden states after the final norm. PAD becomes 0 and is masked; positions count real tokens."""
    mask = ids != PAD
    positions = mask.long().cumsum(1) - mask.long()
    return model.model(
        input_ids=ids.masked_fill(~mask, 0), attention_mask=mask.long(), position_ids=positions
    ).last_hidden_state


def response_logits(policy, ids, context):
    return policy.lm_head(forward(policy, ids)[:, context - 1 : -1]) / (TEMPERATURE + 1e-7)


def chosen_logprobs(logits, responses):
    return logits.log_softmax(-1).gather(-1, responses[..., None])[..., 0]


def scalars(model, ids):
    # A head on the policy has no centre.
    offset = OFFSET if isinstance(model, LlamaForSequenceClassification) else 0.0
    return model.score(forward(model, ids))[..., 0] - offset


def first_true(mask):
    """Index of the first true entry of each row; the row's length without one."""
    return torch.where(mask.any(1), mask.long().argmax(1), mask.shape[1])


def masked_mean(x, mask):
    return x[mask].mean()


def whiten(x, mask, shift_mean, unbiased):
    mean, var = x[mask].mean(), x[mask].var(unbiased=unbiased)
    out = (x - mean) * torch.rsqrt(var + 1e-8)
    return out if shift_mean else out + mean


def sampled_responses():
    generator = torch.Generator().manual_seed(20)
    rows = []
    for end, again in ENDS:
        row = torch.randint(3, VOCAB, (T,), generator=generator).tolist()
        if end is not None:
            row[end] = EOS
        if again:
            row[end + 2] = EOS
        rows.append(row)
    return rows


# ---- one update ------------------------------------------------------------------------------------------------------

def rollout(variant, reference, policy, reward, value):
    """Every array between given responses and advantages, padded; the masks say which positions count."""
    queries, responses = left_padded(QUERIES), torch.tensor(sampled_responses())
    context = queries.shape[1]
    query_responses = torch.cat([queries, responses], 1)
    with torch.no_grad():
        logprobs = chosen_logprobs(response_logits(policy, query_responses, context), responses)
        ref_logprobs = chosen_logprobs(response_logits(reference, query_responses, context), responses)
        values = scalars(value, query_responses)[:, context - 1 : -1]

        # The reward model sees the response up to its EOS, and scores the token before the first PAD.
        ended = (responses == EOS).long().cumsum(1) - (responses == EOS).long() > 0
        postprocessed = responses.masked_fill(ended, PAD)
        truncated = torch.cat([queries, postprocessed], 1)
        last = first_true(postprocessed == PAD) - 1 + context
        scores = scalars(reward, truncated)[torch.arange(len(QUERIES)), last]

    has_eos = (postprocessed == EOS).any(1)
    rules = {
        "replace": lambda x: torch.where(has_eos, scores, torch.full_like(scores, x)),
        "subtract": lambda x: torch.where(has_eos, scores, scores - x),
    }
    rule, number = variant["missing_eos"]
    kept_scores = rules[rule](number)

    sequence_length = first_true(postprocessed == PAD) - 1
    index = torch.arange(T).expand_as(responses)
    padding_mask = index > sequence_length[:, None]
    padding_mask_p1 = index > sequence_length[:, None] + 1
    logprobs = logprobs.masked_fill(padding_mask, INVALID_LOGPROB)
    ref_logprobs = ref_logprobs.masked_fill(padding_mask, INVALID_LOGPROB)
    values = values.masked_fill(padding_mask_p1, 0)

    logr = logprobs - ref_logprobs
    kl = {"k1": logr, "k2": logr**2 / 2, "k3": torch.exp(-logr) - 1 + logr}
    in_rewards = variant["kl_coef"] if variant["kl_in"] == "Reward" else 0.0
    non_score_reward = -in_rewards * kl[variant["kl_estimator"]]
    raw_rewards = non_score_reward.clone()
    end = torch.where(sequence_length + 1 < T, sequence_length + 1, sequence_length)
    raw_rewards[torch.arange(len(QUERIES)), end] += kept_scores
    whitened_rewards = {
        unbiased: whiten(raw_rewards, ~padding_mask_p1, False, unbiased).masked_fill(padding_mask_p1, 0)
        for unbiased in (False, True)
    }
    rewards = whitened_rewards[False] if variant["whiten_rewards"] else raw_rewards

    last_gae, reversed_advantages = 0, []
    for t in reversed(range(T)):
        next_values = values[:, t + 1] if t < T - 1 else 0.0
        delta = rewards[:, t] + variant["gamma"] * next_values - values[:, t]
        last_gae = delta + variant["gamma"] * variant["lam"] * last_gae
        reversed_advantages.append(last_gae)
    advantages = torch.stack(reversed_advantages[::-1], 1)
    returns = advantages + values
    whitened = {
        unbiased: whiten(advantages, ~padding_mask, True, unbiased).masked_fill(padding_mask, 0)
        for unbiased in (False, True)
    }
    return dict(
        query_responses=query_responses, responses=responses, context=context,
        padding_mask=padding_mask, padding_mask_p1=padding_mask_p1, sequence_length=sequence_length, has_eos=has_eos,
        logprobs=logprobs, ref_logprobs=ref_logprobs, values=values, kl=kl, scores=scores, kept_scores=kept_scores,
        scores_replaced=rules["replace"](-1.0), scores_subtracted=rules["subtract"](1.0),
        rewards=raw_rewards, whitened_rewards=whitened_rewards, non_score_reward=non_score_reward,
        advantages=advantages, returns=returns, whitened_advantages=whitened,
    )


def decays(model):
    """Names of the parameters with weight decay: all but the norms' vectors."""
    return {name for name, parameter in model.named_parameters() if parameter.dim() == 2}


def optimizer(model, lr, variant):
    names = decays(model)
    groups = [
        dict(params=[p for n, p in model.named_parameters() if p.requires_grad and (n in names) == decayed],
             weight_decay=variant["weight_decay"] if decayed else 0.0)
        for decayed in (True, False)
    ]
    return torch.optim.AdamW(groups, lr=lr, betas=(0.9, 0.999), eps=1e-5)


def step(model, optim, loss, variant):
    """One optimiser step; returns the norm of the gradient before clipping."""
    optim.zero_grad()
    loss.backward()
    parameters = [p for p in model.parameters() if p.requires_grad]
    limit = variant["max_grad_norm"]
    norm = torch.nn.utils.clip_grad_norm_(parameters, float("inf") if limit is None else limit)
    optim.step()
    return norm


def update(variant, policy, value, data, orders):
    """Four passes over the rollout; the numbers of every minibatch, before its step."""
    optims = optimizer(policy, variant["policy_lr"], variant), None if variant["trunk"] else optimizer(value, variant["value_lr"], variant)
    size = len(QUERIES) // variant["num_mini_batches"]
    report = []
    for order in orders:
        for start in range(0, len(order), size):
            rows = torch.tensor(order[start : start + size])
            mask, mask_p1 = ~data["padding_mask"][rows], ~data["padding_mask_p1"][rows]
            old, advantages = data["logprobs"][rows], data["whitened_advantages"][False][rows]
            old_values, returns = data["values"][rows], data["returns"][rows]
            ids = data["query_responses"][rows]

            logits = response_logits(policy, ids, data["context"])
            logprobs = chosen_logprobs(logits, data["responses"][rows]).masked_fill(~mask, INVALID_LOGPROB)
            change = logprobs - old
            ratio = change.exp()
            pg_losses = -advantages * ratio
            pg_losses2 = -advantages * ratio.clamp(1 - variant["cliprange"], 1 + variant["cliprange"])
            pg_loss = masked_mean(torch.max(pg_losses, pg_losses2), mask)

            loss, logr = pg_loss, logprobs - data["ref_logprobs"][rows]
            kl_loss = masked_mean({"k1": logr, "k2": logr**2 / 2, "k3": torch.exp(-logr) - 1 + logr}[variant["kl_estimator"]], mask)
            if variant["kl_in"] == "Loss":
                loss = pg_loss + variant["kl_coef"] * kl_loss

            values = scalars(value, ids)[:, data["context"] - 1 : -1].masked_fill(~mask_p1, 0)
            clipped = torch.clamp(
                values, old_values - variant["cliprange_value"], old_values + variant["cliprange_value"]
            )
            vf_losses, vf_losses2 = (values - returns) ** 2, (clipped - returns) ** 2
            vf_loss = 0.5 * masked_mean(torch.max(vf_losses, vf_losses2), mask_p1)

            with torch.no_grad():
                entropy = logits.logsumexp(-1) - (logits.softmax(-1) * logits).sum(-1)
                numbers = dict(
                    policy_loss=pg_loss, value_loss=vf_loss, total_loss=pg_loss + variant["vf_coef"] * vf_loss,
                    approxkl=0.5 * masked_mean(change**2, mask),
                    clipfrac=masked_mean((pg_losses2 > pg_losses).float(), mask),
                    value_clipfrac=masked_mean((vf_losses2 > vf_losses).float(), mask_p1),
                    ratio_mean=masked_mean(ratio, mask), ratio_var=ratio[mask].var(unbiased=False),
                    ratio_min=ratio[mask].min(), ratio_max=ratio[mask].max(), entropy=masked_mean(entropy, mask),
                )
                if variant["kl_in"] == "Loss":
                    numbers["kl_loss"] = kl_loss
            if variant["trunk"]:
                numbers["policy_grad_norm"] = step(policy, optims[0], loss + variant["vf_coef"] * vf_loss, variant)
            else:
                numbers["policy_grad_norm"] = step(policy, optims[0], loss, variant)
                numbers["value_grad_norm"] = step(value, optims[1], variant["vf_coef"] * vf_loss, variant)
            report.append({name: number(x) for name, x in numbers.items()})
    return report


# ---- files -----------------------------------------------------------------------------------------------------------

def number(x):
    """Nine digits: enough to give back every f32."""
    return float(f"{float(torch.as_tensor(x).detach()):.9g}")


def numbers(tensor):
    return [number(x) for x in tensor.detach().flatten()]


def real(padded, mask):
    """The positions that count, row by row."""
    return [numbers(row[keep]) for row, keep in zip(padded, mask)]


def make_variant(out, name, settings):
    variant = {**DEFAULTS, **settings}
    reference, reward = build("ref"), build("reward")
    policy, value = build("ref" if variant["lora"] else "policy"), build("reward")
    start = {}
    if variant["lora"]:
        add_lora(policy, 13)
        add_lora(value, 14)
    if variant["trunk"]:
        policy.score = torch.nn.Linear(HIDDEN, 1, bias=False)
        policy.score.weight.data.copy_(reward.score.weight)
        value = policy
    roles = {"policy": policy} if variant["trunk"] else {"policy": policy, "value": value}
    # The head is the value function's, whatever it stands on.
    name_of = lambda role, key: f"value.{key}" if key == "score.weight" else f"{role}.{key}"
    if variant["lora"]:
        start = {
            f"start.{role}.{key}": p.detach().clone()
            for role, model in roles.items() for key, p in trained(model) if "lora_A" in key
        }
    data = rollout(variant, reference, policy, reward, value)
    generator = torch.Generator().manual_seed(30 + variant["seed"])
    orders = [torch.randperm(len(QUERIES), generator=generator).tolist() for _ in range(variant["epochs"])]
    minibatches = update(variant, policy, value, data, orders)
    end = {
        name_of(role, key): p.detach().clone() for role, model in roles.items() for key, p in trained(model)
    }
    save_file(dict(sorted({**start, **end}.items())), f"{out}/{name}.safetensors")

    tokens, values = ~data["padding_mask"], ~data["padding_mask_p1"]
    real_tokens = lambda x: real(x, tokens)
    real_values = lambda x: real(x, values)
    kl_sums = (data["kl"]["k1"] * tokens).sum(1)
    non_score = (data["non_score_reward"] * tokens).sum(1)
    return dict(
        settings=variant, orders=orders,
        logprobs=real_tokens(data["logprobs"]), ref_logprobs=real_tokens(data["ref_logprobs"]),
        values=real_values(data["values"]),
        kl={name: real_tokens(kl) for name, kl in data["kl"].items()},
        scores=numbers(data["scores"]), kept_scores=numbers(data["kept_scores"]),
        scores_replaced=numbers(data["scores_replaced"]), scores_subtracted=numbers(data["scores_subtracted"]),
        rewards=real_values(data["rewards"]),
        rewards_whitened_biased=real_values(data["whitened_rewards"][False]),
        rewards_whitened_unbiased=real_values(data["whitened_rewards"][True]),
        advantages=real_values(data["advantages"]), returns=real_values(data["returns"]),
        advantages_whitened_biased=real_tokens(data["whitened_advantages"][False]),
        advantages_whitened_unbiased=real_tokens(data["whitened_advantages"][True]),
        objective=dict(
            kl=number(kl_sums.mean()), non_score_reward=number(non_score.mean()), scores=number(data["kept_scores"].mean()),
            rlhf_reward=number((non_score + data["kept_scores"]).mean()), num_eos=int(data["has_eos"].sum()),
        ),
        minibatches=minibatches,
    )


def save_model(out, kind):
    model = build(kind)
    folder = f"{out}/{kind}"
    model.save_pretrained(folder)
    if os.path.exists(f"{folder}/generation_config.json"):
        os.remove(f"{folder}/generation_config.json")


def main():
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    out = f"{sys.argv[1]}/ppo"
    os.makedirs(out, exist_ok=True)
    torch.set_num_threads(1)
    for kind in ("ref", "policy", "reward"):
        save_model(out, kind)
    sampled = sampled_responses()
    result = dict(
        temperature=TEMPERATURE, eos=EOS, response_length=T, score_offset=OFFSET, lora_rank=LORA_RANK, lora_alpha=LORA_ALPHA,
        queries=QUERIES, sampled=sampled, responses=[row[: row.index(EOS) + 1] if EOS in row else row for row in sampled],
        variants={name: make_variant(out, name, settings) for name, settings in VARIANTS.items()},
    )
    with open(f"{out}/ref.json", "w") as file:
        json.dump(result, file, indent=None, separators=(",", ":"))
        file.write("\n")


if __name__ == "__main__":
    main()
