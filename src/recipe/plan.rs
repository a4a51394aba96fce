//! The plan that `--dry-run` prints, and the memory check.

use crate::device::DeviceMemory;
use crate::error::Problem;
use crate::hub::decimal;
use crate::model::AbsentWeights;
use crate::report::{duration, grouped};
use crate::train::plan::{ModelShape, StagePlan};

/// The plan as aligned text: a line per stage, then each stage's memory by component. `times`: estimated seconds of each stage, if they
/// were measured.
pub fn table(plans: &[StagePlan], times: Option<&[f64]>) -> String {
    let mut header = vec![
        "stage",
        "kind",
        "trainable",
        "parameters",
        "rows",
        "tokens",
        "steps",
        "peak memory",
    ];
    header.extend(times.map(|_| "time"));
    let mut rows = vec![header.iter().map(ToString::to_string).collect::<Vec<_>>()];
    for (index, plan) in plans.iter().enumerate() {
        rows.push(vec![
            plan.name.clone(),
            plan.kind.clone(),
            human_count(plan.trainable_params),
            human_count(plan.total_params),
            grouped(plan.rows),
            human_count(plan.tokens),
            grouped(plan.steps),
            human_bytes(plan.peak()),
        ]);
        if let (Some(row), Some(&seconds)) = (rows.last_mut(), times.and_then(|t| t.get(index))) {
            row.push(format!("~{}", duration(seconds)));
        }
    }
    let mut text = String::new();
    let widths: Vec<usize> = (0..header.len())
        .map(|column| {
            rows.iter()
                .map(|row| row[column].chars().count())
                .max()
                .unwrap_or(0)
        })
        .collect();
    for row in &rows {
        let cells = row
            .iter()
            .zip(&widths)
            .enumerate()
            .map(|(column, (cell, &width))| {
                // Names to the left, numbers to the right.
                if column < 2 {
                    format!("{cell:<width$}")
                } else {
                    format!("{cell:>width$}")
                }
            });
        text.push_str(cells.collect::<Vec<_>>().join("  ").trim_end());
        text.push('\n');
    }
    let width = widths[0];
    let parts: Vec<&StagePlan> = plans
        .iter()
        .filter(|plan| !plan.trained.is_empty())
        .collect();
    if !parts.is_empty() {
        text.push_str("\ntrained, or with an adapter\n");
    }
    for plan in parts {
        text.push_str(&format!("{:<width$}  {}\n", plan.name, plan.trained));
    }
    text.push_str("\nestimated memory at the peak\n");
    for plan in plans {
        text.push_str(&format!("{:<width$}  {}\n", plan.name, components(plan)));
        if plan.shape.gradient_checkpointing {
            text.push_str(&format!("{:<width$}  {}\n", "", recomputation(plan)));
        }
    }
    text
}

/// Savings and cost of `gradient_checkpointing`. A backward pass costs as much as a forward pass with frozen weights, twice as much
/// with trained ones.
fn recomputation(plan: &StagePlan) -> String {
    let plain = ModelShape {
        gradient_checkpointing: false,
        ..plan.shape
    };
    let share = plain.backward_floats() as f64 / plan.shape.backward_floats() as f64;
    let cost = match plan.shape.trains_base {
        true => 33,
        false => 50,
    };
    format!(
        "gradient_checkpointing: 1/{share:.1} of a backward pass's activations, for about {cost} % more computing"
    )
}

/// The available memory, as a line below the plan.
pub fn memory_line(memory: &DeviceMemory) -> String {
    match memory {
        DeviceMemory::Host => match memory.available() {
            Some(bytes) => format!("memory available on this machine: {}", human_bytes(bytes)),
            None => "memory available on this machine: unknown and not checked; set it with --device-memory SIZE".into(),
        },
        DeviceMemory::Device { name, free, total } => format!(
            "memory available on {name}: {} of {}",
            human_bytes(*free),
            human_bytes(*total)
        ),
        DeviceMemory::Override(bytes) => {
            format!("memory available by --device-memory: {}", human_bytes(*bytes))
        }
        DeviceMemory::Unknown { name, why } => format!(
            "memory available on {name}: unknown ({why}) and not checked; set it with --device-memory SIZE"
        ),
    }
}

/// The weights that a run downloads first, as a line below the plan; `None` if there are none.
pub fn download_line(absent: &[AbsentWeights]) -> Option<String> {
    if absent.is_empty() {
        return None;
    }
    let models = (absent.iter()).map(|of| format!("{} {}", of.model, decimal(of.bytes)));
    let models: Vec<String> = models.collect();
    Some(format!("weights to be downloaded: {}", models.join(", ")))
}

/// A problem for each stage that needs more memory than is available; none if that is unknown.
pub fn check_fits(plans: &[StagePlan], memory: &DeviceMemory) -> Vec<Problem> {
    let Some(available) = memory.available() else {
        return Vec::new();
    };
    let whose = match memory {
        DeviceMemory::Host | DeviceMemory::Unknown { .. } => "are available".to_owned(),
        DeviceMemory::Device { name, .. } => format!("are free on {name}"),
        DeviceMemory::Override(_) => "are given by --device-memory".to_owned(),
    };
    plans
        .iter()
        .filter(|plan| plan.peak() > available)
        .map(|plan| {
            Problem::new(
                format!("stages.{}", plan.name),
                format!(
                    "needs an estimated {} of memory ({}), but {} {whose}",
                    human_bytes(plan.peak()),
                    components(plan),
                    human_bytes(available)
                ),
            )
            .with_help(format!(
                "{}; --device-memory SIZE overrides what was measured",
                advice(plan)
            ))
        })
        .collect()
}

/// Advice by the largest component.
pub(super) fn advice(plan: &StagePlan) -> &'static str {
    let largest = plan.memory.iter().max_by_key(|(_, bytes)| *bytes);
    match largest.map(|(name, _)| name.as_str()) {
        Some("activations") => {
            "lower `micro_batch_tokens` (results do not change), set `gradient_checkpointing: true`, or lower `generation_batch_size`"
        }
        Some("KV cache") => "lower `generation_batch_size` (results do not change)",
        Some("gradients" | "optimizer state") => "train adapters instead: `peft: Lora(rank: 16)`",
        Some("reference") => {
            "set `precompute_ref_log_probs: true`, or train adapters: `peft: Lora(rank: 16)`"
        }
        Some("logits") => "lower `generation_batch_size`",
        _ => "use a smaller model or a machine with more memory",
    }
}

pub(super) fn components(plan: &StagePlan) -> String {
    let parts: Vec<String> = plan
        .memory
        .iter()
        .map(|(name, bytes)| format!("{name} {}", human_bytes(*bytes)))
        .collect();
    parts.join(", ")
}

/// `134.5 M`: four digits at most, in thousands.
fn human_count(n: u64) -> String {
    match n {
        0..10_000 => grouped(n),
        10_000..999_950 => format!("{:.1} k", n as f64 / 1e3),
        999_950..999_950_000 => format!("{:.1} M", n as f64 / 1e6),
        _ => format!("{:.1} G", n as f64 / 1e9),
    }
}

/// `1.73 GiB`.
pub(super) fn human_bytes(n: u64) -> String {
    const UNITS: [&str; 4] = ["KiB", "MiB", "GiB", "TiB"];
    if n < 1024 {
        return format!("{n} B");
    }
    let mut value = n as f64 / 1024.0;
    let mut unit = 0;
    // 1023.995 would print as 1024.00.
    while value >= 1023.995 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    format!("{value:.2} {}", UNITS[unit])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::train::plan::Work;

    /// SmolLM2-135M's.
    const SHAPE: ModelShape = ModelShape {
        hidden: 576,
        layers: 30,
        intermediate: 1536,
        vocab: 49_152,
        heads: 9,
        kv_heads: 3,
        head_dim: 64,
        total_params: 134_515_008,
        trainable_params: 0,
        table_params: 28_311_552,
        optimizer_bytes: 0,
        precision: crate::ops::Precision::F32,
        stored_bytes: 0,
        gradient_checkpointing: false,
        trains_base: false,
        adapter_floats: 0,
        adapted_head: 0,
        first_trained_layer: 0,
        virtual_tokens: 0,
    };

    fn plans() -> Vec<StagePlan> {
        vec![
            StagePlan {
                name: "sft".into(),
                kind: "Sft".into(),
                trainable_params: 4_884_480,
                trained: String::new(),
                total_params: 139_399_488,
                rows: 480,
                tokens: 100_000,
                steps: 60,
                memory: vec![
                    ("weights".into(), 557_597_952),
                    ("activations".into(), 1 << 30),
                ],
                workload: None,
                work: Work::default(),
                response: None,
                shape: SHAPE,
                rank: Some(16),
                leaves: None,
                warnings: Vec::new(),
            },
            StagePlan {
                name: "compare".into(),
                kind: "Compare".into(),
                trainable_params: 0,
                trained: String::new(),
                total_params: 134_515_008,
                rows: 200,
                tokens: 9_999,
                steps: 1_250,
                memory: vec![("weights".into(), 538_060_032)],
                workload: None,
                work: Work::default(),
                response: None,
                shape: SHAPE,
                rank: None,
                leaves: None,
                warnings: Vec::new(),
            },
        ]
    }

    #[test]
    fn the_table_is_aligned() {
        let expected = "\
stage    kind     trainable  parameters  rows   tokens  steps  peak memory
sft      Sft          4.9 M     139.4 M   480  100.0 k     60     1.52 GiB
compare  Compare          0     134.5 M   200    9,999  1,250   513.13 MiB

estimated memory at the peak
sft      weights 531.77 MiB, activations 1.00 GiB
compare  weights 513.13 MiB
";
        assert_eq!(table(&plans(), None), expected);
        // (576 + 31 * 5769) / (31 * 576 + 2 * 5769).
        let mut again = plans();
        again[0].shape.gradient_checkpointing = true;
        let line = "              gradient_checkpointing: 1/6.3 of a backward pass's activations, for about 50 % more computing\n";
        let expected = expected.replace(
            "compare  weights",
            &format!("{}compare  weights", &line[5..]),
        );
        assert_eq!(table(&again, None), expected);
    }

    #[test]
    fn what_does_not_fit_is_refused_with_advice() {
        let problems = check_fits(&plans(), &DeviceMemory::Override(1 << 30));
        assert_eq!(problems.len(), 1);
        assert_eq!(
            problems[0].to_string(),
            "stages.sft: needs an estimated 1.52 GiB of memory (weights 531.77 MiB, activations 1.00 GiB), but 1.00 GiB are given by --device-memory\n    help: lower `micro_batch_tokens` (results do not change), set `gradient_checkpointing: true`, or lower `generation_batch_size`; --device-memory SIZE overrides what was measured"
        );
        assert!(check_fits(&plans(), &DeviceMemory::Override(2 << 30)).is_empty());
    }

    #[test]
    fn a_device_is_judged_by_its_own_memory() {
        let device = |free: u64| DeviceMemory::Device {
            name: "CUDA device 0".into(),
            free,
            total: 80 << 30,
        };
        let problems = check_fits(&plans(), &device(1 << 30));
        assert!(
            problems[0]
                .message
                .ends_with("but 1.00 GiB are free on CUDA device 0"),
            "{}",
            problems[0].message
        );
        assert!(check_fits(&plans(), &device(2 << 30)).is_empty());
        assert_eq!(
            memory_line(&device(2 << 30)),
            "memory available on CUDA device 0: 2.00 GiB of 80.00 GiB"
        );
        // Unknown memory refuses nothing, and the plan says so.
        let unknown = DeviceMemory::Unknown {
            name: "wgpu device 0".into(),
            why: "wgpu cannot query it".into(),
        };
        assert!(check_fits(&plans(), &unknown).is_empty());
        assert_eq!(
            memory_line(&unknown),
            "memory available on wgpu device 0: unknown (wgpu cannot query it) and not checked; set it with --device-memory SIZE"
        );
    }

    #[test]
    fn numbers_are_readable() {
        assert_eq!(human_count(134_515_008), "134.5 M");
        assert_eq!(human_count(999_949), "999.9 k");
        assert_eq!(human_count(999_950), "1.0 M");
        assert_eq!(human_count(751_632_384_000), "751.6 G");
        assert_eq!(human_bytes(1023), "1023 B");
        assert_eq!(human_bytes(1_857_573_350), "1.73 GiB");
        assert_eq!(human_bytes(1024 * 1024 - 1), "1.00 MiB");
    }
}
