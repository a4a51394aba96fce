//! The parameters of a model with the Hugging Face tensors that they hold: one traversal serves loading, saving, initialising,
//! freezing, optimising and counting.

mod columns;
mod layout;
mod reduced;

use std::sync::Arc;

use burn::module::{Param, ParamId};
use burn::tensor::backend::{AutodiffBackend, Backend};
use burn::tensor::ops::FloatTensor;
use burn::tensor::{Tensor, TensorData};

use crate::host;
use crate::ops::{unwrap, wrap};
use crate::snapshot::Snapshot;
pub use columns::TrainedColumns;
pub(crate) use columns::{columns_of, with_columns};
pub(crate) use layout::transpose;
use layout::{from_file_order, to_file_order};
pub use reduced::{Reduced, StoredTensor};

/// The role of a parameter.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ParamKind {
    /// A linear layer's weight.
    Matrix,
    /// A token or position table, or the output head.
    Embedding,
    /// A norm's weight or bias, or a linear layer's bias.
    Vector,
    /// A low-rank adapter's matrix.
    Adapter,
    /// The head of a reward or value model.
    Score,
}

/// Description of a parameter: the Hugging Face tensors that are concatenated in it.
#[derive(Debug, Clone, PartialEq)]
pub struct ParamMeta {
    /// Its role.
    pub kind: ParamKind,
    /// Name and number of columns of each tensor (entries, for a vector), from left to right.
    pub pieces: Vec<(String, usize)>,
    /// Whether files hold `[out, in]` where the parameter is `[in, out]`.
    pub transposed: bool,
    /// For each column of the parameter (entry, for a vector), its column in the file, over all pieces; `None` if the order is the
    /// same.
    pub order: Option<Arc<Vec<usize>>>,
    /// The trained columns; `None` if all or none are trained.
    pub trained_columns: TrainedColumns,
    /// Factor on the learning rate.
    pub lr_factor: f64,
}

impl ParamMeta {
    /// A parameter with one tensor.
    pub fn single(
        kind: ParamKind,
        name: impl Into<String>,
        columns: usize,
        transposed: bool,
    ) -> Self {
        Self {
            kind,
            pieces: vec![(name.into(), columns)],
            transposed,
            order: None,
            trained_columns: None,
            lr_factor: 1.0,
        }
    }

    /// The same parameter with another learning rate: so many times that of others.
    pub fn with_lr_factor(mut self, factor: f64) -> Self {
        self.lr_factor = factor;
        self
    }

    /// Whether weight decay applies: to all but norms and biases, as in transformers.
    pub fn decays(&self) -> bool {
        self.kind != ParamKind::Vector && !self.key().ends_with(".bias")
    }

    /// The same parameter with another order of columns than the file.
    pub fn ordered(mut self, order: Option<Arc<Vec<usize>>>) -> Self {
        self.order = order;
        self
    }

    /// Name and shape in files of tensor `piece`, for a parameter of `shape`.
    fn file_tensor(&self, piece: usize, shape: &[usize]) -> (String, Vec<usize>) {
        let (name, columns) = &self.pieces[piece];
        let shape = match (shape, self.transposed) {
            ([rows, _], true) => vec![*columns, *rows],
            ([rows, _], false) => vec![*rows, *columns],
            // transformers stores the scalar head as a matrix of one row.
            _ if self.kind == ParamKind::Score => vec![1, *columns],
            _ => vec![*columns],
        };
        (name.clone(), shape)
    }

    /// Names and shapes in files of all tensors, for a parameter of `shape`.
    pub fn file_tensors(&self, shape: &[usize]) -> Vec<(String, Vec<usize>)> {
        let piece = |piece| self.file_tensor(piece, shape);
        (0..self.pieces.len()).map(piece).collect()
    }

    /// Values of tensor `piece` in the layout of files, given the parameter's values with columns in the file's order.
    fn piece(&self, piece: usize, values: &[f32]) -> Vec<f32> {
        let widths = self.pieces.iter().map(|(_, columns)| columns);
        let (first, total): (usize, usize) = (widths.clone().take(piece).sum(), widths.sum());
        let columns = self.pieces[piece].1;
        let rows = values.len() / total;
        let mut part = Vec::with_capacity(rows * columns);
        for row in values.chunks_exact(total) {
            part.extend_from_slice(&row[first..first + columns]);
        }
        match self.transposed {
            true => transpose(&part, rows, columns),
            false => part,
        }
    }

    /// Shape of the trained columns of a parameter of `shape`; also of its gradient and moments.
    pub fn trained_shape(&self, mut shape: Vec<usize>) -> Vec<usize> {
        if let (Some(ranges), Some(columns)) = (&self.trained_columns, shape.last_mut()) {
            *columns = ranges.iter().map(ExactSizeIterator::len).sum();
        }
        shape
    }

    /// The parameter's key in optimiser state and gradients: its first tensor's name.
    pub fn key(&self) -> &str {
        &self.pieces[0].0
    }
}

/// A mutable reference to a parameter.
#[derive(Debug)]
pub enum ParamSlot<'a, B: Backend> {
    /// Biases, norms and score heads.
    Vector(&'a mut Param<Tensor<B, 1>>),
    /// Everything else.
    Matrix(&'a mut Param<Tensor<B, 2>>),
    /// A reduced matrix, which is frozen, and the parameter that replaces it if it stays in f32 after all.
    Reduced(&'a mut Option<Reduced>, &'a mut Param<Tensor<B, 2>>),
}

/// A tensor in the layout of files: name, shape, values.
pub type HostTensor = (String, Vec<usize>, Vec<f32>);

impl<'a, B: Backend> ParamSlot<'a, B> {
    /// The slot of a matrix that may be reduced.
    pub fn of(param: &'a mut Param<Tensor<B, 2>>, reduced: &'a mut Option<Reduced>) -> Self {
        match reduced {
            Some(_) => Self::Reduced(reduced, param),
            None => Self::Matrix(param),
        }
    }
}

impl<B: Backend> ParamSlot<'_, B> {
    /// The parameter's shape, also before it is filled.
    pub fn shape(&self) -> Vec<usize> {
        match self {
            Self::Vector(p) => p.lazy_shape().to_vec(),
            Self::Matrix(p) => p.lazy_shape().to_vec(),
            Self::Reduced(Some(reduced), _) => reduced.shape().to_vec(),
            Self::Reduced(None, p) => p.lazy_shape().to_vec(),
        }
    }

    /// The device of its values.
    pub fn device(&self) -> B::Device {
        match self {
            Self::Vector(p) => p.val().device(),
            Self::Matrix(p) => p.val().device(),
            Self::Reduced(_, p) => p.val().device(),
        }
    }

    /// Number of entries.
    pub fn num_entries(&self) -> usize {
        self.shape().iter().product()
    }

    /// Whether it is trained.
    pub fn is_trained(&self) -> bool {
        match self {
            Self::Vector(p) => p.val().is_require_grad(),
            Self::Matrix(p) => p.val().is_require_grad(),
            Self::Reduced(..) => false,
        }
    }

    /// Keeps a reduced matrix in f32 from the next walk on, with the numbers that it stands for.
    pub fn keep_in_f32(&mut self) {
        let Self::Reduced(reduced, p) = self else {
            return;
        };
        if let Some(stored) = reduced.take() {
            let data = TensorData::new(stored.values(), stored.shape());
            let device = p.val().device();
            **p = Param::initialized(p.id, Tensor::from_data(data, &device));
        }
    }

    /// Trains or freezes it.
    ///
    /// # Panics
    /// If a reduced matrix is to be trained.
    pub fn set_trained(&mut self, trained: bool) {
        match self {
            Self::Vector(p) => {
                **p = Param::initialized(p.id, p.val().detach().set_require_grad(trained))
            }
            Self::Matrix(p) => {
                **p = Param::initialized(p.id, p.val().detach().set_require_grad(trained))
            }
            Self::Reduced(..) => assert!(!trained, "a reduced matrix cannot be trained"),
        }
    }

    /// Replaces the values, given in the parameter's own layout; whether it is trained does not change.
    pub fn assign(&mut self, values: Vec<f32>, shape: &[usize], device: &B::Device) {
        let trained = self.is_trained();
        if let Self::Reduced(Some(reduced), _) = self
            && reduced.fill(&values, shape)
        {
            return;
        }
        let data = TensorData::new(values, shape.to_vec());
        match self {
            Self::Reduced(reduced, p) => {
                **reduced = None;
                **p = Param::initialized(p.id, Tensor::from_data(data, device));
            }
            Self::Vector(p) => {
                **p = Param::initialized(
                    p.id,
                    Tensor::from_data(data, device).set_require_grad(trained),
                );
            }
            Self::Matrix(p) => {
                **p = Param::initialized(
                    p.id,
                    Tensor::from_data(data, device).set_require_grad(trained),
                );
            }
        }
    }

    /// The values in the parameter's own layout. Reads the device.
    pub fn values(&self) -> Vec<f32> {
        self.reader()()
    }

    /// A function that returns the present [`ParamSlot::values`], read when it is called.
    pub fn reader(&self) -> Box<dyn Fn() -> Vec<f32>> {
        match self {
            Self::Vector(p) => reader_of(p.val()),
            Self::Matrix(p) => reader_of(p.val()),
            Self::Reduced(Some(reduced), _) => {
                let reduced = Reduced::clone(reduced);
                Box::new(move || reduced.values())
            }
            Self::Reduced(None, p) => reader_of(p.val()),
        }
    }

    /// Whether blocks of a file are kept as they are.
    pub fn keeps_blocks(&self) -> bool {
        matches!(self, Self::Reduced(Some(reduced), _) if reduced.keeps_blocks())
    }

    /// Assembles the parameter from its tensors, which `read` returns one at a time.
    ///
    /// # Errors
    /// Those of `read`.
    pub fn load<T: Into<StoredTensor>, E>(
        &mut self,
        meta: &ParamMeta,
        device: &B::Device,
        mut read: impl FnMut(&str) -> Result<T, E>,
    ) -> Result<(), E> {
        let mut read = |name: &str| read(name).map(Into::into);
        if let Self::Reduced(Some(reduced), _) = self
            && reduced.keeps_blocks()
        {
            let names = meta.pieces.iter().map(|(name, _)| name);
            let tensors = names.map(|name| read(name)).collect::<Result<_, E>>()?;
            if let Err(tensors) = reduced.fill_blocks(meta, tensors) {
                let mut tensors = tensors.into_iter().map(|t| t.into_values(meta.transposed));
                return self.load_values(meta, device, |_| Ok(tensors.next().unwrap_or_default()));
            }
            return Ok(());
        }
        self.load_values(meta, device, |name| {
            read(name).map(|tensor: StoredTensor| tensor.into_values(meta.transposed))
        })
    }

    fn load_values<E>(
        &mut self,
        meta: &ParamMeta,
        device: &B::Device,
        mut read: impl FnMut(&str) -> Result<Vec<f32>, E>,
    ) -> Result<(), E> {
        if let [(name, columns)] = meta.pieces.as_slice() {
            let values = read(name)?;
            match self {
                Self::Vector(_) => {
                    let len = values.len();
                    self.assign(from_file_order(values, meta), &[len], device);
                }
                Self::Matrix(_) | Self::Reduced(..) => {
                    let rows = values.len() / columns;
                    let values = if meta.transposed {
                        transpose(&values, *columns, rows)
                    } else {
                        values
                    };
                    self.assign(from_file_order(values, meta), &[rows, *columns], device);
                }
            }
            return Ok(());
        }
        let total: usize = meta.pieces.iter().map(|(_, columns)| columns).sum();
        let mut joint = Vec::new();
        let mut rows = 1;
        let mut first = 0;
        for (name, columns) in &meta.pieces {
            let values = read(name)?;
            if joint.is_empty() {
                rows = if matches!(self, Self::Vector(_)) {
                    1
                } else {
                    values.len() / columns
                };
                joint = vec![0f32; rows * total];
            }
            let values = if meta.transposed && rows > 1 {
                transpose(&values, *columns, rows)
            } else {
                values
            };
            for (out, row) in joint
                .chunks_exact_mut(total)
                .zip(values.chunks_exact(*columns))
            {
                out[first..first + columns].copy_from_slice(row);
            }
            first += columns;
        }
        let joint = from_file_order(joint, meta);
        match self {
            Self::Vector(_) => self.assign(joint, &[total], device),
            Self::Matrix(_) | Self::Reduced(..) => self.assign(joint, &[rows, total], device),
        }
        Ok(())
    }

    /// The tensors in the layout of files. Reads the device.
    pub fn save(&self, meta: &ParamMeta) -> Vec<HostTensor> {
        let (shape, values) = (self.shape(), to_file_order(self.values(), meta));
        (0..meta.pieces.len())
            .map(|piece| {
                let (name, shape) = meta.file_tensor(piece, &shape);
                (name, shape, meta.piece(piece, &values))
            })
            .collect()
    }

    /// Adds the tensors in the layout of files to a snapshot.
    pub fn put_into(&self, snapshot: &mut Snapshot<'_>, meta: &ParamMeta) {
        let shape = self.shape();
        for piece in 0..meta.pieces.len() {
            let (name, shape) = meta.file_tensor(piece, &shape);
            let (values, meta) = (self.reader(), meta.clone());
            snapshot.insert(name, shape, move || {
                meta.piece(piece, &to_file_order(values(), &meta)).into()
            });
        }
    }
}

impl<B: AutodiffBackend> ParamSlot<'_, B> {
    /// Removes the parameter's gradient from `grads`.
    pub fn take_gradient(&self, grads: &mut B::Gradients) -> Option<FloatTensor<B::InnerBackend>> {
        match self {
            Self::Vector(p) => p.val().grad_remove(grads).map(unwrap),
            Self::Matrix(p) => p.val().grad_remove(grads).map(unwrap),
            Self::Reduced(..) => None,
        }
    }

    /// Takes the value out, for an update in place; [`ParamSlot::put_value`] puts it back. `None` for a reduced matrix.
    pub fn take_value(&mut self) -> Option<FloatTensor<B::InnerBackend>> {
        match self {
            Self::Vector(p) => Some(take(p)),
            Self::Matrix(p) => Some(take(p)),
            Self::Reduced(..) => None,
        }
    }

    /// Puts back the value of a trained parameter.
    pub fn put_value(&mut self, value: FloatTensor<B::InnerBackend>) {
        match self {
            Self::Vector(p) => put(p, value),
            Self::Matrix(p) => put(p, value),
            Self::Reduced(..) => {}
        }
    }
}

fn take<B: AutodiffBackend, const D: usize>(
    param: &mut Param<Tensor<B, D>>,
) -> FloatTensor<B::InnerBackend> {
    let device = param.val().device();
    let placeholder = Param::initialized(param.id, Tensor::empty([1; D], &device));
    unwrap(std::mem::replace(param, placeholder).into_value().inner())
}

fn put<B: AutodiffBackend, const D: usize>(
    param: &mut Param<Tensor<B, D>>,
    value: FloatTensor<B::InnerBackend>,
) {
    let value = Tensor::from_inner(wrap(value));
    *param = Param::initialized(param.id, value.require_grad());
}

fn reader_of<B: Backend, const D: usize>(tensor: Tensor<B, D>) -> Box<dyn Fn() -> Vec<f32>> {
    Box::new(move || host::read(tensor.clone()))
}

/// A model whose parameters can be visited.
pub trait Parameters<B: Backend> {
    /// Calls `visit` once for every parameter, in a fixed order.
    fn for_each_parameter(&mut self, visit: &mut dyn FnMut(&ParamMeta, ParamSlot<'_, B>));

    /// Trains the parameters of the kinds that `choose` accepts and freezes all others.
    fn train_only(&mut self, choose: &dyn Fn(ParamKind) -> bool) {
        self.for_each_parameter(&mut |meta, mut slot| slot.set_trained(choose(meta.kind)));
    }

    /// Number of trained entries and of all entries.
    fn count_parameters(&mut self) -> (usize, usize) {
        let (mut trained, mut total) = (0, 0);
        self.for_each_parameter(&mut |meta, slot| {
            let entries = slot.num_entries();
            total += entries;
            if slot.is_trained() {
                trained += meta.trained_shape(slot.shape()).iter().product::<usize>();
            }
        });
        (trained, total)
    }
}

/// The lowest decoder layer that gradients reach, given all parameter names in the model's order and whether each is trained: 0 if
/// a parameter before the layers is trained, `num_layers` if only parameters after them are.
pub fn lowest_trained_layer<'a>(
    parameters: impl Iterator<Item = (&'a str, bool)>,
    num_layers: usize,
) -> usize {
    let (mut before, mut lowest) = (true, num_layers);
    for (name, trained) in parameters {
        let layer = name.split('.').find_map(|part| part.parse().ok());
        before &= layer.is_none();
        if trained {
            let reached = layer.unwrap_or(if before { 0 } else { num_layers });
            lowest = lowest.min(reached);
        }
    }
    lowest
}

/// An unfilled parameter of `shape`, to be loaded later. Until then it takes no memory and must not be read.
pub(crate) fn placeholder<B: Backend, const D: usize>(
    shape: [usize; D],
    device: &B::Device,
) -> Param<Tensor<B, D>> {
    let zero = |device: &B::Device, _| Tensor::zeros([1; D], device);
    Param::uninitialized(ParamId::new(), zero, device.clone(), false, shape.into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use burn::backend::NdArray;

    #[test]
    fn a_joint_parameter_keeps_each_tensor_apart() {
        let device = Default::default();
        let mut param = placeholder::<NdArray, 2>([3, 3], &device);
        let meta = ParamMeta {
            kind: ParamKind::Matrix,
            pieces: vec![("q".into(), 2), ("k".into(), 1)],
            transposed: true,
            order: None,
            trained_columns: None,
            lr_factor: 1.0,
        };
        // q: [2, 3], k: [1, 3] as files hold them.
        let mut slot = ParamSlot::Matrix(&mut param);
        slot.load::<_, ()>(&meta, &device, |name| {
            Ok(if name == "q" {
                vec![1., 2., 3., 4., 5., 6.]
            } else {
                vec![7., 8., 9.]
            })
        })
        .unwrap();
        assert_eq!(slot.shape(), [3, 3]);
        assert_eq!(slot.values(), [1., 4., 7., 2., 5., 8., 3., 6., 9.]);
        let saved = slot.save(&meta);
        assert_eq!(
            saved[0],
            ("q".into(), vec![2, 3], vec![1., 2., 3., 4., 5., 6.])
        );
        assert_eq!(saved[1], ("k".into(), vec![1, 3], vec![7., 8., 9.]));
    }
    #[test]
    fn columns_in_another_order_are_saved_as_they_were_loaded() {
        let device = Default::default();
        let order = Some(Arc::new(vec![2, 0, 1]));
        let mut matrix = placeholder::<NdArray, 2>([2, 3], &device);
        let meta = ParamMeta::single(ParamKind::Matrix, "qkv", 3, true).ordered(order.clone());
        let mut slot = ParamSlot::Matrix(&mut matrix);
        // Rows of the file's [3, 2] are columns of the parameter; the last comes first.
        let stored = vec![1., 2., 3., 4., 5., 6.];
        slot.load::<_, ()>(&meta, &device, |_| Ok(stored.clone()))
            .unwrap();
        assert_eq!(slot.values(), [5., 1., 3., 6., 2., 4.]);
        assert_eq!(slot.save(&meta)[0].2, stored);

        let mut vector = placeholder::<NdArray, 1>([3], &device);
        let meta = ParamMeta::single(ParamKind::Vector, "bias", 3, false).ordered(order);
        let mut slot = ParamSlot::Vector(&mut vector);
        slot.load::<_, ()>(&meta, &device, |_| Ok(vec![7., 8., 9.]))
            .unwrap();
        assert_eq!(slot.values(), [9., 7., 8.]);
        assert_eq!(slot.save(&meta)[0].2, [7., 8., 9.]);
    }
}
