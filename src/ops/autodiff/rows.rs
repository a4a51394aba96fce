//! Gradients of [`crate::ops::insert_rows`] and [`crate::ops::remove_rows`].

use burn::backend::Autodiff;
use burn::backend::autodiff::checkpoint::base::Checkpointer;
use burn::backend::autodiff::checkpoint::strategy::CheckpointStrategy;
use burn::backend::autodiff::grads::Gradients;
use burn::backend::autodiff::ops::{Backward, Ops, OpsKind};
use burn::tensor::ops::FloatTensor;

use crate::ops::{Insertion, ModelBackend, rows};

/// The same insertion without gradients: indices have none.
fn inner<B: ModelBackend, C: CheckpointStrategy>(
    insertion: &Insertion<Autodiff<B, C>>,
) -> Insertion<B> {
    Insertion {
        order: insertion.order.clone(),
        origin: insertion.origin.clone(),
        old: insertion.old.clone(),
        new: insertion.new.clone(),
        copies: insertion.copies,
    }
}

pub(super) fn insert_rows<B: ModelBackend, C: CheckpointStrategy>(
    x: FloatTensor<Autodiff<B, C>>,
    new: FloatTensor<Autodiff<B, C>>,
    insertion: &Insertion<Autodiff<B, C>>,
) -> FloatTensor<Autodiff<B, C>> {
    #[derive(Debug)]
    struct InsertRows;
    impl<B: ModelBackend> Backward<B, 2> for InsertRows {
        type State = Insertion<B>;
        fn backward(self, ops: Ops<Self::State, 2>, grads: &mut Gradients, _: &mut Checkpointer) {
            let grad = grads.consume::<B>(&ops.node);
            let [x_node, new_node] = ops.parents;
            if let Some(node) = x_node {
                let of_old = rows::remove::<B>(grad.clone(), &ops.state);
                grads.register::<B>(node.id, of_old);
            }
            if let Some(node) = new_node {
                grads.register::<B>(node.id, rows::inserted_gradient::<B>(grad, &ops.state));
            }
        }
    }
    let insertion = inner(insertion);
    let nodes = [x.node, new.node];
    let y = B::insert_rows(x.primitive, new.primitive, &insertion);
    match InsertRows.prepare::<C>(nodes).compute_bound().stateful() {
        OpsKind::Tracked(prep) => prep.finish(insertion, y),
        OpsKind::UnTracked(prep) => prep.finish(y),
    }
}

pub(super) fn remove_rows<B: ModelBackend, C: CheckpointStrategy>(
    x: FloatTensor<Autodiff<B, C>>,
    insertion: &Insertion<Autodiff<B, C>>,
) -> FloatTensor<Autodiff<B, C>> {
    #[derive(Debug)]
    struct RemoveRows;
    impl<B: ModelBackend> Backward<B, 1> for RemoveRows {
        type State = Insertion<B>;
        fn backward(self, ops: Ops<Self::State, 1>, grads: &mut Gradients, _: &mut Checkpointer) {
            let grad = grads.consume::<B>(&ops.node);
            let [node] = ops.parents;
            if let Some(node) = node {
                grads.register::<B>(node.id, rows::removed_gradient::<B>(grad, &ops.state));
            }
        }
    }
    let insertion = inner(insertion);
    let y = B::remove_rows(x.primitive, &insertion);
    match RemoveRows.prepare::<C>([x.node]).compute_bound().stateful() {
        OpsKind::Tracked(prep) => prep.finish(insertion, y),
        OpsKind::UnTracked(prep) => prep.finish(y),
    }
}
