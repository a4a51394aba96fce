//! MLPs, with and without a gate.

use burn::module::Module;
use burn::tensor::Tensor;
use burn::tensor::backend::Backend;

use super::activation::Activation;
use super::norm::RmsNorm;
use crate::ops::{Gate, LinearInput, ModelBackend};
use crate::peft::Projection;
use crate::rng::Seed;

/// `down(activation(up(x)))`.
#[derive(Module, Debug)]
pub struct Mlp<B: Backend> {
    /// Up.
    pub up: Projection<B>,
    /// Down.
    pub down: Projection<B>,
    #[module(skip)]
    activation: Activation,
}

impl<B: Backend> Mlp<B> {
    pub(super) fn new(up: Projection<B>, activation: Activation, down: Projection<B>) -> Self {
        Self {
            up,
            down,
            activation,
        }
    }
}

impl<B: ModelBackend> Mlp<B> {
    pub(super) fn forward(&self, x: Tensor<B, 2>, dropout: Option<Seed>) -> Tensor<B, 2> {
        let up = self.up.forward(x, dropout);
        self.down.forward(self.activation.forward(up), dropout)
    }
}

/// `down(activation(gate(norm(x))) * up(norm(x)))`, gate and up as one product.
#[derive(Module, Debug)]
pub struct GatedMlp<B: Backend> {
    /// Gate and up.
    pub gate_up: Projection<B>,
    /// Down.
    pub down: Projection<B>,
    #[module(skip)]
    gate: Gate,
}

impl<B: Backend> GatedMlp<B> {
    pub(super) fn new(
        path: &str,
        [hidden, intermediate]: [usize; 2],
        gate: Gate,
        with_bias: bool,
        device: &B::Device,
    ) -> Self {
        let gate_up = [
            (format!("{path}.gate_proj"), intermediate),
            (format!("{path}.up_proj"), intermediate),
        ];
        let down = [(format!("{path}.down_proj"), hidden)];
        Self {
            gate_up: Projection::new(hidden, &gate_up, with_bias, true, device),
            down: Projection::new(intermediate, &down, with_bias, true, device),
            gate,
        }
    }

    /// The same without biases, with gate and up as one layer in files.
    pub(super) fn with_joint_tensor(
        path: &str,
        [hidden, intermediate]: [usize; 2],
        gate: Gate,
        device: &B::Device,
    ) -> Self {
        let gate_up = [(format!("{path}.gate_up_proj"), 2 * intermediate)];
        let down = [(format!("{path}.down_proj"), hidden)];
        Self {
            gate_up: Projection::new(hidden, &gate_up, false, true, device),
            down: Projection::new(intermediate, &down, false, true, device),
            gate,
        }
    }
}

impl<B: ModelBackend> GatedMlp<B> {
    /// The MLP of `norm(x)`.
    pub(super) fn forward(
        &self,
        x: Tensor<B, 2>,
        norm: &RmsNorm<B>,
        dropout: Option<Seed>,
    ) -> Tensor<B, 2> {
        self.forward_of(x, norm.input(), dropout)
    }

    /// The MLP of what `input` makes of `x`.
    pub(super) fn forward_of(
        &self,
        x: Tensor<B, 2>,
        input: LinearInput<B>,
        dropout: Option<Seed>,
    ) -> Tensor<B, 2> {
        let gate_up = self.gate_up.forward_of(x, input, dropout);
        self.down
            .forward_of(gate_up, LinearInput::Gated(self.gate), dropout)
    }
}
