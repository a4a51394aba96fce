//! The checks of `tests/backends.rs` on a GPU: with `--features vulkan` on the first wgpu adapter, which may be Mesa's software Vulkan
//! (Debian's `mesa-vulkan-drivers`), with `--features cuda` on the first NVIDIA GPU. `cargo test --features vulkan --test gpu`.
#![cfg(any(feature = "wgpu", feature = "cuda"))]

mod support;

use burn::tensor::Tensor;
use tempering::backend::{BackendChoice, Task, dispatch};
use tempering::error::Result;
use tempering::guard;
use tempering::ops::ModelBackend;

/// Runs the checks as the binary would: on a device, with swallowed errors turned into a failure.
macro_rules! checks {
    ($backend:ty, $($module:ident: $($check:ident),*;)*) => {$(
        mod $module {
            $(#[test] fn $check() {
                let device = Default::default();
                tempering::guard::install();
                crate::support::$module::$check::<$backend>(Clone::clone(&device));
                tempering::guard::check::<$backend>(&device).unwrap();
            })*
        }
    )*};
}

/// All of them on one backend, and what it takes at most: launches of a training step, and of a sampled token.
macro_rules! on {
    ($place:ident, $backend:ty, $runtime:ty, [$step:literal, $token:literal]) => {
        mod $place {
            checks! {
                $backend,
                ops: rms_norm, layer_norm, gelu, rope, residual, gated_unit, attention, masked_attention, token_logprob, replaced_token_logprob, extreme_logits,
                    lora_linear, lora_linear_of, low_rank_linear, adamw, adamw_of_a_view, cache, cache_write;
                losses: gradients;
                families: forward, gradients, mixed, recomputed, scores, generation, cached, lora;
                rope_scalings: one_pass, cached;
                encoders: classifiers;
                shared_prefix: states, gradients, scores, responses;
                together: models_in_one_pass;
                reduced: products, blocks, bf16_models, nf4_models, int8_models, bitsandbytes_files;
                mixed: mixed_products, mixed_logprobs;
                trajectories: sft, reward, dpo, distill;
                divergence: gradients;
                peft: adapters, classifiers, written, misfits, trained, many_rows, combined;
                bottlenecks: forward, gradients, fresh;
                resized: tables, written;
                prompts: forward, classifiers, files, gradients, shared, misfits;
                pipeline: every_stage;
                optimisers: twenty_steps;
                ppo: rollout_and_update;
            }

            #[cfg(feature = "flex")]
            #[test]
            fn equals_flex() {
                let (device, cpu) = Default::default();
                crate::support::ops::large::<$backend, burn::backend::Flex>(&device, &cpu, 2e-5);
            }

            #[test]
            fn a_training_step_is_bounded() {
                let test = concat!(stringify!($place), "::a_training_step_is_bounded");
                if crate::support::launches::in_counting_process(test) {
                    crate::support::launches::training_step::<$backend, $runtime>(Default::default(), $step);
                }
            }

            #[test]
            fn a_generated_token_is_bounded() {
                let test = concat!(stringify!($place), "::a_generated_token_is_bounded");
                if crate::support::launches::in_counting_process(test) {
                    crate::support::launches::generated_tokens::<$backend>(Default::default(), $token);
                }
            }
        }
    };
}

#[cfg(feature = "wgpu")]
on!(
    on_wgpu,
    burn::backend::Wgpu,
    burn::backend::wgpu::WgpuRuntime,
    [323, 35]
);
// CUDA pads short rows in memory, and what kernels read without gaps is copied first.
#[cfg(feature = "cuda")]
on!(
    on_cuda,
    burn::backend::Cuda,
    cubecl::cuda::CudaRuntime,
    [410, 41]
);

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

fn reaches(choice: BackendChoice, name: &'static str, devices: &str) {
    assert_eq!(dispatch(choice, 0, Double(21.0)).unwrap(), (42.0, name));
    let error = dispatch(choice, 99, Double(1.0)).unwrap_err().to_string();
    let expected = format!("--device 99: {devices} go from 0 to ");
    assert!(error.starts_with(&expected), "{error}");
}

#[cfg(feature = "wgpu")]
#[test]
fn dispatch_reaches_wgpu() {
    reaches(BackendChoice::Wgpu, "wgpu", "wgpu adapters");
}

#[cfg(feature = "cuda")]
#[test]
fn dispatch_reaches_cuda() {
    reaches(BackendChoice::Cuda, "cuda", "CUDA devices");
}

/// Runs a test of this binary again, in a process that sees only the given Vulkan drivers.
#[cfg(all(feature = "wgpu", target_os = "linux"))]
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
#[cfg(all(feature = "wgpu", target_os = "linux"))]
const CHILD: &str = "TEMPERING_TEST_CHILD";

#[cfg(all(feature = "wgpu", target_os = "linux"))]
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

#[cfg(all(feature = "wgpu", target_os = "linux"))]
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
