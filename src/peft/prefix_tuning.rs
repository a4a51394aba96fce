//! Prefix tuning: trained keys and values before every row in each layer, straight or through an MLP.
//!
//! # Source
//! Li and Liang 2021, arXiv:2101.00190, section 4.3 for the MLP; files: PEFT 0.21, `PrefixTuningConfig`. PEFT stores what the MLP
//! gives and not the MLP: a later stage trains that on as it is.

use burn::module::{Module, Param, ParamId};
use burn::tensor::Tensor;
use burn::tensor::backend::Backend;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::dense::Dense;
use super::files::{AdapterConfig, Keys};
use super::prompt_tuning::normal;
use super::virtual_tokens::{self, DecoderShape, PromptMethod, PromptStart, PromptTokens};
use crate::error::{Problem, Result};
use crate::host::indices;
use crate::ops::ModelBackend;
use crate::params::{ParamKind, ParamMeta, ParamSlot};
use crate::rng::Seed;
use crate::settings::Settings;

/// Trained keys and values before every row in each layer.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct PrefixTuningConfig {
    /// Virtual tokens before every row.
    pub num_virtual_tokens: usize,
    /// Whether they come from a smaller table through an MLP with `tanh` while they are trained.
    pub prefix_projection: bool,
    /// Width inside the MLP; that of a layer's keys if `None`.
    pub encoder_hidden_size: Option<usize>,
    /// Zeros instead of numbers from `N(0, 1)`; of the MLP its last layer. Zero values take weight from the row, as zero keys
    /// have a share in every softmax.
    pub zero_init: bool,
}

impl Default for PrefixTuningConfig {
    fn default() -> Self {
        Self {
            num_virtual_tokens: 20,
            prefix_projection: false,
            encoder_hidden_size: None,
            zero_init: false,
        }
    }
}

impl PrefixTuningConfig {
    fn inner(&self, shape: &DecoderShape) -> usize {
        self.encoder_hidden_size.unwrap_or(shape.layout.kv_width())
    }
}

impl PromptMethod for PrefixTuningConfig {
    type Tokens<B: Backend> = Prefix<B>;

    const PEFT_TYPE: &'static str = "PREFIX_TUNING";

    fn problems(&self, settings: &mut Settings) {
        settings.positive("num_virtual_tokens", self.num_virtual_tokens);
        if let Some(size) = self.encoder_hidden_size {
            settings.positive("encoder_hidden_size", size);
            if !self.prefix_projection {
                let problem = Problem::new(
                    "encoder_hidden_size",
                    "is of the MLP, and without `prefix_projection: true` there is none",
                );
                settings.note(problem.with_help("leave it out, or set `prefix_projection: true`"));
            }
        }
    }

    fn num_virtual_tokens(&self) -> usize {
        self.num_virtual_tokens
    }

    fn num_params(&self, shape: &DecoderShape) -> usize {
        let stored = self.stored_width(shape);
        if !self.prefix_projection {
            return self.num_virtual_tokens * stored;
        }
        let (width, inner) = (shape.layout.kv_width(), self.inner(shape));
        self.num_virtual_tokens * width + (width + 1) * inner + (inner + 1) * stored
    }

    fn stored_width(&self, shape: &DecoderShape) -> usize {
        shape.num_layers * 2 * shape.layout.kv_width()
    }

    fn fresh<B: ModelBackend>(&self, start: &PromptStart<'_, B>, seed: Seed) -> Result<Prefix<B>> {
        let (shape, device) = (start.shape, start.device);
        let (count, width) = (self.num_virtual_tokens, shape.layout.kv_width());
        if !self.prefix_projection {
            let size = [count, self.stored_width(shape)];
            let tensor = match self.zero_init {
                true => Tensor::zeros(size, device),
                false => normal(size, seed, device),
            };
            return Ok(self.stored(shape, tensor));
        }
        let inner = self.inner(shape);
        let output = |layer: usize| match self.zero_init {
            true => Dense::zeros([inner, 2 * width], device),
            false => Dense::fresh(
                [inner, 2 * width],
                seed.fork("output").fork_index(layer as u64),
                device,
            ),
        };
        Ok(Prefix {
            layers: Vec::new(),
            encoder: Some(PrefixEncoder {
                embedding: Param::initialized(
                    ParamId::new(),
                    normal([count, width], seed.fork("embedding"), device),
                ),
                input: Dense::fresh([width, inner], seed.fork("input"), device),
                outputs: (0..shape.num_layers).map(output).collect(),
            }),
            key_order: shape.key_order.as_ref().map(|order| order.to_vec()),
        })
    }

    fn stored<B: Backend>(&self, shape: &DecoderShape, tensor: Tensor<B, 2>) -> Prefix<B> {
        let width = 2 * shape.layout.kv_width();
        let key_order = shape.key_order.as_ref().map(|order| order.to_vec());
        let layers = tensor.detach().chunk(shape.num_layers, 1);
        Prefix {
            layers: (layers.into_iter())
                .map(|layer| {
                    let columns = key_order.as_deref().map(|order| columns(order, width));
                    let layer = match columns {
                        Some(columns) => {
                            let columns = indices(&columns, &layer.device());
                            layer.select(1, columns)
                        }
                        None => layer,
                    };
                    Param::initialized(ParamId::new(), layer)
                })
                .collect(),
            encoder: None,
            key_order,
        }
    }

    fn read(keys: &Keys<'_>, num_virtual_tokens: usize) -> Result<Self, String> {
        let prefix_projection = keys.read("prefix_projection", false, Value::as_bool)?;
        let size = keys.read("encoder_hidden_size", None, |value| {
            Some(Some(usize::try_from(value.as_u64()?).ok()?))
        })?;
        Ok(Self {
            num_virtual_tokens,
            prefix_projection,
            // PEFT fills it in, also where there is no MLP.
            encoder_hidden_size: size.filter(|_| prefix_projection),
            zero_init: keys.read("init_weights", false, |value| {
                Some(value.as_str()? == "zero")
            })?,
        })
    }

    fn accepts(key: &str, value: &Value) -> Option<bool> {
        match key {
            "prefix_projection" | "encoder_hidden_size" | "init_weights" => Some(true),
            _ => virtual_tokens::accepts(key, value),
        }
    }

    fn write(&self, config: &AdapterConfig) -> Value {
        let filled = config.shape.as_ref().map(|shape| shape.layout.kv_width());
        let own = json!({
            "encoder_hidden_size": self.encoder_hidden_size.or(filled),
            "init_weights": self.zero_init.then_some("zero"),
            "prefix_projection": self.prefix_projection,
        });
        virtual_tokens::with(
            virtual_tokens::write(self.num_virtual_tokens, config, true),
            own,
        )
    }
}

/// Of a layer's keys and values, `width` columns: keys in `order`, values as they are.
fn columns(order: &[usize], width: usize) -> Vec<usize> {
    order.iter().copied().chain(order.len()..width).collect()
}

/// Trained keys and values.
#[derive(Module, Debug)]
pub struct Prefix<B: Backend> {
    /// Of each layer, keys and values side by side, `[tokens, 2 kv_width]`; none where the encoder gives them.
    pub layers: Vec<Param<Tensor<B, 2>>>,
    /// What gives them while it is trained.
    pub encoder: Option<PrefixEncoder<B>>,
    /// File's column of each key column, where they differ.
    #[module(skip)]
    key_order: Option<Vec<usize>>,
}

/// A small table, and the MLP that makes keys and values of it: `tanh(embedding . input) . output`, biases included.
#[derive(Module, Debug)]
pub struct PrefixEncoder<B: Backend> {
    /// `[tokens, kv_width]`.
    pub embedding: Param<Tensor<B, 2>>,
    /// The MLP's first layer.
    pub input: Dense<B>,
    /// Its second, by layer of the model.
    pub outputs: Vec<Dense<B>>,
}

impl<B: Backend> PromptTokens<B> for Prefix<B> {
    const IN_ATTENTION: bool = true;

    fn count(&self) -> usize {
        match &self.encoder {
            Some(encoder) => encoder.embedding.val().dims()[0],
            None => self.layers[0].val().dims()[0],
        }
    }

    fn encoded(&self) -> Option<Tensor<B, 2>>
    where
        B: ModelBackend,
    {
        let encoder = self.encoder.as_ref()?;
        Some(encoder.input.forward(encoder.embedding.val()).tanh())
    }

    fn keys_values(&self, encoded: Option<&Tensor<B, 2>>, layer: usize) -> Option<Tensor<B, 2>>
    where
        B: ModelBackend,
    {
        Some(match (&self.encoder, encoded) {
            (Some(encoder), Some(encoded)) => encoder.outputs[layer].forward(encoded.clone()),
            _ => self.layers[layer].val(),
        })
    }

    fn to_stored(&self) -> Tensor<B, 2>
    where
        B: ModelBackend,
    {
        let encoded = self.encoded();
        let count = match &self.encoder {
            Some(encoder) => encoder.outputs.len(),
            None => self.layers.len(),
        };
        let layer = |layer: usize| {
            let x = (self.keys_values(encoded.as_ref(), layer)).expect("a prefix has them");
            let Some(order) = &self.key_order else {
                return x;
            };
            let order = columns(order, x.dims()[1]);
            let mut back = vec![0; order.len()];
            (order.iter().enumerate()).for_each(|(here, &there)| back[there] = here);
            let back = indices(&back, &x.device());
            x.select(1, back)
        };
        Tensor::cat((0..count).map(layer).collect(), 1)
    }

    fn walk(&mut self, visit: &mut dyn FnMut(&ParamMeta, ParamSlot<'_, B>)) {
        if let Some(encoder) = &mut self.encoder {
            let [_, width] = encoder.embedding.val().dims();
            let meta = ParamMeta::single(ParamKind::Adapter, "prefix.embedding", width, false);
            visit(&meta, ParamSlot::Matrix(&mut encoder.embedding));
            encoder.input.walk("prefix.input", visit);
            for (index, output) in encoder.outputs.iter_mut().enumerate() {
                output.walk(&format!("prefix.{index}.output"), visit);
            }
        }
        for (index, layer) in self.layers.iter_mut().enumerate() {
            let [_, width] = layer.val().dims();
            let name = format!("prefix.{index}.keys_values");
            let meta = ParamMeta::single(ParamKind::Adapter, name, width, false);
            visit(&meta, ParamSlot::Matrix(layer));
        }
    }
}
