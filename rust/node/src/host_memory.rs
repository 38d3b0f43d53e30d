//! How much memory the host has for this process, and how much of it could be had now.
//!
//! The machine's, and in a container no more than its limit leaves: the kernel kills who goes beyond, however
//! much the machine has. Swap never counts.

use std::{
    fs,
    path::{Path, PathBuf},
};

use sysinfo::{MemoryRefreshKind, RefreshKind, System};

/// Bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HostMemory {
    /// All of it.
    pub total: u64,
    /// What is free, or would be given up by the file cache.
    pub available: u64,
}

/// As it is now.
pub fn read() -> HostMemory {
    let system = System::new_with_specifics(
        RefreshKind::nothing().with_memory(MemoryRefreshKind::nothing().with_ram()),
    );
    let machine = HostMemory { total: system.total_memory(), available: system.available_memory() };
    if cfg!(target_os = "linux") {
        let membership = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
        machine.within(Path::new("/sys/fs/cgroup"), &membership)
    } else {
        machine
    }
}

/// What a process takes that is no file: memory that nobody else gets while it lives. `None`: the system does not
/// say.
pub fn private_bytes(pid: u32) -> Option<u64> {
    private(&fs::read_to_string(format!("/proc/{pid}/status")).ok()?)
}

fn private(status: &str) -> Option<u64> {
    let kib = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
        line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()
    };
    Some((kib("RssAnon")? + kib("RssShmem")?) << 10)
}

/// Names of what a control group says about memory.
struct Files {
    /// A group may have so much, or is held back from so much on; the first is the hard one.
    limits: &'static [&'static str],
    usage: &'static str,
    /// Of `memory.stat`: the file cache, and what of it cannot be given up, since it lies in memory alone.
    cache: &'static str,
    shared: &'static str,
}

const V2: Files =
    Files { limits: &["memory.max", "memory.high"], usage: "memory.current", cache: "file", shared: "shmem" };
const V1: Files = Files {
    limits: &["memory.limit_in_bytes"],
    usage: "memory.usage_in_bytes",
    cache: "total_cache",
    shared: "total_shmem",
};

impl HostMemory {
    /// What the control groups below `root` leave of it to a process whose `/proc/self/cgroup` is `membership`.
    fn within(mut self, root: &Path, membership: &str) -> Self {
        let path_of = |controller: Option<&str>| {
            membership.lines().find_map(|line| {
                let mut fields = line.splitn(3, ':').skip(1);
                let (controllers, path) = (fields.next()?, fields.next()?);
                let wanted = match controller {
                    Some(name) => controllers.split(',').any(|it| it == name),
                    None => controllers.is_empty(),
                };
                wanted.then_some(path)
            })
        };
        let second = path_of(None).unwrap_or_default();
        let first = path_of(Some("memory")).unwrap_or_default();
        // Where both versions are mounted, each has a folder of its own.
        for (base, path, files) in [
            (root.to_path_buf(), second, &V2),
            (root.join("unified"), second, &V2),
            (root.join("memory"), first, &V1),
        ] {
            for group in groups(&base, path) {
                self = self.within_group(&group, files);
            }
        }
        self
    }

    fn within_group(self, group: &Path, files: &Files) -> Self {
        let number = |name: &str| fs::read_to_string(group.join(name)).ok()?.trim().parse::<u64>().ok();
        let limits: Vec<Option<u64>> = files.limits.iter().map(|name| number(name)).collect();
        let Some(lowest) = limits.iter().flatten().min() else { return self };
        let statistics = fs::read_to_string(group.join("memory.stat")).unwrap_or_default();
        let statistic = |name: &str| {
            let mut lines = statistics.lines().filter_map(|line| line.split_once(' '));
            lines.find(|(key, _)| *key == name).and_then(|(_, value)| value.trim().parse::<u64>().ok())
        };
        // Model files in the cache are no use of memory: they go when somebody needs it.
        let cache = statistic(files.cache).unwrap_or(0).saturating_sub(statistic(files.shared).unwrap_or(0));
        let used = number(files.usage).unwrap_or(0).saturating_sub(cache);
        let total = limits[0].unwrap_or(u64::MAX).min(self.total);
        Self { total, available: lowest.saturating_sub(used).min(self.available).min(total) }
    }
}

/// A control group and all above it. A container may see its own group as the topmost one, and be told the
/// path that the host knows; then what is there of that path counts.
fn groups(base: &Path, path: &str) -> Vec<PathBuf> {
    let mut groups = vec![base.to_path_buf()];
    let path = path.trim_matches('/');
    if !path.split('/').any(|part| part == "..") {
        let mut group = base.to_path_buf();
        for part in path.split('/').filter(|part| !part.is_empty()) {
            group.push(part);
            groups.push(group.clone());
        }
    }
    groups
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;
    const MACHINE: HostMemory = HostMemory { total: 1000 * MIB, available: 900 * MIB };

    fn tree(files: &[(&str, &str)]) -> tempfile::TempDir {
        let root = tempfile::tempdir().unwrap();
        for (path, text) in files {
            let path = root.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, format!("{text}\n")).unwrap();
        }
        root
    }

    /// In MiB.
    fn seen(files: &[(&str, &str)], membership: &str) -> (u64, u64) {
        let memory = MACHINE.within(tree(files).path(), membership);
        (memory.total / MIB, memory.available / MIB)
    }

    #[test]
    fn no_limit_leaves_the_machine() {
        assert_eq!(seen(&[], ""), (1000, 900));
        assert_eq!(seen(&[("memory.max", "max"), ("memory.high", "max")], "0::/"), (1000, 900));
        assert_eq!(
            seen(&[("memory/memory.limit_in_bytes", "9223372036854771712")], "4:memory:/"),
            (1000, 900)
        );
        // A limit above what the machine has is none.
        assert_eq!(seen(&[("memory.max", "2097152000")], "0::/"), (1000, 900));
    }

    #[test]
    fn a_limit_counts_less_what_is_in_use_and_cannot_be_given_up() {
        let limit = ("memory.max", "536870912"); // 512 MiB
        let usage = ("memory.current", "314572800"); // 300 MiB
        assert_eq!(seen(&[limit, usage], "0::/"), (512, 212));
        // 250 MiB of it are files, 50 MiB of these lie in memory alone.
        let statistics = ("memory.stat", "anon 52428800\nfile 262144000\nshmem 52428800\nfile_mapped 1");
        assert_eq!(seen(&[limit, usage, statistics], "0::/"), (512, 412));
        let high = ("memory.high", "419430400"); // 400 MiB
        assert_eq!(seen(&[limit, high, usage, statistics], "0::/"), (512, 300));
        assert_eq!(seen(&[("memory.max", "max"), high, usage], "0::/"), (1000, 100));
        // Over the limit, as after it was lowered: nothing is left.
        assert_eq!(seen(&[("memory.max", "1048576"), usage], "0::/"), (1, 0));
        assert_eq!(seen(&[limit, ("memory.stat", "file 262144000")], "0::/"), (512, 512));
    }

    #[test]
    fn the_narrowest_of_a_group_and_those_above_it_counts() {
        let files = [
            ("memory.max", "943718400"), // 900 MiB
            ("a/memory.max", "104857600"),
            ("a/memory.current", "73400320"),    // 30 MiB left
            ("a/b/memory.max", "209715200"),     // 200 MiB
            ("a/b/memory.current", "188743680"), // 20 MiB left
            ("other/memory.max", "1048576"),
        ];
        assert_eq!(seen(&files, "0::/a/b"), (100, 20));
        assert_eq!(seen(&files, "0::/a"), (100, 30));
        assert_eq!(seen(&files, "0::/"), (900, 900));
        // A path that only the host knows: the container's own group is the topmost one.
        assert_eq!(seen(&files, "0::/docker/0123456789"), (900, 900));
        assert_eq!(seen(&files, "0::/../../other"), (900, 900));
    }

    #[test]
    fn the_first_version_counts_too_and_both_where_both_are() {
        let first = [
            ("memory/x/memory.limit_in_bytes", "209715200"), // 200 MiB
            ("memory/x/memory.usage_in_bytes", "157286400"), // 150 MiB
            ("memory/x/memory.stat", "cache 1\ntotal_cache 125829120\ntotal_shmem 20971520"), // 100 MiB can go
        ];
        let membership = "5:cpu,cpuacct:/y\n4:memory:/x\n0::/";
        assert_eq!(seen(&first, membership), (200, 150));
        let both = [&first[..], &[("unified/memory.max", "104857600")]].concat();
        assert_eq!(seen(&both, membership), (100, 100));
    }

    #[test]
    fn what_a_process_takes_is_what_is_no_file() {
        let status =
            "Name:\tx\nVmRSS:\t  900 kB\nRssAnon:\t  100 kB\nRssFile:\t  795 kB\nRssShmem:\t    5 kB\n";
        assert_eq!(private(status), Some(105 << 10));
        assert_eq!(private("Name:\tkthreadd\n"), None);
        #[cfg(target_os = "linux")]
        assert!(private_bytes(std::process::id()).unwrap() > 100 << 10);
    }

    #[test]
    fn this_machine_has_memory() {
        let memory = read();
        assert!(0 < memory.available && memory.available <= memory.total, "{memory:?}");
    }
}
