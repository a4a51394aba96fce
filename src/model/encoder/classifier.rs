//! An encoder with its classification head on a device.

use burn::module::Module;
use burn::tensor::backend::Backend;
use burn::tensor::{Tensor, activation};

use super::config::Activation;
use super::network::Encoder;
use super::{EncoderConfig, Labels};
use crate::collective;
use crate::data::{EncodedText, own_micro_batches};
use crate::host::read;
use crate::model::scalar_head;
use crate::ops::{ModelBackend, Numerics};
use crate::params::{ParamMeta, ParamSlot, Parameters};
use crate::peft::Projection;

/// An encoder that gives a number for each label, transformers' `*ForSequenceClassification`.
#[derive(Module, Debug)]
pub struct EncoderClassifier<B: Backend> {
    encoder: Encoder<B>,
    dense: Projection<B>,
    out: Projection<B>,
    #[module(skip)]
    config: EncoderConfig,
}

impl<B: Backend> EncoderClassifier<B> {
    /// An unfilled classifier.
    pub(super) fn new(config: &EncoderConfig, device: &B::Device) -> Self {
        let (head, hidden) = (&config.family.head, config.sizes.hidden_size);
        let linear = |name: &str, outputs: usize| {
            Projection::new(hidden, &[(name.to_owned(), outputs)], true, true, device)
        };
        Self {
            encoder: Encoder::new(config.family, &config.sizes, device),
            dense: linear(head.dense, hidden),
            out: linear(head.out, config.labels().names().len()),
            config: config.clone(),
        }
    }

    /// Sets the storage and product precision of the encoder, before it is loaded. The head stays in f32.
    pub(super) fn store_as(&mut self, numerics: Numerics) {
        self.encoder.store_as(numerics);
    }

    /// The labels.
    pub fn labels(&self) -> &Labels {
        self.config.labels()
    }
}

impl<B: ModelBackend> EncoderClassifier<B> {
    /// The logits of all labels for each text, with at most `micro_batch_tokens` tokens in one pass, unless a text has more. Reads the
    /// device. `on_progress` receives the texts and tokens done so far.
    pub fn logits(
        &self,
        texts: &[EncodedText],
        micro_batch_tokens: usize,
        device: &B::Device,
        on_progress: &mut dyn FnMut(usize, u64),
    ) -> Vec<Vec<f32>> {
        let mut all = vec![Vec::new(); texts.len()];
        let lens: Vec<usize> = texts.iter().map(|text| text.ids.len()).collect();
        let labels = self.labels().names().len();
        let (mut done, mut tokens) = (0, 0);
        let own = own_micro_batches(&lens, micro_batch_tokens);
        for part in &own {
            let packed: Vec<&EncodedText> = part.iter().map(|&i| &texts[i]).collect();
            let logits = read(self.head(self.encoder.first_states(&packed, device)));
            for (&text, logits) in part.iter().zip(logits.chunks_exact(labels)) {
                all[text] = logits.to_vec();
            }
            done += part.len();
            tokens += part.iter().map(|&i| lens[i] as u64).sum::<u64>();
            on_progress(done, tokens);
        }
        collective::share(&mut all, own.concat());
        all
    }

    /// `[texts, hidden]` to `[texts, labels]`.
    fn head(&self, states: Tensor<B, 2>) -> Tensor<B, 2> {
        let inner = self.dense.forward(states, None);
        let inner = match self.config.family.head.activation {
            Activation::Tanh => inner.tanh(),
            Activation::Relu => activation::relu(inner),
        };
        match (self.labels().names(), &self.out.bias) {
            ([_], Some(bias)) => {
                let scores = scalar_head(inner, self.out.weight.val().squeeze_dim::<1>(1));
                (scores + bias.val()).unsqueeze_dim(1)
            }
            _ => self.out.forward(inner, None),
        }
    }
}

impl<B: Backend> Parameters<B> for EncoderClassifier<B> {
    fn for_each_parameter(&mut self, visit: &mut dyn FnMut(&ParamMeta, ParamSlot<'_, B>)) {
        self.encoder.for_each_parameter(visit);
        self.dense.for_each_parameter(visit);
        self.out.for_each_parameter(visit);
    }
}
