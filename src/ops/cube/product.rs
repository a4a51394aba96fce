//! Which of the runtime's kernels multiplies two matrices.
//!
//! The runtime's own choice multiplies f32 as TF32 wherever tensor cores are (errors of 3e-4 of a product's largest number), and
//! takes neither the tensor memory accelerator nor a second buffer for bfloat16. Measured on an H200, products of 4,096 rows: f32
//! by its units 24 TFLOP/s, bfloat16 88 by its choice and up to 226 by the one here.

use burn::tensor::{DType, Shape};
use burn_cubecl::CubeRuntime;
use burn_cubecl::tensor::CubeTensor;
use cubek::matmul::definition::{MatmulElems, MatmulGlobalElems, MatmulSetupError};
use cubek::matmul::launch::{Strategy, launch_ref};
use cubek::matmul::routines::BlueprintStrategy::Inferred;
use cubek::matmul::routines::TileSizeSelection::MaxTileSize;
use cubek::matmul::routines::simple_unit::SimpleUnitSelectionArgs;
use cubek::std::InputBinding;

use super::{dims2, empty};

/// With fewer rows the accelerator's tiles are mostly empty.
const TALL: usize = 64;

/// `a . b` in f32.
pub(super) fn f32s<R: CubeRuntime>(a: CubeTensor<R>, b: CubeTensor<R>) -> CubeTensor<R> {
    let units = Strategy::SimpleUnit(Inferred(SimpleUnitSelectionArgs {
        tile_size: MaxTileSize,
    }));
    // What refuses no matrix copies one that does not lie as it likes.
    first_that_runs(a, b, vec![units, Strategy::Naive])
}

/// `a . b` of bfloat16 matrices, in f32.
pub(super) fn bf16s<R: CubeRuntime>(a: CubeTensor<R>, b: CubeTensor<R>) -> CubeTensor<R> {
    let mut kernels = vec![
        Strategy::SimpleCyclicMma(Default::default()),
        Strategy::Auto,
    ];
    if dims2(&a)[0] >= TALL && [&a, &b].into_iter().all(has_whole_lines) {
        kernels.insert(0, Strategy::DoubleTmaMma(Default::default()));
    }
    first_that_runs(a, b, kernels)
}

/// Whether the accelerator can fetch the matrix: lines one after the other in memory, each of a multiple of 16 bytes.
fn has_whole_lines<R: CubeRuntime>(x: &CubeTensor<R>) -> bool {
    let [rows, columns] = dims2(x);
    let line = match x.meta.strides() {
        strides if strides[..] == [columns, 1] => columns,
        strides if strides[..] == [1, rows] => rows,
        _ => return false,
    };
    (line * x.dtype.size()).is_multiple_of(16)
}

/// By the first kernel that takes these matrices on this device; what one refuses it does not begin.
fn first_that_runs<R: CubeRuntime>(
    a: CubeTensor<R>,
    b: CubeTensor<R>,
    kernels: Vec<Strategy>,
) -> CubeTensor<R> {
    let shape = Shape::new([dims2(&a)[0], dims2(&b)[1]]);
    let out = empty(&a, shape);
    if out.meta.shape().num_elements() == 0 {
        return out;
    }
    let mut refusal = None;
    for kernel in kernels {
        match launch(&kernel, a.clone(), b.clone(), out.clone()) {
            Ok(()) => return out,
            Err(error) => refusal = Some(error),
        }
    }
    panic!("a product of two matrices that fit each other: {refusal:?}")
}

fn launch<R: CubeRuntime>(
    kernel: &Strategy,
    a: CubeTensor<R>,
    b: CubeTensor<R>,
    out: CubeTensor<R>,
) -> Result<(), MatmulSetupError> {
    let [left, right, product] = [a.dtype, b.dtype, out.dtype].map(DType::into);
    let mut dtypes = MatmulElems::from_globals(&MatmulGlobalElems {
        lhs: left,
        rhs: right,
        out: product,
    });
    let client = out.client.clone();
    launch_ref(
        kernel,
        &client,
        InputBinding::new(a.binding(), left),
        InputBinding::new(b.binding(), right),
        out.binding(),
        &mut dtypes,
    )
}
