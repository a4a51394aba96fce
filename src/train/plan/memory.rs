//! Estimates a stage's memory from shapes alone.

use crate::model::ModelConfig;
use crate::ops::{Precision, logit_chunk_rows};

/// Bytes of an f32, the precision of weights, gradients and activations.
pub(in crate::train) const FLOAT: u64 = 4;

/// Bytes that every run needs beside its model: program, tokenizer, rows, pages of the weight file, packing buffers.
const PROGRAM: u64 = 128 << 20;

/// The sizes of a decoder that determine its memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ModelShape {
    /// Width of the residual stream.
    pub hidden: u64,
    /// Decoder layers.
    pub layers: u64,
    /// Inner width of the MLP.
    pub intermediate: u64,
    /// Vocabulary size.
    pub vocab: u64,
    /// Query heads.
    pub heads: u64,
    /// Key and value heads.
    pub kv_heads: u64,
    /// Width of one head.
    pub head_dim: u64,
    /// Number of all parameters, adapters included.
    pub total_params: u64,
    /// Number of trained parameters.
    pub trainable_params: u64,
    /// Parameters of embedding and output head, whose storage precision may differ from that of linear layers.
    pub table_params: u64,
    /// Bytes of the optimiser's state of the trained parameters.
    pub optimizer_bytes: u64,
    /// Storage precision of frozen parameters.
    pub precision: Precision,
    /// Bytes of all of the base's parameters, with [`Precision::Stored`].
    pub stored_bytes: u64,
    /// Whether the backward pass recomputes layers.
    pub gradient_checkpointing: bool,
    /// Whether weights of the model itself are trained.
    pub trains_base: bool,
    /// Floats per token and layer that adapters of other methods than plain LoRA store for the backward pass.
    pub adapter_floats: u64,
    /// Floats of an output head that carries an adapter: it is formed anew beside the base's.
    pub adapted_head: u64,
    /// The lowest layer that gradients reach: layers below it store no activations. The number of layers if only parameters
    /// after the last one are trained.
    pub first_trained_layer: u64,
    /// Virtual tokens before every row.
    pub virtual_tokens: u64,
}

impl ModelShape {
    /// The sizes of a frozen model.
    pub fn of(config: &ModelConfig, precision: Precision) -> Self {
        let layout = config.head_layout();
        Self {
            hidden: config.hidden_size() as u64,
            layers: config.num_layers() as u64,
            intermediate: config.intermediate_size() as u64,
            vocab: config.vocab_size() as u64,
            heads: layout.heads as u64,
            kv_heads: layout.kv_heads as u64,
            head_dim: layout.head_dim as u64,
            total_params: config.num_params() as u64,
            trainable_params: 0,
            table_params: config.num_table_params() as u64,
            optimizer_bytes: 0,
            precision,
            stored_bytes: FLOAT * config.num_params() as u64,
            gradient_checkpointing: false,
            trains_base: false,
            adapter_floats: 0,
            adapted_head: 0,
            first_trained_layer: 0,
            virtual_tokens: 0,
        }
    }

    /// Floats stored per token and layer for the backward pass.
    ///
    /// `2 hidden + (q + 2 kv) + q + heads + 2 intermediate` with `q = heads head_dim`, `kv = kv_heads head_dim`: twice the
    /// residual stream before a norm (attention and MLP), the joint query, key and value after rotation, the attention's
    /// output with one log-sum-exp per head, and the joint gate and up product. Where weights themselves are trained, their
    /// inputs are stored too: twice the normed value, and the activated product, `2 hidden + intermediate`. An MLP without a gate
    /// needs less. What adapters store is [`ModelShape::adapter_floats`].
    pub fn activation_floats(&self) -> u64 {
        let q = self.heads * self.head_dim;
        let kv = self.kv_heads * self.head_dim;
        let inputs = match self.trains_base {
            true => 2 * self.hidden + self.intermediate,
            false => 0,
        };
        2 * self.hidden
            + (q + 2 * kv)
            + q
            + self.heads
            + 2 * self.intermediate
            + inputs
            + self.adapter_floats
    }

    /// Floats per token while gradients are computed.
    pub fn backward_floats(&self) -> u64 {
        let layers = self.layers.saturating_sub(self.first_trained_layer);
        match self.gradient_checkpointing {
            // The states between layers, one layer's activations and their gradients.
            true => (layers + 1) * self.hidden + 2 * self.activation_floats(),
            // And results of one operation that the next one overwrites: gate and up, and the activated product.
            false => {
                let handed_on = 3 * self.intermediate;
                self.hidden + (layers + 1) * self.activation_floats() + handed_on
            }
        }
    }

    /// Bytes of a model of this shape that is frozen as a whole; `stored_bytes` where its weights are kept as the file has them.
    pub fn frozen_bytes_of(self, stored_bytes: u64) -> u64 {
        Self {
            stored_bytes,
            ..self
        }
        .frozen_bytes()
    }

    /// Bytes of the frozen parameters.
    fn frozen_bytes(&self) -> u64 {
        if self.precision == Precision::Stored {
            return self.stored_bytes;
        }
        let frozen = self.total_params.saturating_sub(self.trainable_params);
        let tables = self.table_params.min(frozen);
        let linear = (frozen - tables) as f64 * self.precision.bytes();
        (linear + tables as f64 * self.precision.table_bytes()) as u64
    }

    /// Floats of the KV cache per token.
    pub fn cache_floats(&self) -> u64 {
        product([2, self.layers, self.kv_heads, self.head_dim])
    }
}

/// The computation of a stage.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Workload {
    /// Forward and backward over `micro_tokens` packed tokens at a time.
    Train {
        /// Tokens per forward pass.
        micro_tokens: u64,
        /// Rows per forward pass.
        rows: u64,
        /// Tokens among them whose log-probability is computed.
        targets: u64,
    },
    /// Generation with a KV cache.
    Generate {
        /// Responses at once.
        batch: u64,
        /// Longest prompt in tokens.
        prompt: u64,
        /// Longest response in tokens.
        response: u64,
    },
    /// Generation and training in turns, with several networks in memory.
    Ppo {
        /// Tokens per forward pass while training.
        micro_tokens: u64,
        /// Rows per forward pass while training.
        rows: u64,
        /// Tokens among them whose log-probability is computed.
        targets: u64,
        /// Responses generated at once.
        batch: u64,
        /// Longest prompt in tokens.
        prompt: u64,
        /// Longest response in tokens.
        response: u64,
        /// Trained parameters of the policy and of the value network together.
        trained_params: u64,
        /// The same with those that other networks have of their own. With adapters policy, value and a learned reward share the
        /// frozen base, and the reference is the base without adapter; in full fine-tuning each is a whole model.
        network_params: u64,
        /// Bytes of the state of their optimisers.
        optimizer_bytes: u64,
    },
}

/// Estimated bytes by component at the peak; their sum is the peak.
///
/// - weights: frozen parameters once, trained ones per network
/// - gradients: one float per trained parameter
/// - optimizer state: that of the update rule ([`Algorithm::state_bytes`](crate::optim::Algorithm::state_bytes)); two floats per
///   trained parameter with AdamW
/// - activations: [`ModelShape::activation_floats`] per token and layer, once more for the layer whose gradients are being
///   computed, and `3 intermediate` of reused buffers; with `gradient_checkpointing` of that layer only, and the states between
///   layers; without a backward pass, of one layer only
/// - logits: of at most 256 targets at once, with their gradient in training; in generation one row per response. An output head with an
///   adapter on it is formed anew in f32, from a product as large, or in training with a gradient as large
/// - KV cache: `batch x (prompt + response) x layers x 2 x kv_heads x head_dim`
/// - program: 128 MiB, as measured
///
/// Generation and training alternate in PPO, so only the larger of the two is counted. Allocator slack is not counted.
pub fn estimate(work: Workload, shape: &ModelShape) -> Vec<(String, u64)> {
    let weights = |params: u64| (shape.frozen_bytes()).saturating_add(product([FLOAT, params]));
    // Virtual tokens stand before every row.
    let passed =
        |tokens: u64, rows: u64| tokens.saturating_add(product([rows, shape.virtual_tokens]));
    let mut parts = Vec::new();
    let mut part = |name: &str, bytes: u64| parts.push((name.to_string(), bytes));
    match work {
        Workload::Train {
            micro_tokens,
            rows,
            targets,
        } => {
            part("weights", weights(shape.trainable_params));
            part("gradients", product([FLOAT, shape.trainable_params]));
            part("optimizer state", shape.optimizer_bytes);
            part(
                "activations",
                activations(shape, passed(micro_tokens, rows), true),
            );
            part("logits", logits(shape, targets));
        }
        Workload::Generate {
            batch,
            prompt,
            response,
        } => {
            part("weights", weights(shape.trainable_params));
            for (name, bytes) in sampling(shape, batch, prompt, response) {
                part(name, bytes);
            }
        }
        Workload::Ppo {
            micro_tokens,
            rows,
            targets,
            batch,
            prompt,
            response,
            trained_params,
            network_params,
            optimizer_bytes,
        } => {
            part("weights", weights(network_params));
            part("gradients", product([FLOAT, trained_params]));
            part("optimizer state", optimizer_bytes);
            // Policy and value are trained one after the other, so only one of them has activations at a time.
            let training = [
                (
                    "activations",
                    activations(shape, passed(micro_tokens, rows), true),
                ),
                ("logits", logits(shape, targets)),
            ];
            let sampling = sampling(shape, batch, prompt, response);
            let total = |parts: &[(&str, u64)]| {
                (parts.iter()).fold(0u64, |sum, (_, bytes)| sum.saturating_add(*bytes))
            };
            let larger: &[(&str, u64)] = if total(&sampling) > total(&training) {
                &sampling
            } else {
                &training
            };
            for &(name, bytes) in larger {
                part(name, bytes);
            }
        }
    }
    parts.push(("program".to_string(), PROGRAM));
    parts
}

/// KV cache, activations of the prefill and logits of one decoding step.
fn sampling(
    shape: &ModelShape,
    batch: u64,
    prompt: u64,
    response: u64,
) -> [(&'static str, u64); 3] {
    // A prompt begins with the virtual tokens, in the cache too.
    let prompt = prompt.saturating_add(shape.virtual_tokens);
    [
        (
            "KV cache",
            product([
                FLOAT,
                batch,
                prompt.saturating_add(response),
                shape.cache_floats(),
            ]),
        ),
        (
            "activations",
            activations(shape, product([batch, prompt]), false),
        ),
        (
            "logits",
            product([
                FLOAT,
                product([batch, shape.vocab]).saturating_add(product([2, shape.adapted_head])),
            ]),
        ),
    ]
}

/// A chunk of the logits of `targets` rows, and its gradient; likewise a head that is formed anew.
fn logits(shape: &ModelShape, targets: u64) -> u64 {
    let chunk = logit_chunk_rows(shape.vocab as usize) as u64;
    let floats = product([chunk.min(targets), shape.vocab]).saturating_add(shape.adapted_head);
    product([2, FLOAT, floats])
}

fn activations(shape: &ModelShape, tokens: u64, backward: bool) -> u64 {
    let floats = match backward {
        true => shape.backward_floats(),
        false => shape.hidden + shape.activation_floats(),
    };
    product([FLOAT, tokens, floats])
}

/// The product, or the largest number where it is larger: such a plan fits nowhere.
fn product<const N: usize>(factors: [u64; N]) -> u64 {
    factors.into_iter().fold(1, u64::saturating_mul)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::params::lowest_trained_layer;

    /// SmolLM2-135M with rank-16 adapters on every linear layer.
    const SMOLLM2: ModelShape = ModelShape {
        hidden: 576,
        layers: 30,
        intermediate: 1536,
        vocab: 49_152,
        heads: 9,
        kv_heads: 3,
        head_dim: 64,
        total_params: 139_399_488,
        trainable_params: 4_884_480,
        table_params: 28_311_552,
        optimizer_bytes: 39_075_840,
        precision: crate::ops::Precision::F32,
        stored_bytes: 0,
        gradient_checkpointing: false,
        trains_base: false,
        adapter_floats: 0,
        adapted_head: 0,
        first_trained_layer: 0,
        virtual_tokens: 0,
    };

    fn bytes(parts: &[(String, u64)], name: &str) -> u64 {
        parts.iter().find(|(n, _)| n == name).expect(name).1
    }

    #[test]
    fn sums_of_absurd_sizes_do_not_wrap() {
        for work in [
            Workload::Train {
                micro_tokens: u64::MAX,
                rows: u64::MAX,
                targets: u64::MAX,
            },
            Workload::Generate {
                batch: u64::MAX,
                prompt: u64::MAX,
                response: u64::MAX,
            },
        ] {
            let shape = ModelShape {
                virtual_tokens: 1 << 40,
                adapted_head: 1 << 62,
                ..SMOLLM2
            };
            let parts = estimate(work, &shape);
            assert!(
                parts.iter().any(|(_, bytes)| *bytes == u64::MAX),
                "{parts:?}"
            );
        }
    }

    #[test]
    fn training_counts_each_component() {
        // 2*576 + (576 + 2*192) + 576 + 9 + 2*1536 = 5769; in full fine-tuning 2*576 + 1536 more.
        assert_eq!(SMOLLM2.activation_floats(), 5769);
        let full = ModelShape {
            trainable_params: SMOLLM2.total_params,
            optimizer_bytes: 8 * SMOLLM2.total_params,
            trains_base: true,
            ..SMOLLM2
        };
        assert_eq!(full.activation_floats(), 5769 + 2688);
        let work = Workload::Train {
            micro_tokens: 1024,
            rows: 8,
            targets: 1024,
        };
        let parts = estimate(work, &SMOLLM2);
        assert_eq!(bytes(&parts, "weights"), 557_597_952);
        assert_eq!(bytes(&parts, "gradients"), 19_537_920);
        assert_eq!(bytes(&parts, "optimizer state"), 39_075_840);
        // 4 * 1024 * (576 + 31 * 5769 + 3 * 1536).
        assert_eq!(bytes(&parts, "activations"), 753_758_208);
        let again = ModelShape {
            gradient_checkpointing: true,
            ..SMOLLM2
        };
        // 4 * 1024 * (576 + 30 * 576 + 2 * 5769).
        let parts_again = estimate(work, &again);
        assert_eq!(bytes(&parts_again, "activations"), 120_397_824);
        // 2 * 4 * 256 * 49152.
        assert_eq!(bytes(&parts, "logits"), 100_663_296);
        // Eight rows of 128 tokens, all trained on, were measured at 1,692 MB (benches/scaling.sh).
        let total: u64 = parts.iter().map(|(_, bytes)| bytes).sum();
        assert!(
            total.abs_diff(1_692_000_000) * 20 < 3 * 1_692_000_000,
            "{total}"
        );
    }

    #[test]
    fn layers_below_the_lowest_trained_one_keep_nothing() {
        let names = [
            "wte.weight",
            "h.0.mlp.weight",
            "h.29.mlp.weight",
            "ln_f.weight",
            "lm_head.weight",
        ];
        let lowest = |trained: &[usize]| {
            let parameters = names.iter().enumerate();
            lowest_trained_layer(
                parameters.map(|(i, name)| (*name, trained.contains(&i))),
                30,
            )
        };
        assert_eq!((lowest(&[0, 4]), lowest(&[1])), (0, 0));
        assert_eq!((lowest(&[4, 2, 3]), lowest(&[3])), (29, 30));
        // hidden + (layers + 1) * 5769 + 3 * intermediate, of 30 layers and of one.
        assert_eq!(SMOLLM2.backward_floats(), 576 + 31 * 5769 + 4608);
        let shape = ModelShape {
            first_trained_layer: 29,
            ..SMOLLM2
        };
        assert_eq!(shape.backward_floats(), 576 + 2 * 5769 + 4608);
    }

    #[test]
    fn reduced_weights_are_counted_at_their_size() {
        let weights = |precision| {
            let shape = ModelShape {
                precision,
                trainable_params: 1000,
                ..SMOLLM2
            };
            let work = Workload::Train {
                micro_tokens: 64,
                rows: 1,
                targets: 0,
            };
            bytes(&estimate(work, &shape), "weights")
        };
        let (trained, frozen) = (1000, SMOLLM2.total_params - 1000);
        assert_eq!(weights(Precision::Bf16), 2 * frozen + 4 * trained);
        // One byte per weight; four bytes of scale and four of shift per 64 weights.
        assert_eq!(weights(Precision::Int8), frozen + frozen / 8 + 4 * trained);
        // Linear layers 4 bits, 8 for 64 and 32 for 64 * 256; the table 8 bits and 16 for 32: less than a sixth of f32.
        let (table, linear) = (28_311_552, frozen - 28_311_552);
        let nf4 = linear * 4226 / 8192 + table * 17 / 16 + 4 * trained;
        assert!(weights(Precision::Nf4).abs_diff(nf4) <= 1);
        assert!(weights(Precision::Nf4) * 6 < weights(Precision::F32));
    }

    #[test]
    fn sampling_counts_the_cache() {
        let work = Workload::Generate {
            batch: 16,
            prompt: 300,
            response: 48,
        };
        // 4 * 16 * 348 * 30 * 2 * 3 * 64.
        assert_eq!(bytes(&estimate(work, &SMOLLM2), "KV cache"), 256_573_440);
    }

    #[test]
    fn ppo_counts_the_larger_phase_and_shares_the_base() {
        let work = |micro_tokens, batch| Workload::Ppo {
            micro_tokens,
            rows: 1,
            targets: 48,
            batch,
            prompt: 300,
            response: 48,
            network_params: 3 * SMOLLM2.trainable_params,
            trained_params: 2 * SMOLLM2.trainable_params,
            optimizer_bytes: 2 * SMOLLM2.optimizer_bytes,
        };
        let parts = estimate(work(2048, 1), &SMOLLM2);
        assert_eq!(bytes(&parts, "weights"), 557_597_952 + 2 * 19_537_920);
        assert_eq!(bytes(&parts, "gradients"), 39_075_840);
        // 2 * 4 * 48 * 49152.
        assert_eq!(bytes(&parts, "logits"), 18_874_368);
        assert!(parts.iter().all(|(name, _)| name != "KV cache"));
        let parts = estimate(work(512, 512), &SMOLLM2);
        assert!(parts.iter().any(|(name, _)| name == "KV cache"));
    }
}
