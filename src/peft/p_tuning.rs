//! P-tuning: embeddings before every row that an MLP or an LSTM makes of a trained table.
//!
//! # Source
//! Liu et al. 2021, arXiv:2103.10385; files: PEFT 0.21, `PromptEncoderConfig`. PEFT stores the embeddings that the encoder gives
//! and not the encoder: a later stage trains them on as they are.

use burn::module::{Module, Param, ParamId};
use burn::tensor::backend::Backend;
use burn::tensor::{Tensor, activation};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::dense::Dense;
use super::files::{AdapterConfig, Keys};
use super::method::dropped;
use super::prompt_tuning::normal;
use super::virtual_tokens::{
    self, DecoderShape, PROMPT_EMBEDDINGS, PromptMethod, PromptStart, PromptTokens,
};
use crate::error::{Problem, Result};
use crate::ops::ModelBackend;
use crate::params::{ParamKind, ParamMeta, ParamSlot};
use crate::rng::Seed;
use crate::settings::Settings;

/// Layers of the LSTM that PEFT begins with.
const DEFAULT_LAYERS: usize = 2;

/// What makes embeddings of the trained table.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub enum PromptEncoderKind {
    /// Three linear layers with ReLU between them.
    #[default]
    Mlp,
    /// A bidirectional LSTM over the tokens, and two linear layers with ReLU between them.
    Lstm,
}

/// Embeddings before every row that an encoder makes of a trained table.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct PTuningConfig {
    /// Virtual tokens before every row.
    pub num_virtual_tokens: usize,
    /// What makes embeddings of the trained table.
    pub encoder_reparameterization_type: PromptEncoderKind,
    /// Width inside the encoder; that of an embedding if `None`.
    pub encoder_hidden_size: Option<usize>,
    /// Layers of the LSTM; the MLP always has three.
    pub encoder_num_layers: usize,
    /// Probability with which training drops what passes between layers of the LSTM.
    pub encoder_dropout: f64,
}

impl Default for PTuningConfig {
    fn default() -> Self {
        Self {
            num_virtual_tokens: 20,
            encoder_reparameterization_type: PromptEncoderKind::default(),
            encoder_hidden_size: None,
            encoder_num_layers: DEFAULT_LAYERS,
            encoder_dropout: 0.0,
        }
    }
}

impl PTuningConfig {
    fn inner(&self, shape: &DecoderShape) -> usize {
        self.encoder_hidden_size.unwrap_or(shape.embedding)
    }

    /// Inputs and outputs of the linear layers after the LSTM, or of all.
    fn head_sizes(&self, shape: &DecoderShape) -> Vec<[usize; 2]> {
        let (width, inner) = (shape.embedding, self.inner(shape));
        match self.encoder_reparameterization_type {
            PromptEncoderKind::Mlp => vec![[width, inner], [inner, inner], [inner, width]],
            PromptEncoderKind::Lstm => vec![[2 * inner, 2 * inner], [2 * inner, width]],
        }
    }

    /// Inputs of each layer of the LSTM; none for an MLP.
    fn lstm_inputs(&self, shape: &DecoderShape) -> Vec<usize> {
        let layer = |index| match index {
            0 => shape.embedding,
            _ => 2 * self.inner(shape),
        };
        match self.encoder_reparameterization_type {
            PromptEncoderKind::Mlp => Vec::new(),
            PromptEncoderKind::Lstm => (0..self.encoder_num_layers).map(layer).collect(),
        }
    }
}

impl PromptMethod for PTuningConfig {
    type Tokens<B: Backend> = EncodedPrompt<B>;

    const PEFT_TYPE: &'static str = "P_TUNING";

    fn problems(&self, settings: &mut Settings) {
        settings.positive("num_virtual_tokens", self.num_virtual_tokens);
        if let Some(size) = self.encoder_hidden_size {
            settings.positive("encoder_hidden_size", size);
        }
        settings.positive("encoder_num_layers", self.encoder_num_layers);
        settings.below_one("encoder_dropout", self.encoder_dropout);
        let mlp = self.encoder_reparameterization_type == PromptEncoderKind::Mlp;
        for (key, given) in [
            (
                "encoder_num_layers",
                self.encoder_num_layers != DEFAULT_LAYERS,
            ),
            ("encoder_dropout", self.encoder_dropout != 0.0),
        ] {
            if mlp && given {
                let problem = Problem::new(key, "is of the LSTM, and the encoder is an MLP");
                settings.note(
                    problem
                        .with_help("leave it out, or set `encoder_reparameterization_type: Lstm`"),
                );
            }
        }
    }

    fn num_virtual_tokens(&self) -> usize {
        self.num_virtual_tokens
    }

    fn num_params(&self, shape: &DecoderShape) -> usize {
        let inner = self.inner(shape);
        let head = self.head_sizes(shape).into_iter();
        let head: usize = head.map(|[inputs, outputs]| (inputs + 1) * outputs).sum();
        let lstm = self.lstm_inputs(shape).into_iter();
        // Two directions of four gates, and two biases each.
        let lstm: usize = lstm.map(|inputs| 8 * inner * (inputs + inner + 2)).sum();
        self.num_virtual_tokens * shape.embedding + head + lstm
    }

    fn dropout(&self) -> f64 {
        self.encoder_dropout
    }

    fn fresh<B: ModelBackend>(
        &self,
        start: &PromptStart<'_, B>,
        seed: Seed,
    ) -> Result<EncodedPrompt<B>> {
        let (shape, device) = (start.shape, start.device);
        let table = normal(
            [self.num_virtual_tokens, shape.embedding],
            seed.fork("embedding"),
            device,
        );
        let inner = self.inner(shape);
        let lstm = self.lstm_inputs(shape).into_iter().enumerate();
        let head = self.head_sizes(shape).into_iter().enumerate();
        Ok(EncodedPrompt {
            embedding: Param::initialized(ParamId::new(), table),
            lstm: lstm
                .map(|(layer, inputs)| {
                    let seed = seed.fork("lstm").fork_index(layer as u64);
                    Directions {
                        forward: Lstm::fresh([inputs, inner], seed.fork("forward"), device),
                        backward: Lstm::fresh([inputs, inner], seed.fork("backward"), device),
                    }
                })
                .collect(),
            head: head
                .map(|(layer, size)| {
                    Dense::fresh(size, seed.fork("head").fork_index(layer as u64), device)
                })
                .collect(),
            dropout: self.encoder_dropout,
        })
    }

    fn stored<B: Backend>(&self, _: &DecoderShape, tensor: Tensor<B, 2>) -> EncodedPrompt<B> {
        EncodedPrompt {
            embedding: Param::initialized(ParamId::new(), tensor.detach()),
            lstm: Vec::new(),
            head: Vec::new(),
            dropout: 0.0,
        }
    }

    fn read(keys: &Keys<'_>, num_virtual_tokens: usize) -> Result<Self, String> {
        let kind = "encoder_reparameterization_type";
        let count = |value: &Value| usize::try_from(value.as_u64()?).ok();
        Ok(Self {
            num_virtual_tokens,
            encoder_reparameterization_type: keys.read(kind, PromptEncoderKind::Mlp, |value| {
                match value.as_str()? {
                    "MLP" => Some(PromptEncoderKind::Mlp),
                    "LSTM" => Some(PromptEncoderKind::Lstm),
                    _ => None,
                }
            })?,
            encoder_hidden_size: keys.read("encoder_hidden_size", None, |value| {
                Some(Some(count(value)?))
            })?,
            encoder_num_layers: keys.read("encoder_num_layers", DEFAULT_LAYERS, count)?,
            encoder_dropout: keys.read("encoder_dropout", 0.0, Value::as_f64)?,
        })
    }

    fn accepts(key: &str, value: &Value) -> Option<bool> {
        match key {
            "encoder_reparameterization_type"
            | "encoder_hidden_size"
            | "encoder_num_layers"
            | "encoder_dropout" => Some(true),
            _ => virtual_tokens::accepts(key, value),
        }
    }

    fn write(&self, config: &AdapterConfig) -> Value {
        let filled = config.shape.as_ref().map(|shape| shape.embedding);
        let own = json!({
            "encoder_dropout": self.encoder_dropout,
            "encoder_hidden_size": self.encoder_hidden_size.or(filled),
            "encoder_num_layers": self.encoder_num_layers,
            "encoder_reparameterization_type": match self.encoder_reparameterization_type {
                PromptEncoderKind::Mlp => "MLP",
                PromptEncoderKind::Lstm => "LSTM",
            },
        });
        virtual_tokens::with(
            virtual_tokens::write(self.num_virtual_tokens, config, false),
            own,
        )
    }
}

/// A trained table and its encoder.
#[derive(Module, Debug)]
pub struct EncodedPrompt<B: Backend> {
    /// `[tokens, embedding]`.
    pub embedding: Param<Tensor<B, 2>>,
    /// Layers of the LSTM, if there is one.
    pub lstm: Vec<Directions<B>>,
    /// Linear layers with ReLU between them; none where the table is what the encoder gave.
    pub head: Vec<Dense<B>>,
    /// Between layers of the LSTM.
    dropout: f64,
}

/// One layer of a bidirectional LSTM.
#[derive(Module, Debug)]
pub struct Directions<B: Backend> {
    /// From the first token on.
    pub forward: Lstm<B>,
    /// From the last token on.
    pub backward: Lstm<B>,
}

/// One direction of an LSTM layer, with PyTorch's order of gates: input, forget, cell, output.
#[derive(Module, Debug)]
pub struct Lstm<B: Backend> {
    /// `[in, 4 hidden]`.
    pub input: Dense<B>,
    /// `[hidden, 4 hidden]`.
    pub recurrent: Dense<B>,
}

impl<B: Backend> Lstm<B> {
    /// PyTorch's start: everything uniform in `+-1 / sqrt(hidden)`.
    fn fresh([inputs, hidden]: [usize; 2], seed: Seed, device: &B::Device) -> Self {
        let bound = 1.0 / (hidden as f64).sqrt();
        let dense =
            |inputs, label| Dense::uniform([inputs, 4 * hidden], bound, seed.fork(label), device);
        Self {
            input: dense(inputs, "input"),
            recurrent: dense(hidden, "recurrent"),
        }
    }

    /// `[tokens, in]` to `[tokens, hidden]`, over the tokens in the order of `steps`.
    fn forward(&self, x: Tensor<B, 2>, steps: impl Iterator<Item = usize>) -> Tensor<B, 2>
    where
        B: ModelBackend,
    {
        let tokens = x.dims()[0];
        let hidden = self.recurrent.weight.val().dims()[0];
        let zeros = || Tensor::<B, 2>::zeros([1, hidden], &x.device());
        let (mut h, mut c) = (zeros(), zeros());
        let inputs = self.input.forward(x.clone());
        let mut outputs: Vec<Option<Tensor<B, 2>>> = vec![None; tokens];
        for step in steps {
            let gates = inputs.clone().narrow(0, step, 1) + self.recurrent.forward(h);
            let gate = |index: usize| gates.clone().narrow(1, index * hidden, hidden);
            c = activation::sigmoid(gate(1)) * c + activation::sigmoid(gate(0)) * gate(2).tanh();
            h = activation::sigmoid(gate(3)) * c.clone().tanh();
            outputs[step] = Some(h.clone());
        }
        Tensor::cat(outputs.into_iter().flatten().collect(), 0)
    }
}

impl<B: Backend> EncodedPrompt<B> {
    fn encode(&self, dropout: Option<Seed>) -> Tensor<B, 2>
    where
        B: ModelBackend,
    {
        let mut x = self.embedding.val();
        let tokens = x.dims()[0];
        for (index, layer) in self.lstm.iter().enumerate() {
            let seed = dropout.filter(|_| index > 0);
            let seed = seed.map(|seed| seed.fork("prompt encoder").fork_index(index as u64));
            x = dropped(&x, self.dropout, seed);
            let forward = layer.forward.forward(x.clone(), 0..tokens);
            let backward = layer.backward.forward(x, (0..tokens).rev());
            x = Tensor::cat(vec![forward, backward], 1);
        }
        for (index, layer) in self.head.iter().enumerate() {
            if index > 0 {
                x = activation::relu(x);
            }
            x = layer.forward(x);
        }
        x
    }
}

impl<B: Backend> PromptTokens<B> for EncodedPrompt<B> {
    fn count(&self) -> usize {
        self.embedding.val().dims()[0]
    }

    fn embeddings(&self, dropout: Option<Seed>) -> Option<Tensor<B, 2>>
    where
        B: ModelBackend,
    {
        Some(self.encode(dropout))
    }

    fn to_stored(&self) -> Tensor<B, 2>
    where
        B: ModelBackend,
    {
        self.encode(None)
    }

    fn walk(&mut self, visit: &mut dyn FnMut(&ParamMeta, ParamSlot<'_, B>)) {
        let [_, width] = self.embedding.val().dims();
        let name = match self.head.is_empty() {
            true => PROMPT_EMBEDDINGS,
            false => "prompt_encoder.embedding",
        };
        let meta = ParamMeta::single(ParamKind::Adapter, name, width, false);
        visit(&meta, ParamSlot::Matrix(&mut self.embedding));
        for (index, layer) in self.lstm.iter_mut().enumerate() {
            for (direction, lstm) in [
                ("forward", &mut layer.forward),
                ("backward", &mut layer.backward),
            ] {
                let name = format!("prompt_encoder.lstm.{index}.{direction}");
                lstm.input.walk(&format!("{name}.input"), visit);
                lstm.recurrent.walk(&format!("{name}.recurrent"), visit);
            }
        }
        for (index, layer) in self.head.iter_mut().enumerate() {
            layer.walk(&format!("prompt_encoder.head.{index}"), visit);
        }
    }
}
