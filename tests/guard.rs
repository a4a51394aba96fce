//! Swallowed device errors come to light. In a process of its own: the failure is provoked on the device that other tests
//! would share.
#![cfg(feature = "wgpu")]

use burn::backend::Wgpu;
use burn::backend::wgpu::WgpuDevice;
use burn::tensor::Tensor;
use cubecl::Runtime;
use tempering::error::Error;
use tempering::guard;

#[test]
fn an_allocation_beyond_the_largest_page_is_an_error() {
    let device = WgpuDevice::default();
    guard::install();
    let small = Tensor::<Wgpu, 1>::ones([4], &device) * 2.0;
    assert_eq!(small.into_data().to_vec::<f32>().unwrap(), [2.0; 4]);
    guard::check::<Wgpu>(&device).unwrap();

    let page = burn::backend::wgpu::WgpuRuntime::client(&device)
        .properties()
        .memory
        .max_page_size;
    let entries = (page / 4 * 2).min(1 << 40) as usize;
    // The caller sees no error: the allocation fails on the device's own thread.
    let too_large = Tensor::<Wgpu, 1>::empty([entries], &device) + 1.0;
    assert_eq!(too_large.dims(), [entries]);
    let error = guard::check::<Wgpu>(&device).unwrap_err();
    assert!(matches!(&error, Error::Backend(_)), "{error:?}");
    let message = error.to_string();
    assert!(
        message.starts_with("the device failed: ") && message.contains("allocate"),
        "{message}"
    );
    assert_eq!(message.lines().count(), 1, "{message}");

    // Reported once.
    guard::take();
    let small = Tensor::<Wgpu, 1>::ones([4], &device) * 2.0;
    assert_eq!(small.into_data().to_vec::<f32>().unwrap(), [2.0; 4]);
    guard::check::<Wgpu>(&device).unwrap();
}
