//! Tables of indices in device memory.

use std::any::Any;
use std::cell::RefCell;

use burn::tensor::{DType, Shape};
use burn_cubecl::CubeRuntime;
use burn_cubecl::tensor::CubeTensor;

/// Number of recent tables to keep: all layers of a step use the same few tables (rows of the batch, parts of adapters).
const KEPT: usize = 32;

thread_local! {
    /// The recent tables of this thread, which has its own stream of device work; most recent last.
    static RECENT: RefCell<Vec<Box<dyn Any>>> = const { RefCell::new(Vec::new()) };
}

struct Table<R: CubeRuntime> {
    numbers: Vec<u32>,
    uploaded: CubeTensor<R>,
}

/// `numbers` on the device of `like`, uploaded unless they are among the recent tables.
pub(super) fn table<R: CubeRuntime>(like: &CubeTensor<R>, numbers: Vec<u32>) -> CubeTensor<R> {
    RECENT.with_borrow_mut(|recent| {
        let same = |entry: &Box<dyn Any>| {
            entry.downcast_ref::<Table<R>>().is_some_and(|table| {
                table.uploaded.device == like.device && table.numbers == numbers
            })
        };
        let found = recent.iter().position(same);
        if let Some(place) = found {
            let entry = recent.remove(place);
            recent.push(entry);
        } else {
            if recent.len() == KEPT {
                recent.remove(0);
            }
            let uploaded = upload(like, &numbers);
            recent.push(Box::new(Table::<R> { numbers, uploaded }));
        }
        let entry = recent
            .last()
            .and_then(|entry| entry.downcast_ref::<Table<R>>());
        entry.expect("just put there").uploaded.clone()
    })
}

fn upload<R: CubeRuntime>(like: &CubeTensor<R>, numbers: &[u32]) -> CubeTensor<R> {
    let bytes: Vec<u8> = numbers.iter().flat_map(|n| n.to_ne_bytes()).collect();
    let handle = like.client.create_from_slice(&bytes);
    let shape = Shape::from([numbers.len()]);
    CubeTensor::new_contiguous(
        like.client.clone(),
        like.device.clone(),
        shape,
        handle,
        DType::U32,
    )
}
