//! Attention on packed rows and over the cache.

mod backward;
mod decode;
mod forward;
mod task;

pub(in crate::ops::cpu) use backward::packed_attention_backward;
pub(in crate::ops::cpu) use decode::decode_attention;
pub(in crate::ops::cpu) use forward::packed_attention;
