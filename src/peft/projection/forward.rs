//! What a projection computes: the product with its weight, and what its adapters make of it.

use burn::tensor::Tensor;

use super::Projection;
use crate::ops::{self, FrozenWeight, LinearInput, ModelBackend, Owners};
use crate::peft::lora::low_rank::{LowRank, low_rank_adapters};
use crate::peft::lora::{added_bias, column_factors};
use crate::peft::vera::joint::{Products, vera_adapters};
use crate::peft::{Adapter, Lora, Vera};
use crate::rng::Seed;

impl<B: ModelBackend> Projection<B> {
    /// `[tokens, in]` to `[tokens, sum of out]`. `dropout` gives the adapters' dropout masks; `None` drops nothing.
    pub fn forward(&self, x: Tensor<B, 2>, dropout: Option<Seed>) -> Tensor<B, 2> {
        self.forward_of(x, LinearInput::Plain, dropout)
    }

    /// [`Projection::forward`] of an input that comes from `source`: with adapters and without dropout the input is not kept
    /// for the backward pass.
    pub fn forward_of(
        &self,
        source: Tensor<B, 2>,
        input: LinearInput<B>,
        dropout: Option<Seed>,
    ) -> Tensor<B, 2> {
        if !self.shares.is_empty() {
            return self.forward_shared(ops::linear_input(source, &input));
        }
        if self.adapters.iter().all(Option::is_none) {
            let x = ops::linear_input(source, &input);
            return self.biased(self.base(x));
        }
        let Some(low_rank) = low_rank_adapters(&self.adapters) else {
            let x = ops::linear_input(source, &input);
            return match vera_adapters(&self.adapters) {
                Some(vera) => self.forward_vera(x, &vera, dropout),
                None => self.forward_adapted(x, dropout),
            };
        };
        let added = added_bias(&self.layers, &low_rank);
        let drops = low_rank.iter().flatten().any(|lora| lora.dropout > 0.0);
        let y = match dropout.filter(|_| drops) {
            Some(seed) => {
                self.forward_with_dropout(ops::linear_input(source, &input), &low_rank, seed)
            }
            None => {
                let factors = self.column_factors(&low_rank);
                let LowRank { a, b, parts, .. } = LowRank::new(&self.layers, &[low_rank]);
                let y = ops::lora_linear_of(source, input, &self.frozen(), a, b, &parts);
                match factors {
                    Some(factors) => y * factors,
                    None => y,
                }
            }
        };
        let y = match added {
            Some(added) => y + added,
            None => y,
        };
        self.biased(y)
    }

    /// The residual stream `stream` with `y`, what this layer, the last of a sub-layer, adds to it.
    pub fn add_to(&self, stream: Tensor<B, 2>, y: Tensor<B, 2>) -> Tensor<B, 2> {
        match self.adapters.first() {
            Some(Some(adapter)) => adapter.add(stream, y),
            _ => ops::residual(stream, y),
        }
    }

    /// The layers that read the same are one product; each adapter makes of its layer's columns what it makes of them.
    fn forward_adapted(&self, x: Tensor<B, 2>, dropout: Option<Seed>) -> Tensor<B, 2> {
        let of_adapter = |adapter: &Option<Adapter<B>>| adapter.as_ref()?.input(&x);
        let inputs: Vec<_> = self.adapters.iter().map(of_adapter).collect();
        let own = inputs.iter().any(Option::is_none);
        let joint = own.then(|| self.biased(self.base(x.clone())));
        let (tokens, mut column) = (x.dims()[0], 0);
        let mut outputs = Vec::new();
        for ((layer, adapter), input) in self.layers.iter().zip(&self.adapters).zip(inputs) {
            let mut y = match input {
                Some(input) => self.biased(self.base(input)),
                None => (joint.clone()).expect("formed if a layer has no input of its own"),
            };
            if self.layers.len() > 1 {
                y = y.slice([0..tokens, column..column + layer.width]);
            }
            column += layer.width;
            let seed = dropout.map(|seed| seed.fork(&layer.path));
            outputs.push(match adapter {
                Some(adapter) => adapter.output(&x, y, seed),
                None => y,
            });
        }
        match outputs.len() {
            1 => outputs.remove(0),
            _ => Tensor::cat(outputs, 1),
        }
    }

    /// VeRA's adapters share a matrix and, without dropout, its product with the input.
    fn forward_vera(
        &self,
        x: Tensor<B, 2>,
        adapters: &[Option<&Vera<B>>],
        dropout: Option<Seed>,
    ) -> Tensor<B, 2> {
        let drops = adapters.iter().flatten().any(|vera| vera.dropout > 0.0);
        let products = match dropout.filter(|_| drops) {
            Some(_) => None,
            None => Products::new(x.clone(), &self.layers, adapters),
        };
        match products {
            Some(Products { t, b, parts }) => {
                self.biased(ops::low_rank_linear(x, &self.frozen(), t, b, &parts))
            }
            None => self.forward_adapted(x, dropout),
        }
    }

    /// See [`Projection::share`].
    fn forward_shared(&self, x: Tensor<B, 2>) -> Tensor<B, 2> {
        if self.shares.iter().flatten().all(Option::is_none) {
            return self.biased(self.base(x));
        }
        let models: Vec<Vec<Option<&Lora<B>>>> = (self.shares.iter())
            .map(|adapters| adapters.iter().map(Option::as_ref).collect())
            .collect();
        let LowRank {
            a,
            b,
            parts,
            owners,
        } = LowRank::new(&self.layers, &models);
        let owners = Owners {
            shares: self.shares.len(),
            of_parts: &owners,
        };
        self.biased(ops::lora_linear_shared(
            x,
            &self.frozen(),
            a,
            b,
            &parts,
            owners,
        ))
    }

    /// The weight, which is not trained.
    fn frozen(&self) -> FrozenWeight<B> {
        match self.matrix() {
            Some(matrix) => FrozenWeight::Reduced(matrix.clone()),
            None => FrozenWeight::full(self.weight.val(), self.matmul),
        }
    }

    /// Without adapters and bias.
    fn base(&self, x: Tensor<B, 2>) -> Tensor<B, 2> {
        match self.matrix() {
            Some(matrix) => ops::reduced_linear(x, matrix),
            None => ops::full_linear(x, self.weight.val(), self.matmul),
        }
    }

    fn biased(&self, y: Tensor<B, 2>) -> Tensor<B, 2> {
        match &self.bias {
            Some(bias) => y + bias.val().unsqueeze::<2>(),
            None => y,
        }
    }

    /// What DoRA scales the columns of the output before the bias by.
    fn column_factors(&self, adapters: &[Option<&Lora<B>>]) -> Option<Tensor<B, 2>> {
        let widths = self.layers.iter().map(|layer| layer.width);
        let layers: Vec<_> = widths.zip(adapters.iter().copied()).collect();
        let base = |x| self.base(x);
        let device = self.weight.val().device();
        column_factors(&layers, &device, base, |compute| {
            self.factors.get_or(compute)
        })
    }

    /// The weight's product for the columns of layer `index` alone.
    fn base_of(&self, index: usize, x: Tensor<B, 2>) -> Tensor<B, 2> {
        let columns = self.columns_of(index);
        match self.matrix() {
            _ if self.layers.len() == 1 => self.base(x),
            Some(_) => {
                let rows = x.dims()[0];
                self.base(x).slice([0..rows, columns])
            }
            None => {
                let weight = self.weight.val().slice([0..self.inputs(), columns]);
                ops::full_linear(x, weight, self.matmul)
            }
        }
    }

    /// LoRA's low-rank products cannot share one input where each adapter sees its own mask. DoRA passes the dropped input through
    /// the weight too, as PEFT does: `y = x w + (g - 1) d w + g s (d a) b` with factors `g` and the dropped input `d`. What PiSSA
    /// begins with is a part of the weight, and sees what the weight sees.
    fn forward_with_dropout(
        &self,
        x: Tensor<B, 2>,
        adapters: &[Option<&Lora<B>>],
        seed: Seed,
    ) -> Tensor<B, 2> {
        let plus = |y: Tensor<B, 2>, part| match part {
            Some(part) => y + part,
            None => y,
        };
        let factors = self.column_factors(adapters);
        let mut deltas = Vec::new();
        for (index, (adapter, layer)) in adapters.iter().zip(&self.layers).enumerate() {
            let Some(lora) = adapter else {
                deltas.push(Tensor::zeros([x.dims()[0], layer.width], &x.device()));
                continue;
            };
            let dropped = lora.dropped(&x, seed.fork(&layer.path));
            let mut delta = lora.product(dropped.clone());
            if let (Some(factors), Some(_)) = (&factors, &lora.magnitude) {
                let factors = factors.clone().slice([0..1, self.columns_of(index)]);
                let base = self.base_of(index, dropped.clone());
                let base = plus(base, lora.start_product(dropped));
                delta = base * (factors.clone() - 1.0) + delta * factors;
            }
            deltas.push(plus(delta, lora.start_product(x.clone())));
        }
        self.base(x) + Tensor::cat(deltas, 1)
    }
}
