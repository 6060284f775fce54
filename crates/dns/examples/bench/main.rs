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

/// Rounds in turn over all servers; the median counts, so that what else the machine does meets all of them alike.
const ROUNDS: usize = 5;

/// Where a server listens: each has an address of its own, because all of them are up at once.
fn address_of(name: &str) -> &'static str {
    match name {
        "echo" => "127.0.1.1",
        "portolan" => "127.0.1.2",
        "knot" => "127.0.1.3",
        "nsd" => "127.0.1.4",
        "unbound" => "127.0.1.5",
        _ => "127.0.1.6",
    }
}

fn socket_of(name: &str) -> SocketAddr {
    SocketAddr::new(address_of(name).parse().unwrap_or(std::net::Ipv4Addr::LOCALHOST.into()), 5300)
}

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
    pub fn start(name: &str, command: &mut Command) -> Fallible<Self> {
        let mut child = Self(pinned(0, command).spawn()?);
        child.wait_for_answer(socket_of(name))?;
        Ok(child)
    }

    fn wait_for_answer(&mut self, address: SocketAddr) -> Fallible<()> {
        let begun = Instant::now();
        while !load::answers(address) {
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
    let mut running = Vec::new();
    for (name, command) in &mut servers {
        running.push((*name, Running::start(name, command)?));
    }
    for (at, row) in rows.iter().enumerate().filter(|(_, r)| options.wants(r.name)) {
        let mut figures: BTreeMap<&str, Vec<f64>> = BTreeMap::new();
        let mut wrong: BTreeMap<&str, u64> = BTreeMap::new();
        for round in 0..=ROUNDS {
            for (name, server) in running.iter().filter(|(name, _)| row.fair(name)) {
                // The first round fills caches, tables and the branch predictor.
                let length = Duration::from_millis(if round == 0 { 300 } else { options.seconds * 1000 });
                let before = server.used();
                let done = match load::run(row, socket_of(name), length) {
                    Ok(done) => done,
                    Err(error) => {
                        eprintln!("{name} {}: {error}", row.name);
                        continue;
                    }
                };
                let used = server.used().saturating_sub(before);
                if round > 0 {
                    figures.entry(name).or_default().push(done.answers as f64 / used.as_secs_f64() / 1e3);
                    *wrong.entry(name).or_default() += done.wrong;
                }
            }
        }
        for (name, mut all) in figures {
            all.sort_by(f64::total_cmp);
            let note = match wrong.get(name) {
                Some(n) if *n > 0 && name != "echo" => format!(" ({n} wrong)"),
                _ => String::new(),
            };
            eprintln!("{name} {}: {:.1} of {all:.1?}{note}", row.name, all[all.len() / 2]);
            table.entry(at).or_default().insert(name, format!("{:.0}{note}", all[all.len() / 2]));
        }
    }
    if options.wants("latency") {
        for (name, _) in running.iter().filter(|(name, _)| *name != "echo") {
            let (p50, p99) = load::latency(socket_of(name), 5000, Duration::from_secs(2 * options.seconds))?;
            table.entry(rows.len()).or_default().insert(name, format!("{} / {}", p50.as_micros(), p99.as_micros()));
        }
    }
    drop(running);
    if options.wants("memory") {
        let mut large = vec![("portolan", me(&["serve", "large"])?)];
        if let Some(root) = &options.peers {
            large.extend(peers::large(root, &work)?);
        }
        for (name, command) in &mut large {
            let begun = Instant::now();
            let running = Running::start(name, command)?;
            let started = begun.elapsed();
            load::run(&Row::all()[0], socket_of(name), Duration::from_millis(500))?;
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
