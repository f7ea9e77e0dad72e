//! On what was measured, in a few words.

use std::fs;

/// Processors, memory, kernel, Slurm, load before the run.
pub fn describe() -> String {
    let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
    let field = |text: &str, name: &str| {
        let line = text.lines().find(|line| line.starts_with(name)).unwrap_or_default();
        line.split_once(':').map_or("?", |(_, value)| value.trim()).to_owned()
    };
    let cpus = std::thread::available_parallelism().map_or(0, std::num::NonZero::get);
    let model = field(&read("/proc/cpuinfo"), "model name");
    let memory: u64 = field(&read("/proc/meminfo"), "MemTotal").trim_end_matches(" kB").parse().unwrap_or(0);
    let kernel = read("/proc/sys/kernel/osrelease");
    let system = read("/etc/os-release");
    let system = system.lines().find_map(|line| line.strip_prefix("PRETTY_NAME=")).unwrap_or("?").trim_matches('"');
    let load = read("/proc/loadavg");
    let slurm = std::process::Command::new("slurmd").arg("-V").output();
    let slurm = slurm.map_or("no Slurm".to_owned(), |out| String::from_utf8_lossy(&out.stdout).trim().to_owned());
    format!(
        "{cpus} × {model}, {:.0} GB, Linux {}, {system}, {slurm}; load before: {}",
        memory as f64 / 1e6,
        kernel.trim(),
        load.split(' ').next().unwrap_or("?")
    )
}
