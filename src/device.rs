//! The memory of the device of a run.

use std::fs;
use std::path::Path;

/// The memory available to the stages of a run.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum DeviceMemory {
    /// The host's memory: for CPUs, and GPUs that share it.
    #[default]
    Host,
    /// The device's own memory.
    Device {
        /// Its name for the user, e.g. `CUDA device 0`.
        name: String,
        /// Free bytes.
        free: u64,
        /// All bytes.
        total: u64,
    },
    /// Bytes given by the user.
    Override(u64),
    /// The device's own memory, of unknown size.
    Unknown {
        /// Its name for the user.
        name: String,
        /// Why it could not be measured.
        why: String,
    },
}

impl DeviceMemory {
    /// Bytes available to a run; `None` if unknown. The host's memory is measured at the call.
    pub fn available(&self) -> Option<u64> {
        match self {
            Self::Host => host_memory(),
            Self::Device { free, .. } => Some(*free),
            Self::Override(bytes) => Some(*bytes),
            Self::Unknown { .. } => None,
        }
    }
}

/// Bytes that this process can still allocate: the minimum of the machine's available memory and what its control groups and its limit on
/// address space (`ulimit -v`) allow. `None` if none of them can be read.
pub fn host_memory() -> Option<u64> {
    let machine = fs::read_to_string("/proc/meminfo")
        .ok()
        .and_then(|text| parse_meminfo(&text));
    let group = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    let group = group
        .lines()
        .find_map(|line| line.strip_prefix("0::/"))
        .unwrap_or_default();
    let root = Path::new("/sys/fs/cgroup");
    // Any ancestor of the process's own group may have a limit.
    let unified = root.join(group);
    let unified = unified
        .ancestors()
        .take_while(|folder| folder.starts_with(root))
        .filter_map(|folder| {
            group_leaves(
                &folder.join("memory.max"),
                &folder.join("memory.current"),
                &folder.join("memory.stat"),
            )
        });
    let legacy = root.join("memory");
    let legacy = group_leaves(
        &legacy.join("memory.limit_in_bytes"),
        &legacy.join("memory.usage_in_bytes"),
        &legacy.join("memory.stat"),
    );
    let own = fs::read_to_string("/proc/self/limits").ok();
    let own = own.zip(fs::read_to_string("/proc/self/status").ok());
    let own = own.and_then(|(limits, status)| limit_leaves(&limits, &status));
    machine
        .into_iter()
        .chain(unified)
        .chain(legacy)
        .chain(own)
        .min()
}

/// What is left of the limit on address space; `None` without one.
fn limit_leaves(limits: &str, status: &str) -> Option<u64> {
    let line = (limits.lines()).find_map(|line| line.strip_prefix("Max address space"))?;
    let limit: u64 = line.split_whitespace().next()?.parse().ok()?;
    let line = (status.lines()).find_map(|line| line.strip_prefix("VmSize:"))?;
    let used: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(limit.saturating_sub(used * 1024))
}

/// Remaining bytes of a control group's limit; file cache counts as free.
fn group_leaves(limit: &Path, usage: &Path, stat: &Path) -> Option<u64> {
    let number = |path: &Path| fs::read_to_string(path).ok()?.trim().parse::<u64>().ok();
    let limit = number(limit)?;
    let reclaimable = fs::read_to_string(stat)
        .ok()
        .and_then(|text| parse_inactive_file(&text))
        .unwrap_or(0);
    let used = number(usage)?.saturating_sub(reclaimable);
    Some(limit.saturating_sub(used))
}

fn parse_meminfo(text: &str) -> Option<u64> {
    let line = text
        .lines()
        .find_map(|line| line.strip_prefix("MemAvailable:"))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kib * 1024)
}

fn parse_inactive_file(text: &str) -> Option<u64> {
    text.lines()
        .find_map(|line| line.strip_prefix("inactive_file "))?
        .trim()
        .parse()
        .ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_files_are_parsed() {
        let meminfo = "MemTotal:       32768 kB\nMemFree:  1 kB\nMemAvailable:   2048 kB\n";
        assert_eq!(parse_meminfo(meminfo), Some(2_097_152));
        assert_eq!(parse_inactive_file("anon 5\ninactive_file 77\n"), Some(77));
    }

    #[test]
    fn a_limit_on_address_space_leaves_limit_minus_use() {
        let status = "VmPeak:\t 9000 kB\nVmSize:\t    2000 kB\nVmRSS:\t 1 kB\n";
        let limits = |soft: &str| {
            format!(
                "Limit  Soft Limit  Hard Limit  Units\nMax address space   {soft}   unlimited   bytes\n"
            )
        };
        assert_eq!(limit_leaves(&limits("4096000"), status), Some(2_048_000));
        assert_eq!(limit_leaves(&limits("1"), status), Some(0));
        assert_eq!(limit_leaves(&limits("unlimited"), status), None);
    }

    #[test]
    fn control_groups_leave_limit_minus_use() {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str, text: &str| {
            let path = folder.path().join(name);
            fs::write(&path, text).unwrap();
            path
        };
        let usage = path("current", "600\n");
        let stat = path("stat", "inactive_file 100\n");
        assert_eq!(
            group_leaves(&path("max", "1000\n"), &usage, &stat),
            Some(500)
        );
        assert_eq!(group_leaves(&path("max", "max\n"), &usage, &stat), None);
    }
}
