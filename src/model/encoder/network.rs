//! The encoder: embeddings of tokens, positions and token types, and layers with a LayerNorm after each residual sum.

use burn::module::Module;
use burn::tensor::Tensor;
use burn::tensor::backend::Backend;

use super::EncoderSizes;
use super::config::Family;
use crate::data::EncodedText;
use crate::host::indices;
use crate::model::mlp::Mlp;
use crate::model::norm::LayerNorm;
use crate::model::table::{PositionTable, Table};
use crate::ops::{self, Attend, Mask, ModelBackend, Numerics};
use crate::params::{ParamMeta, ParamSlot, Parameters};
use crate::peft::Projection;
use crate::tokens::Segments;

/// One layer.
#[derive(Module, Debug)]
pub(super) struct EncoderLayer<B: Backend> {
    qkv: Projection<B>,
    attention_out: Projection<B>,
    attention_norm: LayerNorm<B>,
    mlp: Mlp<B>,
    output_norm: LayerNorm<B>,
}

/// An encoder without a head.
#[derive(Module, Debug)]
pub(super) struct Encoder<B: Backend> {
    word_embeddings: Table<B>,
    position_embeddings: PositionTable<B>,
    token_type_embeddings: Option<Table<B>>,
    norm: LayerNorm<B>,
    layers: Vec<EncoderLayer<B>>,
    #[module(skip)]
    sizes: EncoderSizes,
}

impl<B: Backend> Encoder<B> {
    /// An unfilled encoder.
    pub(super) fn new(family: &Family, sizes: &EncoderSizes, device: &B::Device) -> Self {
        let (hidden, inner) = (sizes.hidden_size, sizes.intermediate_size);
        let norm = |path: String| LayerNorm::new(path, hidden, sizes.layer_norm_eps, device);
        let linear = |layers: &[(String, usize)], inputs: usize| {
            Projection::new(inputs, layers, true, true, device)
        };
        let names = family.layer;
        let layers = (0..sizes.num_hidden_layers).map(|i| {
            let path = |name: &str| format!("{}.{i}.{name}", family.layers);
            EncoderLayer {
                qkv: linear(&names.qkv.map(|name| (path(name), hidden)), hidden),
                attention_out: linear(&[(path(names.attention_out), hidden)], hidden),
                attention_norm: norm(path(names.attention_norm)),
                mlp: Mlp::new(
                    linear(&[(path(names.up), inner)], hidden),
                    sizes.hidden_act,
                    linear(&[(path(names.down), hidden)], inner),
                ),
                output_norm: norm(path(names.output_norm)),
            }
        });
        let path = |name: &str| format!("{}.{name}", family.embeddings);
        let table = |name: &str, rows: usize| {
            Table::new(&path(&format!("{name}.weight")), [rows, hidden], device)
        };
        Self {
            word_embeddings: table("word_embeddings", sizes.vocab_size),
            // Its first position is added to the positions: padding tokens have a row before it.
            position_embeddings: PositionTable::new(
                &path("position_embeddings.weight"),
                [sizes.max_position_embeddings, hidden],
                0,
                device,
            ),
            token_type_embeddings: (sizes.type_vocab_size > 0)
                .then(|| table("token_type_embeddings", sizes.type_vocab_size)),
            norm: norm(path("LayerNorm")),
            layers: layers.collect(),
            sizes: sizes.clone(),
        }
    }

    /// Sets the storage and product precision of linear layers and token embedding, before they are loaded.
    pub(super) fn store_as(&mut self, numerics: Numerics) {
        self.word_embeddings.store_as(numerics);
        for layer in &mut self.layers {
            for projection in [
                &mut layer.qkv,
                &mut layer.attention_out,
                &mut layer.mlp.up,
                &mut layer.mlp.down,
            ] {
                projection.store_as(numerics);
            }
        }
    }
}

impl<B: ModelBackend> Encoder<B> {
    /// The final state of each text's first token, `[texts, hidden]`.
    pub(super) fn first_states(&self, texts: &[&EncodedText], device: &B::Device) -> Tensor<B, 2> {
        let segments = Segments::from_lens(texts.iter().map(|text| text.ids.len()));
        let first: Vec<usize> = segments.iter().map(|range| range.start).collect();
        let first = indices(&first, device);
        let mut x = self.embed(texts, device);
        let attend = Attend {
            mask: Mask::Full,
            ..Attend::causal(self.sizes.layout(), &segments)
        };
        for (i, layer) in self.layers.iter().enumerate() {
            let mut attended = ops::attention(layer.qkv.forward(x.clone(), None), &attend);
            // After the keys and values of the last layer only the first tokens count.
            if i + 1 == self.layers.len() {
                attended = attended.select(0, first.clone());
                x = x.select(0, first.clone());
            }
            let attended = layer.attention_out.forward(attended, None);
            x = layer.attention_norm.forward(ops::residual(x, attended));
            let mlp = layer.mlp.forward(x.clone(), None);
            x = layer.output_norm.forward(ops::residual(x, mlp));
        }
        x
    }

    /// The states before the first layer, `[tokens, hidden]`.
    fn embed(&self, texts: &[&EncodedText], device: &B::Device) -> Tensor<B, 2> {
        let all = |of: fn(&EncodedText) -> &[u32]| -> Vec<usize> {
            let ids = texts.iter().flat_map(|text| of(text));
            ids.map(|&id| id as usize).collect()
        };
        let mut x = self
            .word_embeddings
            .look_up(&indices(&all(|text| &text.ids), device));
        if let Some(table) = &self.token_type_embeddings {
            let types = match self.sizes.reads_types {
                true => all(|text| &text.type_ids),
                false => vec![0; x.dims()[0]],
            };
            x = x + table.look_up(&indices(&types, device));
        }
        let rows: Vec<usize> = texts
            .iter()
            .flat_map(|text| position_rows(&text.ids, self.sizes.padding_idx))
            .collect();
        self.norm
            .forward(x + self.position_embeddings.look_up(&rows))
    }
}

/// Rows of the position table for the tokens of a text. With a padding token, positions begin after its id, and a padding token inside
/// the text has that row and counts for none.
///
/// # Source
/// transformers 5.23, `RobertaEmbeddings.create_position_ids_from_input_ids`.
fn position_rows(ids: &[u32], padding_idx: Option<usize>) -> Vec<usize> {
    let Some(padding) = padding_idx else {
        return (0..ids.len()).collect();
    };
    let mut last = padding;
    let row = |&id: &u32| match id as usize == padding {
        true => padding,
        false => {
            last += 1;
            last
        }
    };
    ids.iter().map(row).collect()
}

impl<B: Backend> Parameters<B> for Encoder<B> {
    fn for_each_parameter(&mut self, visit: &mut dyn FnMut(&ParamMeta, ParamSlot<'_, B>)) {
        self.word_embeddings.for_each_parameter(visit);
        self.position_embeddings.for_each_parameter(visit);
        if let Some(table) = &mut self.token_type_embeddings {
            table.for_each_parameter(visit);
        }
        self.norm.for_each_parameter(visit);
        for layer in &mut self.layers {
            layer.qkv.for_each_parameter(visit);
            layer.attention_out.for_each_parameter(visit);
            layer.attention_norm.for_each_parameter(visit);
            layer.mlp.up.for_each_parameter(visit);
            layer.mlp.down.for_each_parameter(visit);
            layer.output_norm.for_each_parameter(visit);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::position_rows;

    #[test]
    fn positions_begin_after_the_padding_token_and_leave_it_out() {
        assert_eq!(position_rows(&[7, 1, 7], None), [0, 1, 2]);
        assert_eq!(position_rows(&[0, 7, 1, 8], Some(1)), [2, 3, 1, 4]);
    }
}
