//! The operations for Flex, on raw slices.

use std::ops::Range;

use burn::backend::Flex;
use burn::tensor::ops::{FloatTensor, FloatTensorOps};
use burn::tensor::{Shape, TensorData, TensorMetadata};
use burn_flex::FlexTensor;
use rayon::prelude::*;

use super::{
    AdamWStep, HeadLayout, LogprobOutput, LowRankPart, ModelBackend, kernels, logit_chunk_rows,
};
use crate::tokens::Segments;

/// A contiguous tensor. By value: a second handle would make every later in-place write a copy.
fn contiguous(tensor: FlexTensor) -> FlexTensor {
    if tensor.as_slice::<f32>().is_some() {
        tensor
    } else {
        tensor.to_contiguous()
    }
}

/// A tensor to write in place: `storage_mut` gives the whole buffer, so a view must be copied out of its parent first.
fn writable(tensor: FlexTensor) -> FlexTensor {
    // Shares the buffer if nothing is to be copied; dropping the argument makes it the sole owner again.
    tensor.to_contiguous()
}

/// The numbers of a tensor that went through [`contiguous`].
fn slice(tensor: &FlexTensor) -> &[f32] {
    tensor.as_slice::<f32>().expect("contiguous f32")
}

fn tensor(values: Vec<f32>, shape: impl Into<Shape>) -> FlexTensor {
    FlexTensor::from_data(TensorData::new(values, shape.into()))
}

fn dims2(tensor: &FlexTensor) -> [usize; 2] {
    let shape = tensor.shape();
    [shape[0], shape[1]]
}

fn matmul(a: FlexTensor, b: FlexTensor) -> FlexTensor {
    Flex::float_matmul(a, b)
}

/// Heads as a `[1, heads, len, head_dim]` tensor.
fn heads(
    matrix: &FlexTensor,
    rows: Range<usize>,
    column: usize,
    heads: usize,
    head_dim: usize,
) -> FlexTensor {
    let len = rows.len();
    let width = dims2(matrix)[1];
    let values = kernels::gather_heads(slice(matrix), width, rows, column, heads, head_dim);
    tensor(values, [1, heads, len, head_dim])
}

/// Writes `[heads, len, head_dim]` blocks back into the columns they came from.
fn scatter(
    out: &mut [f32],
    width: usize,
    rows: Range<usize>,
    column: usize,
    head_dim: usize,
    block: &[f32],
) {
    let len = rows.len();
    for (i, values) in block.chunks_exact(head_dim).enumerate() {
        let from = (rows.start + i % len) * width + column + i / len * head_dim;
        out[from..from + head_dim].copy_from_slice(values);
    }
}

/// One task of attention: a row of the batch and a key-value head with its group of query heads.
fn attention_tasks(layout: HeadLayout, segments: &Segments) -> Vec<(Range<usize>, usize)> {
    segments
        .iter()
        .filter(|rows| !rows.is_empty())
        .flat_map(|rows| (0..layout.kv_heads).map(move |head| (rows.clone(), head)))
        .collect()
}

impl ModelBackend for Flex {
    fn rms_norm(x: FloatTensor<Self>, weight: FloatTensor<Self>, eps: f32) -> FloatTensor<Self> {
        let (x, weight) = (contiguous(x), contiguous(weight));
        let mut y = vec![0f32; slice(&x).len()];
        kernels::rms_norm(slice(&x), slice(&weight), eps, &mut y);
        tensor(y, x.shape())
    }

    fn rms_norm_backward(
        x: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        grad: FloatTensor<Self>,
        eps: f32,
        with_weight: bool,
    ) -> (FloatTensor<Self>, Option<FloatTensor<Self>>) {
        let (x, weight, grad) = (contiguous(x), contiguous(weight), contiguous(grad));
        let mut dx = vec![0f32; slice(&x).len()];
        let dweight = kernels::rms_norm_backward(
            slice(&x),
            slice(&weight),
            slice(&grad),
            eps,
            &mut dx,
            with_weight,
        );
        (
            tensor(dx, x.shape()),
            dweight.map(|dweight| tensor(dweight, weight.shape())),
        )
    }

    fn rope(
        x: FloatTensor<Self>,
        cos: FloatTensor<Self>,
        sin: FloatTensor<Self>,
        num_heads: usize,
        inverse: bool,
    ) -> FloatTensor<Self> {
        let (mut x, cos, sin) = (writable(x), contiguous(cos), contiguous(sin));
        let (width, half) = (dims2(&x)[1], dims2(&cos)[1]);
        let sign = if inverse { -1.0 } else { 1.0 };
        let (cos, sin) = (slice(&cos), slice(&sin));
        kernels::rope(
            x.storage_mut::<f32>(),
            width,
            num_heads,
            half,
            cos,
            sin,
            sign,
        );
        x
    }

    fn swiglu(gate_up: FloatTensor<Self>) -> FloatTensor<Self> {
        let gate_up = contiguous(gate_up);
        let [tokens, width] = dims2(&gate_up);
        let mut y = vec![0f32; tokens * width / 2];
        kernels::swiglu(slice(&gate_up), width / 2, &mut y);
        tensor(y, [tokens, width / 2])
    }

    fn swiglu_backward(gate_up: FloatTensor<Self>, grad: FloatTensor<Self>) -> FloatTensor<Self> {
        let (gate_up, grad) = (contiguous(gate_up), contiguous(grad));
        let [tokens, width] = dims2(&gate_up);
        let mut out = vec![0f32; tokens * width];
        kernels::swiglu_backward(slice(&gate_up), slice(&grad), width / 2, &mut out);
        tensor(out, [tokens, width])
    }

    fn packed_attention(
        qkv: FloatTensor<Self>,
        layout: HeadLayout,
        segments: &Segments,
    ) -> (FloatTensor<Self>, FloatTensor<Self>) {
        let qkv = contiguous(qkv);
        let tokens = dims2(&qkv)[0];
        let HeadLayout {
            heads: num_heads,
            kv_heads,
            head_dim,
        } = layout;
        let group = num_heads / kv_heads;
        let (q_width, kv_width) = (layout.q_width(), layout.kv_width());
        let tasks = attention_tasks(layout, segments);
        let blocks: Vec<(FlexTensor, Vec<f32>)> = tasks
            .par_iter()
            .map(|(rows, head)| {
                let len = rows.len();
                let q = heads(&qkv, rows.clone(), head * group * head_dim, group, head_dim);
                let k = heads(&qkv, rows.clone(), q_width + head * head_dim, 1, head_dim);
                let v = heads(
                    &qkv,
                    rows.clone(),
                    q_width + kv_width + head * head_dim,
                    1,
                    head_dim,
                );
                let mut p = contiguous(matmul(q, k.transpose(2, 3)));
                let lse = kernels::causal_softmax(p.storage_mut(), len, layout.scale());
                (contiguous(matmul(p, v)), lse)
            })
            .collect();
        let mut output = vec![0f32; tokens * q_width];
        let mut lse = vec![0f32; num_heads * tokens];
        for ((rows, head), (block, block_lse)) in tasks.iter().zip(&blocks) {
            scatter(
                &mut output,
                q_width,
                rows.clone(),
                head * group * head_dim,
                head_dim,
                slice(block),
            );
            for (j, values) in block_lse.chunks_exact(rows.len()).enumerate() {
                let from = (head * group + j) * tokens + rows.start;
                lse[from..from + rows.len()].copy_from_slice(values);
            }
        }
        (
            tensor(output, [tokens, q_width]),
            tensor(lse, [num_heads, tokens]),
        )
    }

    fn packed_attention_backward(
        qkv: FloatTensor<Self>,
        output: FloatTensor<Self>,
        lse: FloatTensor<Self>,
        grad: FloatTensor<Self>,
        layout: HeadLayout,
        segments: &Segments,
    ) -> FloatTensor<Self> {
        let (qkv, output, lse, grad) = (
            contiguous(qkv),
            contiguous(output),
            contiguous(lse),
            contiguous(grad),
        );
        let [tokens, width] = dims2(&qkv);
        let HeadLayout {
            heads: num_heads,
            kv_heads,
            head_dim,
        } = layout;
        let group = num_heads / kv_heads;
        let (q_width, kv_width) = (layout.q_width(), layout.kv_width());
        let tasks = attention_tasks(layout, segments);
        let blocks: Vec<[FlexTensor; 3]> = tasks
            .par_iter()
            .map(|(rows, head)| {
                let len = rows.len();
                let first = head * group * head_dim;
                let q = heads(&qkv, rows.clone(), first, group, head_dim);
                let k = heads(&qkv, rows.clone(), q_width + head * head_dim, 1, head_dim);
                let v = heads(
                    &qkv,
                    rows.clone(),
                    q_width + kv_width + head * head_dim,
                    1,
                    head_dim,
                );
                let o = heads(&output, rows.clone(), first, group, head_dim);
                let go = heads(&grad, rows.clone(), first, group, head_dim);
                let lse: Vec<f32> = (0..group)
                    .flat_map(|j| {
                        let from = (head * group + j) * tokens + rows.start;
                        slice(&lse)[from..from + len].iter().copied()
                    })
                    .collect();
                let mut p = contiguous(matmul(q.clone(), k.transpose(2, 3)));
                kernels::causal_exp(p.storage_mut(), len, layout.scale(), &lse);
                // The group's queries as one tall matrix: their shared key and value gradients add up in the product.
                let tall =
                    |x: FlexTensor, columns: usize| x.reshape([1, 1, group * len, columns].into());
                let dv = matmul(
                    tall(p.clone(), len).transpose(2, 3),
                    tall(go.clone(), head_dim),
                );
                let mut ds = contiguous(matmul(go.clone(), v.transpose(2, 3)));
                kernels::softmax_backward(
                    ds.storage_mut(),
                    slice(&p),
                    slice(&o),
                    slice(&go),
                    len,
                    head_dim,
                    layout.scale(),
                );
                let dq = matmul(ds.clone(), k);
                let dk = matmul(tall(ds, len).transpose(2, 3), tall(q, head_dim));
                [dq, dk, dv].map(contiguous)
            })
            .collect();
        let mut out = vec![0f32; tokens * width];
        for ((rows, head), [dq, dk, dv]) in tasks.iter().zip(&blocks) {
            let kv = q_width + head * head_dim;
            scatter(
                &mut out,
                width,
                rows.clone(),
                head * group * head_dim,
                head_dim,
                slice(dq),
            );
            scatter(&mut out, width, rows.clone(), kv, head_dim, slice(dk));
            scatter(
                &mut out,
                width,
                rows.clone(),
                kv + kv_width,
                head_dim,
                slice(dv),
            );
        }
        tensor(out, [tokens, width])
    }

    fn cache_write(
        cache: FloatTensor<Self>,
        rows: FloatTensor<Self>,
        segments: &Segments,
        slots: &[usize],
        starts: &[usize],
    ) -> FloatTensor<Self> {
        let (mut cache, rows) = (writable(cache), contiguous(rows));
        let [_, capacity, width] = [cache.shape()[0], cache.shape()[1], cache.shape()[2]];
        let source = slice(&rows);
        let target = cache.storage_mut::<f32>();
        for ((range, &slot), &start) in segments.iter().zip(slots).zip(starts) {
            assert!(
                start + range.len() <= capacity,
                "a cache slot holds {capacity} positions"
            );
            let from = (slot * capacity + start) * width;
            let values = &source[range.start * width..range.end * width];
            target[from..from + values.len()].copy_from_slice(values);
        }
        cache
    }

    fn decode_attention(
        q: FloatTensor<Self>,
        keys: FloatTensor<Self>,
        values: FloatTensor<Self>,
        slots: &[usize],
        lens: &[usize],
        layout: HeadLayout,
    ) -> FloatTensor<Self> {
        let (q, keys, values) = (contiguous(q), contiguous(keys), contiguous(values));
        let (capacity, stride) = (keys.shape()[1], layout.kv_width());
        let group_width = layout.heads / layout.kv_heads * layout.head_dim;
        let mut out = vec![0f32; slots.len() * layout.q_width()];
        out.par_chunks_mut(group_width)
            .zip(slice(&q).par_chunks(group_width))
            .enumerate()
            .for_each(|(task, (out, q))| {
                let (row, head) = (task / layout.kv_heads, task % layout.kv_heads);
                let slot = slots[row] * capacity * stride..(slots[row] + 1) * capacity * stride;
                let (keys, values) = (&slice(&keys)[slot.clone()], &slice(&values)[slot]);
                let offset = head * layout.head_dim;
                kernels::decode_head(
                    q,
                    keys,
                    values,
                    lens[row],
                    stride,
                    offset,
                    layout.head_dim,
                    layout.scale(),
                    out,
                );
            });
        tensor(out, [slots.len(), layout.q_width()])
    }

    fn token_logprob(
        hidden: FloatTensor<Self>,
        head: FloatTensor<Self>,
        targets: &[u32],
        inv_temperature: f32,
        with_unit_gradient: bool,
    ) -> LogprobOutput<Self> {
        let (hidden, head) = (contiguous(hidden), contiguous(head));
        let [tokens, width] = dims2(&hidden);
        let vocab = dims2(&head)[0];
        let (mut logprobs, mut entropy) = (Vec::with_capacity(tokens), Vec::with_capacity(tokens));
        let mut unit = vec![
            0f32;
            if with_unit_gradient {
                tokens * width
            } else {
                0
            }
        ];
        let chunk = logit_chunk_rows(vocab);
        for (i, part) in targets.chunks(chunk).enumerate() {
            let h = hidden.narrow(0, i * chunk, part.len());
            let mut logits = contiguous(matmul(h, head.transpose(0, 1)));
            let rows = kernels::logprob_rows(
                logits.storage_mut(),
                vocab,
                part,
                inv_temperature,
                with_unit_gradient,
            );
            logprobs.extend(rows.iter().map(|row| row.0));
            entropy.extend(rows.iter().map(|row| row.1));
            if with_unit_gradient {
                let expected = contiguous(matmul(logits, head.clone()));
                let unit = unit[i * chunk * width..].chunks_exact_mut(width);
                for ((unit, expected), &target) in
                    unit.zip(slice(&expected).chunks_exact(width)).zip(part)
                {
                    let chosen =
                        &slice(&head)[target as usize * width..(target as usize + 1) * width];
                    for j in 0..width {
                        unit[j] = (chosen[j] - expected[j]) * inv_temperature;
                    }
                }
            }
        }
        LogprobOutput {
            logprobs: tensor(logprobs, [tokens]),
            entropy: tensor(entropy, [tokens]),
            unit_gradient: with_unit_gradient.then(|| tensor(unit, [tokens, width])),
        }
    }

    fn token_logprob_backward(
        hidden: FloatTensor<Self>,
        head: FloatTensor<Self>,
        targets: &[u32],
        inv_temperature: f32,
        grad: FloatTensor<Self>,
    ) -> (FloatTensor<Self>, FloatTensor<Self>) {
        let (hidden, head, grad) = (contiguous(hidden), contiguous(head), contiguous(grad));
        let [tokens, width] = dims2(&hidden);
        let vocab = dims2(&head)[0];
        let mut dhidden = Vec::with_capacity(tokens * width);
        let mut dhead: Option<FlexTensor> = None;
        let chunk = logit_chunk_rows(vocab);
        for (i, part) in targets.chunks(chunk).enumerate() {
            let h = hidden.narrow(0, i * chunk, part.len());
            let mut logits = contiguous(matmul(h.clone(), head.transpose(0, 1)));
            kernels::logprob_rows(logits.storage_mut(), vocab, part, inv_temperature, true);
            // d logit = (onehot - p) * grad / temperature
            let weights = &slice(&grad)[i * chunk..i * chunk + part.len()];
            logits
                .storage_mut::<f32>()
                .par_chunks_mut(vocab)
                .zip(part)
                .zip(weights)
                .for_each(|((row, &target), &g)| {
                    let g = g * inv_temperature;
                    for x in row.iter_mut() {
                        *x *= -g;
                    }
                    row[target as usize] += g;
                });
            dhidden.extend_from_slice(slice(&contiguous(matmul(logits.clone(), head.clone()))));
            let part = matmul(logits.transpose(0, 1), h);
            dhead = Some(match dhead {
                Some(sum) => Flex::float_add(sum, part),
                None => part,
            });
        }
        let dhead = dhead.unwrap_or_else(|| tensor(vec![0.0; vocab * width], [vocab, width]));
        (tensor(dhidden, [tokens, width]), dhead)
    }

    fn lora_linear(
        x: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        a: FloatTensor<Self>,
        b: FloatTensor<Self>,
        parts: &[LowRankPart],
    ) -> (FloatTensor<Self>, FloatTensor<Self>) {
        let xa = contiguous(matmul(x.clone(), a));
        let mut y = contiguous(matmul(x, weight));
        let b = contiguous(b);
        let (width, ranks) = (dims2(&y)[1], dims2(&xa)[1]);
        kernels::add_low_rank(y.storage_mut(), width, slice(&xa), ranks, slice(&b), parts);
        (y, xa)
    }

    fn lora_linear_backward(
        x: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        a: FloatTensor<Self>,
        b: FloatTensor<Self>,
        xa: FloatTensor<Self>,
        grad: FloatTensor<Self>,
        parts: &[LowRankPart],
        with_x: bool,
    ) -> (
        Option<FloatTensor<Self>>,
        FloatTensor<Self>,
        FloatTensor<Self>,
    ) {
        let [tokens, _] = dims2(&grad);
        let ranks = dims2(&xa)[1];
        let b = contiguous(b);
        let mut dxa = vec![0f32; tokens * ranks];
        let mut db = Vec::with_capacity(slice(&b).len());
        let (mut first, mut offset) = (0, 0);
        for part in parts {
            let len = part.rank * part.width;
            let g = grad.narrow(1, part.column, part.width);
            let matrix = tensor(
                slice(&b)[offset..offset + len].to_vec(),
                [part.rank, part.width],
            );
            let block = contiguous(matmul(g.clone(), matrix.transpose(0, 1)));
            for (row, values) in dxa
                .chunks_exact_mut(ranks)
                .zip(slice(&block).chunks_exact(part.rank))
            {
                for (out, value) in row[first..first + part.rank].iter_mut().zip(values) {
                    *out = value * part.scale;
                }
            }
            let block = contiguous(matmul(xa.narrow(1, first, part.rank).transpose(0, 1), g));
            db.extend(slice(&block).iter().map(|value| value * part.scale));
            first += part.rank;
            offset += len;
        }
        let dxa = tensor(dxa, [tokens, ranks]);
        let da = matmul(x.transpose(0, 1), dxa.clone());
        let dx = with_x.then(|| {
            let mut dx = contiguous(matmul(grad, weight.transpose(0, 1)));
            let a = contiguous(a.transpose(0, 1));
            let width = dims2(&dx)[1];
            let whole = [LowRankPart {
                rank: ranks,
                scale: 1.0,
                column: 0,
                width,
            }];
            kernels::add_low_rank(
                dx.storage_mut(),
                width,
                slice(&dxa),
                ranks,
                slice(&a),
                &whole,
            );
            dx
        });
        let len = db.len();
        (dx, da, tensor(db, [len]))
    }

    fn adamw(
        param: FloatTensor<Self>,
        grad: FloatTensor<Self>,
        m: FloatTensor<Self>,
        v: FloatTensor<Self>,
        step: AdamWStep,
    ) -> (FloatTensor<Self>, FloatTensor<Self>, FloatTensor<Self>) {
        let (mut param, grad, mut m, mut v) =
            (writable(param), contiguous(grad), writable(m), writable(v));
        kernels::adamw(
            param.storage_mut(),
            slice(&grad),
            m.storage_mut(),
            v.storage_mut(),
            step,
        );
        (param, m, v)
    }
}
