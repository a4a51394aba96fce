//! Sizes of parity computations: a fixed set that includes sizes of past failures, and the sizes of a recipe.

use crate::ops::{HeadLayout, Precision};
use crate::train::plan::StagePlan;

/// Rows of an attention case: their lengths and parent rows.
type Rows = Vec<(usize, Option<usize>)>;

/// Sizes of the computations. Tokens are few: failures on GPUs depend on the inner and outer dimensions.
#[derive(Debug, Clone)]
pub(in crate::cli) struct Shapes {
    /// Tokens and width.
    pub(super) norms: Vec<(usize, usize)>,
    /// Tokens, heads and head width.
    pub(super) rotations: Vec<(usize, usize, usize)>,
    /// Tokens and inner width of a gated MLP.
    pub(super) gates: Vec<(usize, usize)>,
    pub(super) attentions: Vec<(HeadLayout, Rows)>,
    /// Tokens, width and vocabulary.
    pub(super) heads: Vec<(usize, usize, usize)>,
    /// Tokens, input width, output widths and rank.
    pub(super) linears: Vec<(usize, usize, Vec<usize>, usize)>,
    /// Tokens, input and output width of products with reduced weights.
    pub(super) reduced: Vec<([usize; 3], Precision)>,
    /// The same of products in bfloat16.
    pub(super) bf16: Vec<[usize; 3]>,
    /// Widths of scalar heads.
    pub(super) scores: Vec<usize>,
    /// Whole small models: whether the head is the embedding, and the adapters' rank.
    pub(super) models: Vec<(bool, Option<usize>)>,
}

/// Largest vocabulary: filling a head of the whole vocabulary would take longer than all other checks together.
const MAX_VOCAB: usize = 16_411;

fn lens(lens: &[usize]) -> Rows {
    lens.iter().map(|&len| (len, None)).collect()
}

impl Default for Shapes {
    fn default() -> Self {
        let layout = |heads, kv_heads, head_dim| HeadLayout {
            heads,
            kv_heads,
            head_dim,
        };
        Self {
            norms: vec![(1, 48), (7, 33), (130, 576)],
            rotations: vec![(1, 3, 16), (37, 4, 12)],
            gates: vec![(1, 64), (37, 101)],
            attentions: vec![
                (layout(6, 2, 16), lens(&[1, 17, 5])),
                (layout(3, 3, 12), lens(&[33])),
                (layout(9, 3, 64), lens(&[65, 3, 130])),
                (
                    layout(4, 2, 16),
                    vec![(19, None), (5, Some(0)), (1, Some(0))],
                ),
            ],
            heads: vec![(1, 32, 97), (37, 48, 1000), (300, 64, 257)],
            // Inner dimensions that are odd multiples of eight once triggered a bug of double-buffered products.
            linears: [4, 8, 16, 24, 40]
                .map(|rank| (37, 48, vec![40, 24], rank))
                .into(),
            // Few and many rows, widths that are no multiples of a group.
            reduced: [Precision::Bf16, Precision::Int8, Precision::Nf4]
                .into_iter()
                .flat_map(|precision| [([3, 70, 33], precision), ([40, 130, 65], precision)])
                .collect(),
            bf16: vec![[3, 70, 33], [40, 130, 66]],
            scores: vec![48],
            models: vec![
                (true, None),
                (false, None),
                (true, Some(8)),
                (false, Some(24)),
            ],
        }
    }
}

impl Shapes {
    /// The sizes of a recipe's models and adapters alone.
    pub(in crate::cli) fn of_plans(plans: &[StagePlan]) -> Self {
        let mut shapes = Self {
            norms: Vec::new(),
            rotations: Vec::new(),
            gates: Vec::new(),
            attentions: Vec::new(),
            heads: Vec::new(),
            linears: Vec::new(),
            reduced: Vec::new(),
            bf16: Vec::new(),
            scores: Vec::new(),
            models: Vec::new(),
        };
        for plan in plans {
            let size = plan.shape;
            let [hidden, intermediate, heads, kv_heads, head_dim] = [
                size.hidden,
                size.intermediate,
                size.heads,
                size.kv_heads,
                size.head_dim,
            ]
            .map(|size| size as usize);
            let layout = HeadLayout {
                heads,
                kv_heads,
                head_dim,
            };
            insert(&mut shapes.norms, (37, hidden));
            insert(&mut shapes.rotations, (37, heads + kv_heads, head_dim));
            insert(&mut shapes.gates, (37, intermediate));
            let rows = vec![(65, None), (3, Some(0)), (130, None), (1, None)];
            insert(&mut shapes.attentions, (layout, rows));
            insert(
                &mut shapes.heads,
                (33, hidden, (size.vocab as usize).min(MAX_VOCAB)),
            );
            if let Some(rank) = plan.rank {
                let qkv = vec![layout.q_width(), layout.kv_width(), layout.kv_width()];
                insert(&mut shapes.linears, (37, hidden, qkv, rank));
                let linears = [
                    (37, layout.q_width(), vec![hidden], rank),
                    (37, hidden, vec![intermediate; 2], rank),
                    (37, intermediate, vec![hidden], rank),
                ];
                linears
                    .into_iter()
                    .for_each(|linear| insert(&mut shapes.linears, linear));
            }
            let products = [[5, hidden, 2 * intermediate], [37, intermediate, hidden]];
            for product in products {
                insert(&mut shapes.bf16, product);
                if size.precision != Precision::F32 {
                    insert(&mut shapes.reduced, (product, size.precision));
                }
            }
            insert(&mut shapes.scores, hidden);
            insert(&mut shapes.models, (true, plan.rank));
            insert(&mut shapes.models, (false, plan.rank));
        }
        shapes
    }
}

fn insert<T: PartialEq>(list: &mut Vec<T>, item: T) {
    if !list.contains(&item) {
        list.push(item);
    }
}
