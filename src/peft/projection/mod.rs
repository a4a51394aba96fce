//! The linear layer every family uses: a joint weight, and one optional adapter per Hugging Face layer inside it.

mod forward;

use std::sync::Arc;

use burn::module::{Module, Param, ParamId};
use burn::tensor::backend::Backend;
use burn::tensor::{Tensor, TensorData};

use super::lora::low_rank::low_rank_adapters;
use super::memo::Memo;
use super::method::{Shared, Site};
use super::{Adapter, AdapterSpec, LayerKind, LinearSpec, Lora};
use crate::ops::{MatmulPrecision, ModelBackend, Numerics, Precision, ReducedMatrix};
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
    /// DoRA's factors, kept while no parameter is walked.
    #[module(skip)]
    factors: Memo,
    /// Whether the model has tensors of its own beside this weight, which other models share.
    #[module(skip)]
    owns_tensors: bool,
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

/// The adapters of a projection, one slot per layer, if those that `of` gives are all that it has.
pub(super) fn all_of<'a, B: Backend, A>(
    adapters: &'a [Option<Adapter<B>>],
    of: impl Fn(&'a Adapter<B>) -> Option<&'a A>,
) -> Option<Vec<Option<&'a A>>> {
    let adapters = adapters.iter().map(|adapter| match adapter {
        Some(adapter) => of(adapter).map(Some),
        None => Some(None),
    });
    adapters.collect()
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
            factors: Memo::default(),
            owns_tensors: false,
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

    /// Storage precision of the weight.
    pub fn storage(&self) -> Precision {
        (self.reduced.as_ref()).map_or(Precision::F32, Reduced::storage)
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
    pub fn attach(&mut self, index: usize, spec: &AdapterSpec, seed: Seed, shared: &Shared<B>)
    where
        B: ModelBackend,
    {
        let layer = &self.layers[index];
        let layer = LinearSpec {
            kind: LayerKind::Linear,
            name: layer.path.clone(),
            in_features: self.inputs(),
            out_features: layer.width,
        };
        let columns = self.columns_of(index);
        let site = Site {
            layer: &layer,
            weight: &|| {
                let weight = self.full_weight();
                match self.layers.len() {
                    1 => weight,
                    _ => weight.slice([0..layer.in_features, columns.clone()]),
                }
            },
            shared,
            order: &self.order,
            seed: seed.fork(&layer.name),
            device: &self.weight.val().device(),
        };
        self.adapters[index] = spec.fresh(&site);
        self.factors.reset();
    }

    /// The output columns of layer `index`.
    fn columns_of(&self, index: usize) -> std::ops::Range<usize> {
        let first = self.layers[..index].iter().map(|layer| layer.width).sum();
        first..first + self.layers[index].width
    }

    /// The identity of this projection's weight.
    pub fn identity(&self) -> Base {
        match self.matrix() {
            Some(matrix) => Base::Reduced(matrix.address()),
            None => Base::Full(self.weight.id),
        }
    }

    /// LoRA's adapters, one slot per layer; `None` if there are some that do more than add a low-rank product, or the model has
    /// tensors of its own.
    pub fn low_rank_adapters(&self) -> Option<Vec<Option<Lora<B>>>> {
        if self.owns_tensors {
            return None;
        }
        let adapters = low_rank_adapters(&self.adapters)?.into_iter();
        adapters
            .map(|adapter| match adapter {
                Some(lora) => lora.is_plain().then(|| Some(lora.clone())),
                None => Some(None),
            })
            .collect()
    }

    /// Notes that the model has other tensors than models with the same weight: a bias of this layer, or an embedding or norm
    /// somewhere else.
    pub fn own_tensors(&mut self) {
        self.owns_tensors = true;
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
        self.factors.reset();
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
        self.factors.reset();
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
            lr_factor: 1.0,
        };
        let bias = ParamMeta {
            kind: ParamKind::Vector,
            pieces: pieces("bias"),
            transposed: false,
            order: self.order.clone(),
            trained_columns: of_bias,
            lr_factor: 1.0,
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
