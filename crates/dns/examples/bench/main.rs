//! The name server beside others with equal data: `cargo xtask bench dns`, or
//! `cargo run --release -p portolan-dns --example bench -- [--peers ROOT] [--seconds N] [ROW ...]`.
//!
//! Runs in a network namespace of its own (needs root), the server on core 0, the load on core 1. What is reported is
//! queries per second of processor time that the server used, system time included, so that a slow load does not matter.

mod data;
mod load;
mod peers;
mod serve;

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    os::unix::process::CommandExt,
    path::PathBuf,
    process::{Child, Command},
    time::{Duration, Instant},
};

use load::Row;

type Fallible<T> = Result<T, Box<dyn std::error::Error>>;

const SERVER: &str = "127.0.0.1:5300";

fn main() -> Fallible<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match arguments.first().map(String::as_str) {
        Some("serve") => serve::portolan(&arguments[1..]),
        Some("echo") => serve::echo(),
        Some("upstream") => serve::upstream(),
        Some("inside") => compare(&Options::read(&arguments[1..])?),
        _ => {
            let me = std::env::current_exe()?;
            let mut command = Command::new("unshare");
            command.args(["--net", "--", "sh", "-c", "ip link set lo up && exec \"$0\" inside \"$@\""]).arg(me);
            Err(command.args(&arguments).exec().into())
        }
    }
}

struct Options {
    peers: Option<PathBuf>,
    seconds: u64,
    rows: Vec<String>,
}

impl Options {
    fn read(arguments: &[String]) -> Fallible<Self> {
        let mut options = Self { peers: None, seconds: 2, rows: Vec::new() };
        let mut rest = arguments.iter();
        while let Some(word) = rest.next() {
            match word.as_str() {
                "--peers" => options.peers = Some(rest.next().ok_or("--peers ROOT")?.into()),
                "--seconds" => options.seconds = rest.next().ok_or("--seconds N")?.parse()?,
                row => options.rows.push(row.to_owned()),
            }
        }
        Ok(options)
    }

    fn wants(&self, row: &str) -> bool {
        self.rows.is_empty() || self.rows.iter().any(|r| r == row)
    }
}

/// A server under test; killed when dropped.
pub struct Running(Child);

impl Running {
    pub fn start(command: &mut Command) -> Fallible<Self> {
        let mut child = Self(pinned(0, command).spawn()?);
        child.wait_for_answer()?;
        Ok(child)
    }

    fn wait_for_answer(&mut self) -> Fallible<()> {
        let begun = Instant::now();
        while !load::answers(SERVER.parse()?) {
            if let Some(status) = self.0.try_wait()? {
                return Err(format!("the server ended: {status}").into());
            }
            if begun.elapsed() > Duration::from_secs(60) {
                return Err("the server does not answer".into());
            }
        }
        Ok(())
    }

    /// Processor time of all threads and children so far.
    fn used(&self) -> Duration {
        tree(self.0.id()).into_iter().map(used_by).sum()
    }

    fn resident_mib(&self) -> f64 {
        let kib = |pid: u32| -> f64 {
            let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
            let line = status.lines().find_map(|l| l.strip_prefix("VmRSS:")).unwrap_or("0");
            line.trim().trim_end_matches(" kB").trim().parse().unwrap_or(0.0)
        };
        tree(self.0.id()).into_iter().map(kib).sum::<f64>() / 1024.0
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        for pid in tree(self.0.id()).into_iter().skip(1) {
            let _ = Command::new("kill").arg(pid.to_string()).status();
        }
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A process and everything below it.
fn tree(pid: u32) -> Vec<u32> {
    let mut all = vec![pid];
    let mut at = 0;
    while at < all.len() {
        let path = format!("/proc/{0}/task/{0}/children", all[at]);
        let children = std::fs::read_to_string(path).unwrap_or_default();
        all.extend(children.split_whitespace().filter_map(|c| c.parse::<u32>().ok()));
        at += 1;
    }
    all
}

/// From the scheduler's own account, in nanoseconds; `utime` has ticks of 10 ms.
fn used_by(pid: u32) -> Duration {
    let threads = std::fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
    let ns = threads.filter_map(|t| {
        let text = std::fs::read_to_string(t.path().join("schedstat")).ok()?;
        text.split_whitespace().next()?.parse::<u64>().ok()
    });
    Duration::from_nanos(ns.sum())
}

pub fn pinned(core: usize, command: &mut Command) -> Command {
    let mut taskset = Command::new("taskset");
    taskset.args(["-c", &core.to_string()]).arg(command.get_program()).args(command.get_args());
    for (key, value) in command.get_envs() {
        if let Some(value) = value {
            taskset.env(key, value);
        }
    }
    taskset.stdout(std::process::Stdio::null());
    taskset
}

fn me(arguments: &[&str]) -> Fallible<Command> {
    let mut command = Command::new(std::env::current_exe()?);
    command.args(arguments);
    Ok(command)
}

/// Every row against every server.
fn compare(options: &Options) -> Fallible<()> {
    let address: SocketAddr = SERVER.parse()?;
    pin_myself(1)?;
    let work = std::env::temp_dir().join(format!("portolan-bench-dns-{}", std::process::id()));
    std::fs::create_dir_all(&work)?;
    let _upstream = Running(pinned(1, &mut me(&["upstream"])?).spawn()?);
    let mut servers: Vec<(&str, Command)> = vec![("echo", me(&["echo"])?), ("portolan", me(&["serve", "small"])?)];
    if let Some(root) = &options.peers {
        servers.extend(peers::all(root, &work)?);
    }
    let rows = Row::all();
    let mut table: BTreeMap<usize, BTreeMap<&str, String>> = BTreeMap::new();
    for (name, command) in &mut servers {
        let mut running = Running::start(command)?;
        // The first questions fill caches, tables and the branch predictor.
        for (at, row) in rows.iter().enumerate().filter(|(_, r)| options.wants(r.name)) {
            if !row.fair(name) {
                continue;
            }
            load::run(row, address, Duration::from_millis(300))?;
            let mut best: f64 = 0.0;
            let mut wrong = 0;
            for _ in 0..3 {
                let before = running.used();
                let done = load::run(row, address, Duration::from_secs(options.seconds))?;
                let used = running.used().saturating_sub(before);
                best = best.max(done.answers as f64 / used.as_secs_f64() / 1e3);
                wrong += done.wrong;
            }
            let note = if wrong > 0 { format!(" ({wrong} wrong)") } else { String::new() };
            eprintln!("{name} {}: {best:.1}{note}", row.name);
            table.entry(at).or_default().insert(name, format!("{best:.1}{note}"));
        }
        if options.wants("latency") && *name != "echo" {
            let (p50, p99) = load::latency(address, 5000, Duration::from_secs(options.seconds))?;
            eprintln!("{name} latency: {} / {} µs", p50.as_micros(), p99.as_micros());
            table.entry(rows.len()).or_default().insert(name, format!("{} / {}", p50.as_micros(), p99.as_micros()));
        }
        running.0.try_wait()?;
    }
    if options.wants("memory") {
        let mut large = vec![("portolan", me(&["serve", "large"])?)];
        if let Some(root) = &options.peers {
            large.extend(peers::large(root, &work)?);
        }
        for (name, command) in &mut large {
            let begun = Instant::now();
            let running = Running::start(command)?;
            let started = begun.elapsed();
            load::run(&Row::all()[0], address, Duration::from_millis(500))?;
            let text = format!("{:.1} MiB, {:.2} s", running.resident_mib(), started.as_secs_f64());
            eprintln!("{name} memory: {text}");
            table.entry(rows.len() + 1).or_default().insert(name, text);
        }
    }
    if options.wants("event") {
        let text = serve::event_to_answer()?;
        table.entry(rows.len() + 2).or_default().insert("portolan", text);
    }
    let titles: Vec<&str> = rows
        .iter()
        .map(|r| r.title)
        .chain([
            "latency at 5,000 queries/s, p50 / p99 µs",
            "10,000 Services x 3: resident, start to first answer",
            "snapshot to changed answer, p50 / p99 µs",
        ])
        .collect();
    let names: Vec<&str> = servers.iter().map(|(n, _)| *n).collect();
    println!("| | {} |\n|---|{}", names.join(" | "), "---|".repeat(names.len()));
    for (at, cells) in table {
        let cells: Vec<_> = names.iter().map(|n| cells.get(n).map_or("", String::as_str)).collect();
        println!("| {} | {} |", titles[at], cells.join(" | "));
    }
    std::fs::remove_dir_all(&work)?;
    Ok(())
}

fn pin_myself(core: usize) -> Fallible<()> {
    let mut command = Command::new("taskset");
    command.args(["-acp", &core.to_string(), &std::process::id().to_string()]).stdout(std::process::Stdio::null());
    if command.status()?.success() { Ok(()) } else { Err("taskset failed".into()) }
}
