//! The checks of `tests/backends` on the first wgpu adapter: a GPU, or Mesa's software Vulkan (Debian's
//! `mesa-vulkan-drivers`). Run with `cargo test --release --features vulkan --test wgpu`.
#![cfg(feature = "wgpu")]

#[path = "support/families.rs"]
mod families;
#[path = "support/launches.rs"]
mod launches;
#[path = "support/losses.rs"]
mod losses;
#[path = "support/mixed.rs"]
mod mixed;
#[path = "support/ops.rs"]
mod operations;
#[path = "support/parity.rs"]
mod parity;
#[path = "support/peft.rs"]
mod peft;
#[path = "support/pipeline.rs"]
mod pipeline;
#[path = "support/ppo.rs"]
mod ppo;
#[path = "support/trajectories.rs"]
mod trajectories;

#[path = "support/reduced.rs"]
mod reduced;
#[path = "support/shared_prefix.rs"]
mod shared_prefix;
#[path = "support/together.rs"]
mod together;

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
        operations: rms_norm, layer_norm, gelu, rope, residual, swiglu, attention, token_logprob, extreme_logits, lora_linear,
        lora_linear_of, adamw, adamw_of_a_view, cache, cache_write;
        losses: gradients;
        families: forward, gradients, mixed, recomputed, scores, generation, cached, lora;
        shared_prefix: states, gradients, scores, responses;
    together: models_in_one_pass;
        reduced: products, bf16_models, int8_models;
        mixed: mixed_products, mixed_logprobs;
        trajectories: sft, reward, dpo;
        peft: adapters, classifiers, written, misfits;
        pipeline: every_stage;
        ppo: rollout_and_update;
    );
}

#[cfg(feature = "flex")]
#[test]
fn wgpu_equals_flex() {
    let device = burn::backend::wgpu::WgpuDevice::default();
    operations::large::<Wgpu, burn::backend::Flex>(&device, &Default::default(), 2e-5);
}

#[test]
fn a_training_step_is_bounded() {
    if launches::in_counting_process("a_training_step_is_bounded") {
        launches::training_step(Default::default());
    }
}

#[test]
fn a_drawn_token_is_bounded() {
    if launches::in_counting_process("a_drawn_token_is_bounded") {
        launches::drawn_tokens(Default::default());
    }
}

/// Doubles a number on the device and names the backend.
struct Double(f32);

impl Task for Double {
    type Output = (f32, &'static str);

    fn run<B: ModelBackend>(self, device: B::Device, name: &'static str) -> Result<Self::Output> {
        let doubled = Tensor::<B, 1>::from_data([self.0], &device) * 2.0;
        let values = doubled
            .into_data()
            .convert::<f32>()
            .into_vec::<f32>()
            .unwrap();
        guard::check::<B>(&device)?;
        Ok((values[0], name))
    }
}

#[test]
fn dispatch_reaches_the_device() {
    assert_eq!(
        dispatch(BackendChoice::Wgpu, 0, Double(21.0)).unwrap(),
        (42.0, "wgpu")
    );
    let error = dispatch(BackendChoice::Wgpu, 99, Double(1.0))
        .unwrap_err()
        .to_string();
    assert!(
        error.starts_with("--device 99: wgpu adapters go from 0 to "),
        "{error}"
    );
}

/// Runs a test of this binary again, in a process that sees only the given Vulkan drivers.
#[cfg(target_os = "linux")]
fn with_drivers(test: &str, drivers: &std::path::Path) {
    let output = std::process::Command::new(std::env::current_exe().unwrap())
        .args(["--exact", test, "--nocapture"])
        .env("VK_DRIVER_FILES", drivers)
        .env(CHILD, "1")
        .output()
        .unwrap();
    let stdout = String::from_utf8_lossy(&output.stdout);
    assert!(
        output.status.success(),
        "{stdout}{}",
        String::from_utf8_lossy(&output.stderr)
    );
    assert!(stdout.contains("1 passed"), "{stdout}");
}

/// Set in the processes of [`with_drivers`].
#[cfg(target_os = "linux")]
const CHILD: &str = "TEMPERING_TEST_CHILD";

#[cfg(target_os = "linux")]
#[test]
fn no_driver_is_one_line() {
    if std::env::var_os(CHILD).is_none() {
        return with_drivers("no_driver_is_one_line", "/nonexistent.json".as_ref());
    }
    let error = dispatch(BackendChoice::Wgpu, 0, Double(1.0))
        .unwrap_err()
        .to_string();
    assert!(
        error.starts_with("backend wgpu: no Vulkan or Metal driver found"),
        "{error}"
    );
    assert_eq!(error.lines().count(), 1, "{error}");
}

#[cfg(target_os = "linux")]
#[test]
fn auto_passes_over_software_adapters() {
    if std::env::var_os(CHILD).is_none() {
        let folder = std::fs::read_dir("/usr/share/vulkan/icd.d").unwrap();
        let software = folder
            .map(|entry| entry.unwrap().path())
            .find(|path| path.to_string_lossy().contains("lvp_icd"));
        return with_drivers(
            "auto_passes_over_software_adapters",
            &software.expect("mesa-vulkan-drivers is installed"),
        );
    }
    assert_eq!(
        dispatch(BackendChoice::Wgpu, 0, Double(1.0)).unwrap(),
        (2.0, "wgpu")
    );
    let (doubled, name) = dispatch(BackendChoice::Auto, 0, Double(1.0)).unwrap();
    assert_eq!(doubled, 2.0);
    assert!(["cuda", "flex", "ndarray"].contains(&name), "{name}");
}
