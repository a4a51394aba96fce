//! The concrete backends: which are compiled in, which have a device, and dispatch to one of them. No other module names them.

use crate::device::DeviceMemory;
use crate::error::{Error, Result};
use crate::ops::ModelBackend;

/// The backend option.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, clap::ValueEnum)]
pub enum BackendChoice {
    /// The best that is compiled in and has a device: cuda, then wgpu (hardware only), then flex, then ndarray.
    #[default]
    Auto,
    /// NVIDIA GPUs.
    Cuda,
    /// Vulkan or Metal GPUs, Mesa's software Vulkan included.
    Wgpu,
    /// CPU with SIMD kernels on all cores.
    Flex,
    /// Reference CPU backend.
    #[value(name = "ndarray")]
    NdArray,
}

/// Work that is generic over the backend.
pub trait Task {
    /// The result.
    type Output;

    /// Runs on `device` of `B`; `name` is the backend's name.
    ///
    /// # Errors
    /// Those of the task.
    fn run<B: ModelBackend>(self, device: B::Device, name: &'static str) -> Result<Self::Output>;
}

/// Fails if the chosen backend is not compiled in.
///
/// # Errors
/// `Error::Usage`, naming the cargo feature.
pub fn require(choice: BackendChoice) -> Result<()> {
    match choice {
        BackendChoice::Cuda if !cfg!(feature = "cuda") => not_compiled("cuda", "cuda"),
        BackendChoice::Wgpu if !cfg!(feature = "wgpu") => {
            not_compiled("wgpu", "vulkan (or wgpu, metal)")
        }
        BackendChoice::Flex if !cfg!(feature = "flex") => not_compiled("flex", "flex"),
        BackendChoice::NdArray if !cfg!(feature = "ndarray") => not_compiled("ndarray", "ndarray"),
        _ => Ok(()),
    }
}

/// The memory of the device that [`dispatch`] runs on; unknown if there is no such device.
pub fn memory(choice: BackendChoice, device: usize) -> DeviceMemory {
    match resolve(choice, device) {
        BackendChoice::Cuda => cuda_memory(device),
        BackendChoice::Wgpu => wgpu_memory(device),
        BackendChoice::Auto | BackendChoice::Flex | BackendChoice::NdArray => DeviceMemory::Host,
    }
}

/// The device of a process among several on this host: the `local`-th after `device`. The first of a CPU backend, and where the
/// launcher shows each process one GPU of its own.
pub fn device_of(choice: BackendChoice, device: usize, local: usize) -> usize {
    let visible = match resolve(choice, device) {
        BackendChoice::Cuda => num_cuda_devices(),
        BackendChoice::Wgpu => hardware_gpus(),
        BackendChoice::Auto | BackendChoice::Flex | BackendChoice::NdArray => Ok(0),
    };
    match visible {
        Ok(2..) => device + local,
        _ => device,
    }
}

/// Runs `task` on the chosen backend.
///
/// # Errors
/// `Error::Usage` in one line when the backend is not compiled in (naming the cargo feature) or has no device (naming
/// the driver), and the task's own errors.
pub fn dispatch<T: Task>(choice: BackendChoice, device: usize, task: T) -> Result<T::Output> {
    // `auto` can always fall back to the CPU, which ignores the device number.
    let cpu = match choice {
        BackendChoice::Auto => 0,
        _ => device,
    };
    match resolve(choice, device) {
        BackendChoice::Cuda => cuda(device, task),
        BackendChoice::Wgpu => wgpu(device, task),
        BackendChoice::Auto | BackendChoice::Flex => flex(cpu, task),
        BackendChoice::NdArray => ndarray(cpu, task),
    }
}

/// Resolves `auto`: the best backend that is compiled in and has such a device.
fn resolve(choice: BackendChoice, device: usize) -> BackendChoice {
    if choice != BackendChoice::Auto {
        return choice;
    }
    if num_cuda_devices().is_ok_and(|n| n > device) {
        BackendChoice::Cuda
    } else if hardware_gpus().is_ok_and(|n| n > device) {
        BackendChoice::Wgpu
    } else if cfg!(feature = "flex") {
        BackendChoice::Flex
    } else {
        BackendChoice::NdArray
    }
}

/// Refuses other devices than 0 of a CPU backend.
fn only_device(device: usize, backend: &str) -> Result<()> {
    if device == 0 {
        return Ok(());
    }
    Err(Error::Usage(format!(
        "--device {device}: backend {backend} has one device, 0"
    )))
}

fn not_compiled<O>(backend: &str, feature: &str) -> Result<O> {
    Err(Error::Usage(format!(
        "backend {backend} is not in this binary; build it with: cargo build --release --features {feature}"
    )))
}

#[cfg(feature = "flex")]
fn flex<T: Task>(device: usize, task: T) -> Result<T::Output> {
    only_device(device, "flex")?;
    task.run::<burn::backend::Flex>(Default::default(), "flex")
}

#[cfg(not(feature = "flex"))]
fn flex<T: Task>(_: usize, _: T) -> Result<T::Output> {
    not_compiled("flex", "flex")
}

#[cfg(feature = "ndarray")]
fn ndarray<T: Task>(device: usize, task: T) -> Result<T::Output> {
    only_device(device, "ndarray")?;
    task.run::<burn::backend::NdArray>(Default::default(), "ndarray")
}

#[cfg(not(feature = "ndarray"))]
fn ndarray<T: Task>(_: usize, _: T) -> Result<T::Output> {
    not_compiled("ndarray", "ndarray")
}

#[cfg(feature = "cuda")]
mod cuda_backend {
    use super::{DeviceMemory, Error, Result, Task};

    /// As for wgpu; our kernels rely on these types too.
    const _: fn(
        burn::backend::Cuda,
    ) -> burn_cubecl::CubeBackend<cubecl::cuda::CudaRuntime, f32, i32, u8> = |backend| backend;

    /// Number of CUDA devices. Without the driver library the loader panics, which is caught.
    pub(super) fn num_devices() -> Result<usize> {
        use cubecl::Runtime;
        let count = super::quietly(|| cubecl::cuda::CudaRuntime::enumerate_devices(0, &()).len());
        count.ok_or_else(|| {
            Error::Usage(
                "backend cuda: the NVIDIA driver library (libcuda) cannot be loaded".into(),
            )
        })
    }

    /// Whether the toolkit's headers are present: kernels are compiled against them at run time, and cubecl panics without them.
    pub(super) fn has_headers() -> bool {
        let exists = |path: &str| std::path::Path::new(path).exists();
        std::env::var_os("CUDA_PATH").is_some()
            || ["/usr/local/cuda", "/opt/cuda", "/usr/bin/nvcc"]
                .into_iter()
                .any(exists)
            || cfg!(windows)
    }

    /// Queries the driver.
    pub(super) fn memory(device: usize) -> DeviceMemory {
        let name = format!("CUDA device {device}");
        let measured = super::quietly(|| {
            let context = cudarc::driver::CudaContext::new(device)?;
            context.mem_get_info()
        });
        match measured {
            Some(Ok((free, total))) => DeviceMemory::Device {
                name,
                free: free as u64,
                total: total as u64,
            },
            Some(Err(error)) => DeviceMemory::Unknown {
                name,
                why: format!("the driver reports {error}"),
            },
            None => DeviceMemory::Unknown {
                name,
                why: "the NVIDIA driver library (libcuda) cannot be loaded".into(),
            },
        }
    }

    pub(super) fn run<T: Task>(device: usize, task: T) -> Result<T::Output> {
        match num_devices()? {
            0 => {
                return Err(Error::Usage(
                    "backend cuda: the NVIDIA driver reports no device".into(),
                ));
            }
            n if device >= n => {
                return Err(Error::Usage(format!(
                    "--device {device}: CUDA devices go from 0 to {}",
                    n - 1
                )));
            }
            _ => {}
        }
        if !has_headers() {
            return Err(Error::Usage(
                "backend cuda: no CUDA toolkit found; install it in /usr/local/cuda or set CUDA_PATH".into(),
            ));
        }
        crate::guard::install();
        task.run::<burn::backend::Cuda>(burn::backend::cuda::CudaDevice::new(device), "cuda")
    }
}

#[cfg(feature = "cuda")]
fn cuda<T: Task>(device: usize, task: T) -> Result<T::Output> {
    cuda_backend::run(device, task)
}

#[cfg(feature = "cuda")]
fn cuda_memory(device: usize) -> DeviceMemory {
    cuda_backend::memory(device)
}

#[cfg(not(feature = "cuda"))]
fn cuda_memory(device: usize) -> DeviceMemory {
    DeviceMemory::Unknown {
        name: format!("CUDA device {device}"),
        why: "this binary has no CUDA".into(),
    }
}

#[cfg(feature = "cuda")]
fn num_cuda_devices() -> Result<usize> {
    // `auto` skips a driver without the toolkit, which could not compile kernels.
    if cuda_backend::has_headers() {
        cuda_backend::num_devices()
    } else {
        Ok(0)
    }
}

#[cfg(not(feature = "cuda"))]
fn cuda<T: Task>(_: usize, _: T) -> Result<T::Output> {
    not_compiled("cuda", "cuda")
}

#[cfg(not(feature = "cuda"))]
fn num_cuda_devices() -> Result<usize> {
    not_compiled("cuda", "cuda")
}

#[cfg(feature = "wgpu")]
mod wgpu_backend {
    use super::{DeviceMemory, Error, Result, Task};
    use burn::backend::Wgpu;
    use burn::backend::wgpu::graphics::{AutoGraphicsApi, GraphicsApi};
    use burn::backend::wgpu::{CubeBackend, WgpuDevice, WgpuRuntime};

    /// Compile-time check that kernel fusion is off: it gives wrong numbers in this version of burn.
    const _: fn(Wgpu) -> CubeBackend<WgpuRuntime, f32, i32, u32> = |backend| backend;

    /// Adapters in the order of `--device`: hardware first, discrete before integrated.
    fn adapters() -> Vec<WgpuDevice> {
        use cubecl::Runtime;
        // cubecl's numbers: 0 discrete, 1 integrated, 2 virtual, 3 software, 4 unknown.
        let kinds = super::quietly(|| {
            let devices = WgpuRuntime::enumerate_all_devices(&AutoGraphicsApi::backend());
            devices
                .iter()
                .map(|device| device.type_id)
                .collect::<Vec<_>>()
        });
        number(kinds.unwrap_or_default())
    }

    /// cubecl numbers adapters by kind, supports one software adapter, and unknown ones only as the default.
    fn number(mut kinds: Vec<u16>) -> Vec<WgpuDevice> {
        kinds.sort_unstable_by_key(|&kind| if kind == 3 { 5 } else { kind });
        let place = |i: usize| kinds[..i].iter().filter(|&&kind| kind == kinds[i]).count();
        let mut devices: Vec<WgpuDevice> = (0..kinds.len())
            .map(|i| match kinds[i] {
                0 => WgpuDevice::DiscreteGpu(place(i)),
                1 => WgpuDevice::IntegratedGpu(place(i)),
                2 => WgpuDevice::VirtualGpu(place(i)),
                3 => WgpuDevice::Cpu,
                _ => WgpuDevice::DefaultDevice,
            })
            .collect();
        devices.dedup();
        devices
    }

    pub(super) fn num_hardware() -> usize {
        let hardware =
            |device: &&WgpuDevice| !matches!(device, WgpuDevice::Cpu | WgpuDevice::DefaultDevice);
        adapters().iter().filter(hardware).count()
    }

    /// Software and integrated adapters use the host's memory; for others wgpu cannot query the size.
    pub(super) fn memory(device: usize) -> DeviceMemory {
        let name = format!("wgpu device {device}");
        match adapters().get(device) {
            Some(WgpuDevice::Cpu | WgpuDevice::IntegratedGpu(_)) => DeviceMemory::Host,
            Some(_) => DeviceMemory::Unknown {
                name,
                why: "wgpu cannot query it".into(),
            },
            None => DeviceMemory::Unknown {
                name,
                why: "there is no such device".into(),
            },
        }
    }

    pub(super) fn run<T: Task>(device: usize, task: T) -> Result<T::Output> {
        let adapters = adapters();
        let Some(last) = adapters.len().checked_sub(1) else {
            return Err(Error::Usage(
                "backend wgpu: no Vulkan or Metal driver found (Debian's mesa-vulkan-drivers has a software one)".into(),
            ));
        };
        let Some(adapter) = adapters.into_iter().nth(device) else {
            return Err(Error::Usage(format!(
                "--device {device}: wgpu adapters go from 0 to {last}"
            )));
        };
        crate::guard::install();
        task.run::<Wgpu>(adapter, "wgpu")
    }

    #[cfg(test)]
    mod tests {
        use super::*;

        #[test]
        fn software_adapters_come_last() {
            use WgpuDevice::{Cpu, DefaultDevice, DiscreteGpu, IntegratedGpu};
            assert_eq!(
                number(vec![3, 0, 4, 1, 3, 0]),
                [
                    DiscreteGpu(0),
                    DiscreteGpu(1),
                    IntegratedGpu(0),
                    DefaultDevice,
                    Cpu
                ]
            );
        }
    }
}

#[cfg(feature = "wgpu")]
fn wgpu<T: Task>(device: usize, task: T) -> Result<T::Output> {
    wgpu_backend::run(device, task)
}

#[cfg(feature = "wgpu")]
fn wgpu_memory(device: usize) -> DeviceMemory {
    wgpu_backend::memory(device)
}

#[cfg(not(feature = "wgpu"))]
fn wgpu_memory(device: usize) -> DeviceMemory {
    DeviceMemory::Unknown {
        name: format!("wgpu device {device}"),
        why: "this binary has no wgpu".into(),
    }
}

#[cfg(feature = "wgpu")]
fn hardware_gpus() -> Result<usize> {
    Ok(wgpu_backend::num_hardware())
}

#[cfg(not(feature = "wgpu"))]
fn wgpu<T: Task>(_: usize, _: T) -> Result<T::Output> {
    not_compiled("wgpu", "vulkan (or wgpu, metal)")
}

#[cfg(not(feature = "wgpu"))]
fn hardware_gpus() -> Result<usize> {
    not_compiled("wgpu", "wgpu")
}

/// Runs a probe that may panic, suppressing the panic's message.
#[cfg(any(feature = "cuda", feature = "wgpu"))]
fn quietly<R>(probe: impl FnOnce() -> R) -> Option<R> {
    let hook = std::panic::take_hook();
    std::panic::set_hook(Box::new(|_| {}));
    let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(probe)).ok();
    std::panic::set_hook(hook);
    outcome
}
