//! `cargo xtask bench`: the figures of `docs/benchmarks.md`, each measured in a private world on the release build.

mod dns;

use std::fmt::Write as _;
use std::fs;
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use testkit::kubectl::Kubectl;
use testkit::program::Up;
use testkit::{Lab, http, wait};

/// An address in the static band of the Service range, so that a probe knows it before the Service exists.
const ADDRESS: Ipv4Addr = Ipv4Addr::new(10, 96, 0, 99);

const PATIENCE: Duration = Duration::from_secs(120);

/// Runs the named parts (all when none is named) and prints their sections.
pub fn run(parts: &[String]) -> Result<()> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().context("the workspace")?;
    // A program built elsewhere, such as the one that is shipped, or the one just below.
    if std::env::var_os("PORTOLAN_BIN").is_none() {
        cargo(root, &["build", "--release", "--package", "portolan"])?;
        testkit::program::use_binary(root.join("target").join(host()?).join("release/portolan"));
    }
    let all = [
        ("start", start as fn() -> Result<String>),
        ("apply", apply),
        ("memory", memory),
        ("sync", sync),
        ("dns", dns::run),
    ];
    for part in parts {
        if !all.iter().any(|(name, _)| name == part) {
            bail!("no benchmark {part:?}; there are {}", all.map(|(name, _)| name).join(", "));
        }
    }
    println!("{}", machine());
    for (name, measure) in all {
        if parts.is_empty() || parts.iter().any(|p| p == name) {
            eprintln!("measuring {name}");
            println!("{}", measure()?);
        }
    }
    Ok(())
}

fn cargo(root: &Path, arguments: &[&str]) -> Result<()> {
    let status = Command::new("cargo").args(arguments).current_dir(root).status()?;
    if !status.success() {
        bail!("cargo {} failed", arguments.join(" "));
    }
    Ok(())
}

/// The target triple cargo builds for, which is part of the path.
fn host() -> Result<String> {
    let said = Command::new("rustc").args(["--print", "host-tuple"]).output()?;
    Ok(String::from_utf8(said.stdout)?.trim().to_owned())
}

fn machine() -> String {
    let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
    let cpu = read("/proc/cpuinfo");
    let model =
        cpu.lines().find_map(|l| l.strip_prefix("model name")).map_or("", |m| m.trim_start_matches([' ', '\t', ':']));
    let cores = std::thread::available_parallelism().map_or(0, usize::from);
    format!("Machine: {cores} cores of {model}, kernel {}.", read("/proc/sys/kernel/osrelease").trim())
}

/// Milliseconds: minimum, median, maximum.
fn spread(times: &mut [Duration]) -> String {
    times.sort_unstable();
    let ms = |t: Duration| format!("{:.0}", t.as_secs_f64() * 1e3);
    match times {
        [] => "no runs".to_owned(),
        _ => format!("{} | {} | {}", ms(times[0]), ms(times[times.len() / 2]), ms(times[times.len() - 1])),
    }
}

fn web(name: &str, address: Option<Ipv4Addr>, replicas: usize) -> String {
    let address = address.map(|a| format!("  clusterIP: {a}\n")).unwrap_or_default();
    format!(
        "apiVersion: apps/v1\nkind: Deployment\nmetadata:\n  name: {name}\nspec:\n  replicas: {replicas}\n  \
         selector:\n    matchLabels: {{app: {name}}}\n  template:\n    metadata:\n      labels: {{app: {name}}}\n    spec:\n      \
         containers:\n      - name: web\n        image: portolan.dev/echo\n        ports: [{{containerPort: 80}}]\n        \
         readinessProbe:\n          httpGet: {{path: /, port: 80}}\n---\n\
         apiVersion: v1\nkind: Service\nmetadata:\n  name: {name}\nspec:\n{address}  selector: {{app: {name}}}\n  ports:\n  - port: 80\n"
    )
}

/// Waits for an HTTP answer at the address, from the node. A fresh connection every few milliseconds.
fn first_answer(lab: &Lab, address: Ipv4Addr) -> Result<()> {
    let address = SocketAddr::from((address, 80));
    lab.node().enter(|| {
        wait::until_or(PATIENCE, || {
            // A short connect first: until rules and routes exist, packets to the address may go unanswered.
            TcpStream::connect_timeout(&address, Duration::from_millis(20)).map_err(|e| e.to_string())?;
            match http::get(address, "/hostname", Duration::from_secs(1)) {
                Ok(answer) if answer.status == 200 => Ok(()),
                Ok(answer) => Err(format!("HTTP {}", answer.status)),
                Err(e) => Err(e.to_string()),
            }
        })
        .map_err(anyhow::Error::msg)
    })
}

/// From `exec` of the binary to the first answer of a pod through the Service's ClusterIP.
fn start() -> Result<String> {
    let mut cold = Vec::new();
    let mut again = Vec::new();
    for _ in 0..10 {
        let lab = Lab::new("bench-start")?;
        let file = lab.dir().join("web.yaml");
        fs::write(&file, web("web", Some(ADDRESS), 1))?;
        let arguments = [file.to_str().context("a path in UTF-8")?];
        for times in [&mut cold, &mut again] {
            let begun = Instant::now();
            let up = Up::spawn(&lab, &arguments)?;
            first_answer(&lab, ADDRESS).with_context(|| up.log())?;
            times.push(begun.elapsed());
            up.interrupt()?;
        }
    }
    let mut text = String::from("### Start to the first answer through a Service\n\n");
    writeln!(
        text,
        "`portolan up web.yaml` (one Deployment with a readiness probe, one Service), 10 runs, from starting the process to the first HTTP answer of the pod through the ClusterIP; bar: 1000 ms.\n"
    )?;
    writeln!(text, "| | min ms | median ms | max ms |\n|---|---|---|---|")?;
    writeln!(text, "| empty data directory | {} |", spread(&mut cold))?;
    writeln!(text, "| second start | {} |", spread(&mut again))?;
    Ok(text)
}

/// From starting `kubectl apply` to the first answer through the new Service.
fn apply() -> Result<String> {
    let lab = Lab::new("bench-apply")?;
    let up = Up::start(&lab, &[])?;
    let kubectl = Kubectl::new(&lab)?;
    let mut whole = Vec::new();
    let mut after = Vec::new();
    for i in 0..12u8 {
        let address = Ipv4Addr::new(10, 96, 0, 100 + i);
        let begun = Instant::now();
        kubectl.apply(&web(&format!("web-{i}"), Some(address), 1)).ok();
        let returned = Instant::now();
        first_answer(&lab, address).with_context(|| up.log())?;
        // The first run also reads discovery into kubectl's cache.
        if i > 1 {
            whole.push(begun.elapsed());
            after.push(returned.elapsed());
        }
    }
    up.interrupt()?;
    let mut text = String::from("### `kubectl apply` to the first answer\n\n");
    writeln!(text, "A new Deployment (one pod with a readiness probe, image present) and Service, 10 runs.\n")?;
    writeln!(text, "| | min ms | median ms | max ms |\n|---|---|---|---|")?;
    writeln!(text, "| from starting kubectl | {} |", spread(&mut whole))?;
    writeln!(text, "| from its return | {} |", spread(&mut after))?;
    Ok(text)
}

fn resident(pid: i32) -> Result<f64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status.lines().find_map(|l| l.strip_prefix("VmRSS:")).context("no VmRSS")?;
    let kib: f64 = line.trim().trim_end_matches(" kB").trim().parse()?;
    Ok(kib / 1024.0)
}

fn services(count: usize) -> String {
    let mut text = String::new();
    for i in 0..count {
        let _ = write!(
            text,
            "---\napiVersion: v1\nkind: Service\nmetadata:\n  name: s-{i}\nspec:\n  ports: [{{port: 80}}]\n---\n\
             apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata:\n  name: s-{i}-1\n  labels: {{kubernetes.io/service-name: s-{i}}}\n\
             addressType: IPv4\nports: [{{port: 8080, protocol: TCP}}]\nendpoints:\n- addresses: [10.244.{a}.{b}]\n- addresses: [10.245.{a}.{b}]\n- addresses: [10.246.{a}.{b}]\n",
            a = i / 250,
            b = i % 250 + 1,
        );
    }
    text
}

fn memory() -> Result<String> {
    let lab = Lab::new("bench-memory")?;
    let up = Up::start(&lab, &[])?;
    let pid = up.pid().context("it runs")?;
    wait::pause(Duration::from_secs(10));
    let idle = resident(pid)?;
    up.interrupt()?;
    let file = lab.dir().join("services.yaml");
    let count = 10_000;
    fs::write(&file, services(count))?;
    let begun = Instant::now();
    let up = Up::spawn(&lab, &[file.to_str().context("a path in UTF-8")?])?;
    wait::until_or(Duration::from_secs(600), || {
        if up.log().contains("For kubectl") { Ok(()) } else { Err("not yet shown".to_owned()) }
    })
    .map_err(anyhow::Error::msg)?;
    let applied = begun.elapsed();
    wait::pause(Duration::from_secs(10));
    let loaded = resident(up.pid().context("it runs")?)?;
    up.interrupt()?;
    // The objects are on disk now: a second start shows what they cost without the work of creating them.
    let up = Up::start(&lab, &[])?;
    wait::pause(Duration::from_secs(10));
    let again = resident(up.pid().context("it runs")?)?;
    up.interrupt()?;
    let mut text = String::from("### Memory (resident, the whole program)\n\n| | MiB |\n|---|---|\n");
    writeln!(text, "| idle, 10 s after start (bar: 40) | {idle:.1} |")?;
    writeln!(
        text,
        "| after `up` with {count} Services x 3 endpoints ({:.1} s to apply {} objects one by one) | {loaded:.1} |",
        applied.as_secs_f64(),
        2 * count
    )?;
    writeln!(text, "| the same data, 10 s after a new start | {again:.1} |")?;
    Ok(text)
}

/// The proxy alone: its own benchmark program makes its own network namespace.
fn sync() -> Result<String> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().context("the workspace")?;
    let said = Command::new("cargo")
        .args(["run", "--release", "--quiet", "--package", "portolan-proxy", "--example", "bench"])
        .current_dir(root)
        .output()?;
    if !said.status.success() {
        bail!("the proxy's benchmark failed:\n{}", String::from_utf8_lossy(&said.stderr));
    }
    Ok(format!("### Snapshot to kernel\n\n{}", String::from_utf8_lossy(&said.stdout)))
}
