//! What the machine can do at most, measured: GFLOP/s of a large f32 product, and GB/s of reading memory that no cache holds.
//! `cargo run --release --example machine_bounds`

#![allow(clippy::print_stdout, reason = "the results go to stdout")]

use std::hint::black_box;
use std::time::Instant;

use burn::backend::Flex;
use burn::tensor::{Distribution, Tensor};
use rayon::prelude::*;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Rows, depth and columns of a layer of SmolLM2-135M over a batch of about a thousand tokens.
const PRODUCT: [usize; 3] = [1024, 576, 3072];
/// 256 MiB.
const NUMBERS: usize = 64 << 20;

/// Seconds of the fastest of `runs`.
fn fastest(runs: usize, mut run: impl FnMut()) -> f64 {
    (0..runs).fold(f64::INFINITY, |best, _| {
        let begin = Instant::now();
        run();
        best.min(begin.elapsed().as_secs_f64())
    })
}

fn main() {
    // Else the product is timed with clearing the memory of its result.
    tempering::start::keep_freed_memory();
    let device = Default::default();
    let [rows, depth, columns] = PRODUCT;
    let random = |dims: [usize; 2]| Tensor::<Flex, 2>::random(dims, Distribution::Default, &device);
    let (x, w) = (random([rows, depth]), random([depth, columns]));
    let seconds = fastest(20, || {
        black_box(x.clone().matmul(w.clone()));
    });
    let operations = 2.0 * (rows * depth * columns) as f64;

    let numbers = vec![1f32; NUMBERS];
    let reading = fastest(5, || {
        let sums = numbers.par_chunks(1 << 16).map(|part| {
            part.chunks_exact(16).fold([0f32; 16], |mut sum, x| {
                sum.iter_mut().zip(x).for_each(|(s, x)| *s += x);
                sum
            })
        });
        black_box(sums.map(|sum| sum.iter().sum::<f32>()).sum::<f32>());
    });
    println!(
        "product {:.0} GFLOP/s, reading memory {:.1} GB/s, {} threads",
        operations / seconds / 1e9,
        (NUMBERS * 4) as f64 / reading / 1e9,
        rayon::current_num_threads()
    );
}
