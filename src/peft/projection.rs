//! The linear layer every family uses: a joint weight, and one optional adapter per Hugging Face layer inside it.

use std::sync::Arc;

use burn::module::{Module, Param, ParamId};
use burn::tensor::backend::Backend;
use burn::tensor::{Tensor, TensorData};

use super::{Lora, LoraConfig, LoraMatrix, lora_key};
use crate::ops::{
    self, FrozenWeight, LinearInput, LowRankPart, MatmulPrecision, ModelBackend, Numerics, Owners,
    ReducedMatrix, f32_matmul,
};
use crate::params::{ParamKind, ParamMeta, ParamSlot, Reduced, placeholder};
use crate::rng::Seed;

/// One or more linear layers with the same input, as one matrix product.
#[derive(Module, Debug)]
pub struct Projection<B: Backend> {
    /// `[in, sum of out]`; a placeholder if the weight is kept in fewer bits.
    pub weight: Param<Tensor<B, 2>>,
    /// `[sum of out]`.
    pub bias: Option<Param<Tensor<B, 1>>>,
    /// One slot per layer.
    pub adapters: Vec<Option<Lora<B>>>,
    /// The same of several models, each for an equal share of the rows; see [`Projection::share`].
    shares: Vec<Vec<Option<Lora<B>>>>,
    #[module(skip)]
    reduced: Option<Reduced>,
    #[module(skip)]
    matmul: MatmulPrecision,
    #[module(skip)]
    layers: Vec<LayerSpec>,
    #[module(skip)]
    transposed: bool,
    #[module(skip)]
    order: Option<Arc<Vec<usize>>>,
}

/// A weight, wherever a model has it. Models that were cloned from one another have the same, until one's is merged.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Base {
    /// A parameter in f32. Its numbers may have been trained meanwhile.
    Full(ParamId),
    /// The address of a matrix in fewer bits.
    Reduced(usize),
}

/// A Hugging Face linear layer inside a projection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LayerSpec {
    /// Module path, e.g. `model.layers.0.self_attn.q_proj`.
    pub path: String,
    /// Output columns.
    pub width: usize,
}

impl<B: Backend> Projection<B> {
    /// An unfilled projection. `transposed`: files hold `[out, in]` (PyTorch's Linear) and not `[in, out]` (Conv1D).
    pub fn new(
        layers: &[(String, usize)],
        with_bias: bool,
        transposed: bool,
        device: &B::Device,
    ) -> Self {
        Self {
            weight: placeholder(device),
            bias: with_bias.then(|| placeholder(device)),
            adapters: layers.iter().map(|_| None).collect(),
            shares: Vec::new(),
            layers: layers
                .iter()
                .map(|(path, width)| LayerSpec {
                    path: path.clone(),
                    width: *width,
                })
                .collect(),
            reduced: None,
            matmul: MatmulPrecision::default(),
            transposed,
            order: None,
        }
    }

    /// Has the weight, which is to be filled after this, kept and multiplied as `numerics` says: frozen if not kept in f32.
    pub fn store_as(&mut self, numerics: Numerics) {
        self.reduced = Reduced::by_row(numerics);
        self.matmul = numerics.matmul;
    }

    /// The same with its output columns in another order than the file's: column `j` is the file's column `order[j]`, in
    /// weight and bias and in the adapter's `B`.
    ///
    /// # Panics
    /// If there are several layers inside, or `order` is not as long as the layer is wide.
    pub fn with_order(mut self, order: Arc<Vec<usize>>) -> Self {
        assert_eq!(self.layers.len(), 1, "an order belongs to one layer");
        assert_eq!(self.layers[0].width, order.len(), "one column each");
        self.order = Some(order);
        self
    }

    /// The layers inside, from left to right.
    pub fn layers(&self) -> &[LayerSpec] {
        &self.layers
    }

    /// Number of input features.
    pub fn inputs(&self) -> usize {
        match self.matrix() {
            Some(matrix) => matrix.inputs(),
            None => self.weight.val().dims()[0],
        }
    }

    /// The weight in fewer bits, if it is kept so.
    fn matrix(&self) -> Option<&ReducedMatrix> {
        self.reduced.as_ref().and_then(Reduced::matrix)
    }

    /// The weight in f32: a copy if it is kept in fewer bits.
    fn full_weight(&self) -> Tensor<B, 2> {
        let weight = self.weight.val();
        let Some(matrix) = self.matrix() else {
            return weight;
        };
        let shape = [matrix.inputs(), matrix.outputs()];
        Tensor::from_data(TensorData::new(matrix.values(), shape), &weight.device())
    }

    /// Gives layer `index` a fresh adapter.
    pub fn attach(&mut self, index: usize, config: &LoraConfig, seed: Seed) {
        let (device, inputs) = (self.weight.val().device(), self.inputs());
        let layer = &self.layers[index];
        self.adapters[index] = Some(Lora::new(
            config,
            &layer.path,
            inputs,
            layer.width,
            seed.fork(&layer.path),
            &device,
        ));
    }

    /// What tells this projection's weight from others.
    pub fn identity(&self) -> Base {
        match self.matrix() {
            Some(matrix) => Base::Reduced(matrix.address()),
            None => Base::Full(self.weight.id),
        }
    }

    /// Has the rows, as many equal shares as there are `shares`, each go through adapters of their own instead of
    /// [`Projection::adapters`]. For passes without gradients; what is walked, saved and merged stays as it is.
    pub fn share(&mut self, shares: Vec<Vec<Option<Lora<B>>>>) {
        self.shares = shares;
    }

    /// Removes all adapters.
    pub fn detach(&mut self) {
        self.adapters.iter_mut().for_each(|adapter| *adapter = None);
    }

    /// Adds the adapters to the weight and removes them. A weight in fewer bits is one in f32 from then on: rounded again, it would
    /// lose part of the adapters.
    pub fn merge(&mut self)
    where
        B: ModelBackend,
    {
        if self.adapters.iter().all(Option::is_none) {
            return;
        }
        let inputs = self.inputs();
        let mut weight = self.full_weight().detach();
        self.reduced = None;
        let mut column = 0;
        for (adapter, layer) in self.adapters.iter_mut().zip(&self.layers) {
            if let Some(lora) = adapter.take() {
                let columns = [0..inputs, column..column + layer.width];
                let sum = weight.clone().slice(columns.clone()) + lora.delta().detach();
                weight = weight.slice_assign(columns, sum);
            }
            column += layer.width;
        }
        // Another weight than that of models which share the old one.
        self.weight = Param::initialized(ParamId::new(), weight);
    }

    /// Walks weight, bias and adapters.
    pub fn for_each_parameter(&mut self, visit: &mut dyn FnMut(&ParamMeta, ParamSlot<'_, B>)) {
        let pieces = |suffix: &str| {
            self.layers
                .iter()
                .map(|layer| (format!("{}.{suffix}", layer.path), layer.width))
                .collect()
        };
        let weight = ParamMeta {
            kind: ParamKind::Matrix,
            pieces: pieces("weight"),
            transposed: self.transposed,
            order: self.order.clone(),
        };
        let bias = ParamMeta {
            kind: ParamKind::Vector,
            pieces: pieces("bias"),
            transposed: false,
            order: self.order.clone(),
        };
        visit(&weight, ParamSlot::of(&mut self.weight, &mut self.reduced));
        if let Some(param) = &mut self.bias {
            visit(&bias, ParamSlot::Vector(param));
        }
        for (adapter, layer) in self.adapters.iter_mut().zip(&self.layers) {
            if let Some(lora) = adapter {
                let rank = lora.rank();
                let meta = |part, columns| {
                    ParamMeta::single(
                        ParamKind::Adapter,
                        lora_key(&layer.path, part),
                        columns,
                        true,
                    )
                };
                visit(&meta(LoraMatrix::A, rank), ParamSlot::Matrix(&mut lora.a));
                visit(
                    &meta(LoraMatrix::B, layer.width).ordered(self.order.clone()),
                    ParamSlot::Matrix(&mut lora.b),
                );
            }
        }
    }
}

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
        let mut adapters = self.adapters.iter().flatten().peekable();
        if adapters.peek().is_none() {
            let x = ops::linear_input(source, &input);
            return self.biased(self.base(x));
        }
        let drops = adapters.any(|lora| lora.dropout > 0.0);
        let y = match dropout.filter(|_| drops) {
            Some(seed) => self.forward_with_dropout(ops::linear_input(source, &input), seed),
            None => {
                let LowRank { a, b, parts, .. } =
                    self.low_rank(std::slice::from_ref(&self.adapters));
                ops::lora_linear_of(source, input, &self.frozen(), a, b, &parts)
            }
        };
        self.biased(y)
    }

    /// See [`Projection::share`].
    fn forward_shared(&self, x: Tensor<B, 2>) -> Tensor<B, 2> {
        if self.shares.iter().flatten().all(Option::is_none) {
            return self.biased(self.base(x));
        }
        let LowRank {
            a,
            b,
            parts,
            owners,
        } = self.low_rank(&self.shares);
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

    /// All adapters as the fused operation takes them, from left to right, in each column those of one model after the other.
    fn low_rank(&self, models: &[Vec<Option<Lora<B>>>]) -> LowRank<B> {
        let (mut a, mut b, mut parts) = (Vec::new(), Vec::new(), Vec::new());
        let (mut column, mut owners) = (0, Vec::new());
        for (index, layer) in self.layers.iter().enumerate() {
            for (owner, adapters) in models.iter().enumerate() {
                let Some(lora) = &adapters[index] else {
                    continue;
                };
                owners.push(owner);
                let rank = lora.rank();
                parts.push(LowRankPart {
                    rank,
                    scale: lora.scale as f32,
                    column,
                    width: layer.width,
                });
                a.push(lora.a.val());
                b.push(lora.b.val().reshape([rank * layer.width]));
            }
            column += layer.width;
        }
        let join = |mut tensors: Vec<Tensor<B, 2>>| {
            if tensors.len() == 1 {
                tensors.remove(0)
            } else {
                Tensor::cat(tensors, 1)
            }
        };
        let b = if b.len() == 1 {
            b.remove(0)
        } else {
            Tensor::cat(b, 0)
        };
        LowRank {
            a: join(a),
            b,
            parts,
            owners,
        }
    }

    /// Each adapter sees its own mask (as in PEFT), so the low-rank products cannot share one input.
    fn forward_with_dropout(&self, x: Tensor<B, 2>, seed: Seed) -> Tensor<B, 2> {
        let [tokens, inputs] = x.dims();
        let device = x.device();
        let mut deltas = Vec::new();
        for (adapter, layer) in self.adapters.iter().zip(&self.layers) {
            deltas.push(match adapter {
                Some(lora) => {
                    let mask = dropout_mask(tokens * inputs, lora.dropout, seed.fork(&layer.path));
                    let mask = Tensor::from_data(TensorData::new(mask, [tokens, inputs]), &device);
                    let ranks = f32_matmul(x.clone() * mask, lora.a.val());
                    f32_matmul(ranks, lora.b.val()).mul_scalar(lora.scale)
                }
                None => Tensor::zeros([tokens, layer.width], &device),
            });
        }
        self.base(x) + Tensor::cat(deltas, 1)
    }
}

/// See [`ops::lora_linear`].
struct LowRank<B: Backend> {
    a: Tensor<B, 2>,
    b: Tensor<B, 1>,
    parts: Vec<LowRankPart>,
    /// Whose each part is.
    owners: Vec<usize>,
}

/// Zero with probability `p`, else `1 / (1 - p)`.
fn dropout_mask(len: usize, p: f64, seed: Seed) -> Vec<f32> {
    let keep = (1.0 / (1.0 - p)) as f32;
    (0..len)
        .map(|i| {
            if seed.uniform(i as u64) < p {
                0.0
            } else {
                keep
            }
        })
        .collect()
}
