//! Which linear layers an adapter is put on, by PEFT's rules.

/// One linear layer of the backbone.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LinearSpec {
    /// Module path, e.g. `model.layers.0.self_attn.q_proj`.
    pub name: String,
    /// Width of the input.
    pub in_features: usize,
    /// Width of the output.
    pub out_features: usize,
}
