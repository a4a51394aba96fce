//! The checks of `tests/ops.rs` and `tests/families.rs` on the first wgpu adapter: a GPU, or Mesa's software Vulkan
//! (Debian's `mesa-vulkan-drivers`). Run with `cargo test --release --features vulkan --test wgpu`.
#![cfg(feature = "wgpu")]

#[path = "support/families.rs"]
mod families;
#[path = "support/ops.rs"]
mod operations;

use burn::backend::Wgpu;
use burn::tensor::Tensor;
use tempering::backend::{BackendChoice, Task, dispatch};
use tempering::error::Result;
use tempering::guard;
use tempering::ops::ModelBackend;

/// Runs a check as the binary would: on a dispatched device, with swallowed errors turned into a failure.
macro_rules! on_wgpu {
    ($($module:ident: $($check:ident),*;)*) => {$(
        mod $module {
            $(#[test] fn $check() {
                let device = burn::backend::wgpu::WgpuDevice::default();
                tempering::guard::install();
                crate::$module::$check::<burn::backend::Wgpu>(device.clone());
                tempering::guard::check::<burn::backend::Wgpu>(&device).unwrap();
            })*
        }
    )*};
}

mod on_device {
    on_wgpu!(
        operations: rms_norm, rope, swiglu, attention, token_logprob, extreme_logits, lora_linear, adamw,
            adamw_of_a_view, cache, cache_write;
        families: forward, gradients, scores, generation, lora;
    );
}

#[cfg(feature = "flex")]
#[test]
fn wgpu_equals_flex() {
    let device = burn::backend::wgpu::WgpuDevice::default();
    operations::large::<Wgpu, burn::backend::Flex>(&device, &Default::default(), 2e-5);
}

/// Doubles a number on the device and names the backend.
struct Double(f32);

impl Task for Double {
    type Output = (f32, &'static str);

    fn run<B: ModelBackend>(self, device: B::Device, name: &'static str) -> Result<Self::Output> {
        let doubled = Tensor::<B, 1>::from_data([self.0], &device) * 2.0;
        let values = doubled.into_data().convert::<f32>().into_vec::<f32>().unwrap();
        guard::check::<B>(&device)?;
        Ok((values[0], name))
    }
}

#[test]
fn dispatch_reaches_the_device() {
    assert_eq!(dispatch(BackendChoice::Wgpu, 0, Double(21.0)).unwrap(), (42.0, "wgpu"));
    let error = dispatch(BackendChoice::Wgpu, 99, Double(1.0)).unwrap_err().to_string();
    assert!(error.starts_with("--device 99: wgpu adapters go from 0 to "), "{error}");
}

/// Runs one ignored test of this binary with another driver list.
fn with_drivers(test: &str, drivers: &str) -> std::process::Output {
    std::process::Command::new(std::env::current_exe().unwrap())
        .args(["--exact", test, "--ignored", "--nocapture"])
        .env("VK_DRIVER_FILES", drivers)
        .output()
        .unwrap()
}

#[cfg(target_os = "linux")]
#[test]
fn no_driver_is_one_line() {
    let output = with_drivers("child_without_driver", "/nonexistent.json");
    let stdout = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{stdout}{}", String::from_utf8_lossy(&output.stderr));
    assert!(stdout.contains("1 passed"), "{stdout}");
}

/// Run by [`no_driver_is_one_line`] in a process of its own.
#[test]
#[ignore = "run by another test in a process without a driver"]
fn child_without_driver() {
    let error = dispatch(BackendChoice::Wgpu, 0, Double(1.0)).unwrap_err().to_string();
    assert!(error.starts_with("backend wgpu: no Vulkan or Metal driver found"), "{error}");
    assert_eq!(error.lines().count(), 1, "{error}");
    let (_, name) = dispatch(BackendChoice::Auto, 0, Double(1.0)).unwrap();
    assert!(["cuda", "flex", "ndarray"].contains(&name), "{name}");
}
