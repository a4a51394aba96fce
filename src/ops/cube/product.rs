//! Selects the runtime's kernel for a product of two matrices.
//!
//! The runtime's default uses TF32 for f32 products on tensor cores (errors of 3e-4 of a product's largest number), and for bfloat16
//! neither the tensor memory accelerator nor double buffering.

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

/// Fewest rows for the accelerator, whose tiles would otherwise be mostly empty.
const TALL: usize = 64;

/// `a . b` in f32.
pub(super) fn f32s<R: CubeRuntime>(a: CubeTensor<R>, b: CubeTensor<R>) -> CubeTensor<R> {
    let units = Strategy::SimpleUnit(Inferred(SimpleUnitSelectionArgs {
        tile_size: MaxTileSize,
    }));
    // The kernel that accepts all layouts copies matrices in other layouts.
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

/// Whether the accelerator can load the matrix: contiguous lines of a multiple of 16 bytes.
fn has_whole_lines<R: CubeRuntime>(x: &CubeTensor<R>) -> bool {
    let [rows, columns] = dims2(x);
    let line = match x.meta.strides() {
        strides if strides[..] == [columns, 1] => columns,
        strides if strides[..] == [1, rows] => rows,
        _ => return false,
    };
    (line * x.dtype.size()).is_multiple_of(16)
}

/// Multiplies by the first kernel that accepts these matrices on this device.
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
