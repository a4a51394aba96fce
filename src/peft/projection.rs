//! The linear layer every family uses: a joint weight, and one optional adapter per Hugging Face layer inside it.

use std::sync::Arc;

use burn::module::{Module, Param, ParamId};
use burn::tensor::backend::Backend;
use burn::tensor::{Tensor, TensorData};

use super::low_rank::{LowRank, low_rank_adapters};
use super::{Adapter, AdapterSpec, LinearSpec, Lora};
use crate::ops::{
    self, FrozenWeight, LinearInput, MatmulPrecision, ModelBackend, Numerics, Owners, ReducedMatrix,
};
use crate::params::{ParamKind, ParamMeta, ParamSlot, Reduced, TrainedColumns, placeholder};
use crate::rng::Seed;

/// Column of the file that each column of a parameter holds; `None` if they stand in the same order.
pub type ColumnOrder = Option<Arc<Vec<usize>>>;

/// One or more linear layers with the same input, as one matrix product.
#[derive(Module, Debug)]
pub struct Projection<B: Backend> {
    /// `[in, sum of out]`; a placeholder if the weight is stored in reduced precision.
    pub weight: Param<Tensor<B, 2>>,
    /// `[sum of out]`.
    pub bias: Option<Param<Tensor<B, 1>>>,
    /// One slot per layer.
    pub adapters: Vec<Option<Adapter<B>>>,
    /// LoRA's of several models, each for an equal share of the rows; see [`Projection::share`].
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
    order: ColumnOrder,
    /// Of weight and bias.
    #[module(skip)]
    trained_columns: [TrainedColumns; 2],
}

/// A weight, wherever a model has it. Models that were cloned from one another have the same, until one's is merged.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Base {
    /// A parameter in f32. Its numbers may have been trained meanwhile.
    Full(ParamId),
    /// The address of a reduced matrix.
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
    /// An unfilled projection of `inputs` features. `transposed`: files hold `[out, in]` (PyTorch's Linear) and not `[in, out]`
    /// (Conv1D).
    pub fn new(
        inputs: usize,
        layers: &[(String, usize)],
        with_bias: bool,
        transposed: bool,
        device: &B::Device,
    ) -> Self {
        let outputs = layers.iter().map(|(_, width)| width).sum();
        Self {
            weight: placeholder([inputs, outputs], device),
            bias: with_bias.then(|| placeholder([outputs], device)),
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
            trained_columns: [None, None],
        }
    }

    /// Sets the storage and product precision of the weight, before it is loaded. Anything but f32 freezes it.
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
            None => self.weight.lazy_shape().dims::<2>()[0],
        }
    }

    /// The reduced weight, if it is stored so.
    fn matrix(&self) -> Option<&ReducedMatrix> {
        self.reduced.as_ref().and_then(Reduced::matrix)
    }

    /// The weight in f32; a copy if it is reduced.
    fn full_weight(&self) -> Tensor<B, 2> {
        let weight = self.weight.val();
        let Some(matrix) = self.matrix() else {
            return weight;
        };
        let shape = [matrix.inputs(), matrix.outputs()];
        Tensor::from_data(TensorData::new(matrix.values(), shape), &weight.device())
    }

    /// Gives layer `index` a fresh adapter.
    pub fn attach(&mut self, index: usize, spec: &AdapterSpec, seed: Seed) {
        let layer = &self.layers[index];
        let layer = LinearSpec {
            name: layer.path.clone(),
            in_features: self.inputs(),
            out_features: layer.width,
        };
        let seed = seed.fork(&layer.name);
        self.adapters[index] = Some(spec.fresh(&layer, seed, &self.weight.val().device()));
    }

    /// The identity of this projection's weight.
    pub fn identity(&self) -> Base {
        match self.matrix() {
            Some(matrix) => Base::Reduced(matrix.address()),
            None => Base::Full(self.weight.id),
        }
    }

    /// LoRA's adapters, one slot per layer; `None` if there are adapters of another method.
    pub fn low_rank_adapters(&self) -> Option<Vec<Option<Lora<B>>>> {
        let adapters = low_rank_adapters(&self.adapters)?.into_iter();
        Some(adapters.map(|adapter| adapter.cloned()).collect())
    }

    /// Passes the rows, as many equal shares as there are `shares`, each through adapters of its own instead of
    /// [`Projection::adapters`]. For passes without gradients; what is walked, saved and merged stays as it is.
    pub fn share(&mut self, shares: Vec<Vec<Option<Lora<B>>>>) {
        self.shares = shares;
    }

    /// Of the layers' weights and biases, where they are trained, trains those whose names `chosen` accepts: the others are
    /// columns of the same parameters.
    pub fn train_only_columns(&mut self, chosen: &dyn Fn(&str) -> bool) {
        self.trained_columns = ["weight", "bias"].map(|suffix| {
            let (mut columns, mut column) = (Vec::new(), 0);
            for layer in &self.layers {
                if chosen(&format!("{}.{suffix}", layer.path)) {
                    columns.push(column..column + layer.width);
                }
                column += layer.width;
            }
            let some = !columns.is_empty() && columns.len() < self.layers.len();
            some.then(|| Arc::new(columns))
        });
    }

    /// Removes all adapters.
    pub fn detach(&mut self) {
        self.adapters.iter_mut().for_each(|adapter| *adapter = None);
    }

    /// Merges the adapters into weight and bias and removes them; `None`, without changes, if one cannot be merged. A reduced weight
    /// becomes f32: rounded again, it would lose part of the adapters.
    pub fn merge(&mut self) -> Option<()>
    where
        B: ModelBackend,
    {
        if self.adapters.iter().all(Option::is_none) {
            return Some(());
        }
        let inputs = self.inputs();
        let mut weight = self.full_weight().detach();
        let mut bias = self.bias.as_ref().map(|bias| bias.val().detach());
        let (mut column, mut new_bias) = (0, false);
        for (adapter, layer) in self.adapters.iter().zip(&self.layers) {
            let range = column..column + layer.width;
            column += layer.width;
            let Some(adapter) = adapter else { continue };
            let columns = [0..inputs, range.clone()];
            let own_bias = bias.clone().map(|bias| bias.slice([range.clone()]));
            let merged = adapter.merge(weight.clone().slice(columns.clone()), own_bias)?;
            weight = weight.slice_assign(columns, merged.weight);
            if let (Some(all), Some(own)) = (&mut bias, merged.bias) {
                *all = all.clone().slice_assign([range], own);
                new_bias = true;
            }
        }
        self.detach();
        self.reduced = None;
        // Another weight than that of models which share the old one.
        self.weight = Param::initialized(ParamId::new(), weight);
        if new_bias {
            self.bias = bias.map(|bias| Param::initialized(ParamId::new(), bias));
        }
        Some(())
    }

    /// Walks weight, bias and adapters.
    pub fn for_each_parameter(&mut self, visit: &mut dyn FnMut(&ParamMeta, ParamSlot<'_, B>)) {
        let pieces = |suffix: &str| {
            self.layers
                .iter()
                .map(|layer| (format!("{}.{suffix}", layer.path), layer.width))
                .collect()
        };
        let [of_weight, of_bias] = self.trained_columns.clone();
        let weight = ParamMeta {
            kind: ParamKind::Matrix,
            pieces: pieces("weight"),
            transposed: self.transposed,
            order: self.order.clone(),
            trained_columns: of_weight,
        };
        let bias = ParamMeta {
            kind: ParamKind::Vector,
            pieces: pieces("bias"),
            transposed: false,
            order: self.order.clone(),
            trained_columns: of_bias,
        };
        visit(&weight, ParamSlot::of(&mut self.weight, &mut self.reduced));
        if let Some(param) = &mut self.bias {
            visit(&bias, ParamSlot::Vector(param));
        }
        for (adapter, layer) in self.adapters.iter_mut().zip(&self.layers) {
            if let Some(adapter) = adapter {
                adapter.walk(layer, &self.order, visit);
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
        if self.adapters.iter().all(Option::is_none) {
            let x = ops::linear_input(source, &input);
            return self.biased(self.base(x));
        }
        let Some(low_rank) = low_rank_adapters(&self.adapters) else {
            return self.forward_adapted(ops::linear_input(source, &input), dropout);
        };
        let drops = low_rank.iter().flatten().any(|lora| lora.dropout > 0.0);
        let y = match dropout.filter(|_| drops) {
            Some(seed) => {
                self.forward_with_dropout(ops::linear_input(source, &input), &low_rank, seed)
            }
            None => {
                let LowRank { a, b, parts, .. } = LowRank::new(&self.layers, &[low_rank]);
                ops::lora_linear_of(source, input, &self.frozen(), a, b, &parts)
            }
        };
        self.biased(y)
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

    /// LoRA's low-rank products cannot share one input where each adapter sees its own mask.
    fn forward_with_dropout(
        &self,
        x: Tensor<B, 2>,
        adapters: &[Option<&Lora<B>>],
        seed: Seed,
    ) -> Tensor<B, 2> {
        let mut deltas = Vec::new();
        for (adapter, layer) in adapters.iter().zip(&self.layers) {
            deltas.push(match adapter {
                Some(lora) => lora.product(&x, Some(seed.fork(&layer.path))),
                None => Tensor::zeros([x.dims()[0], layer.width], &x.device()),
            });
        }
        self.base(x) + Tensor::cat(deltas, 1)
    }
}
