//! `portolan proxy …` and `portolan ipvsadm`: what the kernel's load balancer holds right now.

use std::net::IpAddr;

use anyhow::{Context, Result, bail};
use clap::{Args, Subcommand};
use comfy_table::{Table, presets::NOTHING};
use proxy::table::{Live, Row};

use crate::app;
use crate::say::say;

#[derive(Args, Debug)]
pub struct Proxy {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand, Debug)]
enum Command {
    /// Every address that is served, its endpoints and their connections, as the kernel has them now
    Table(Output),
    /// Remove the load balancer's rules from the kernel; a running cluster puts its own back
    Cleanup,
}

#[derive(Args, Debug)]
struct Output {
    /// `json` for machines
    #[arg(short, long, value_name = "FORMAT", value_parser = ["table", "json"], default_value = "table")]
    output: String,
}

#[derive(Args, Debug)]
pub struct Ipvsadm {
    /// List the virtual servers
    #[arg(short = 'L', long, visible_short_alias = 'l', required = true)]
    list: bool,
    /// Print numbers instead of names (always so)
    #[arg(short, long)]
    numeric: bool,
}

pub fn run(options: &Proxy) -> Result<i32> {
    match &options.command {
        Command::Table(output) => {
            let rows = live("portolan proxy table")?.rows();
            if output.output == "json" {
                say!("{}", serde_json::to_string_pretty(&rows)?);
            } else {
                say!("{}", table(&rows));
            }
        }
        Command::Cleanup => {
            app::require_root("portolan proxy cleanup")?;
            proxy::cleanup().context("removing the kernel's tables")?;
        }
    }
    Ok(0)
}

pub fn ipvsadm(options: &Ipvsadm) -> Result<i32> {
    if !options.list {
        bail!("virtual servers follow from Services: they can be listed (-L -n), not changed");
    }
    let mut node: Vec<IpAddr> = nix::ifaddrs::getifaddrs()
        .context("listing the node's addresses")?
        .filter_map(|i| {
            let address = i.address?;
            let v4 = address.as_sockaddr_in().map(|a| IpAddr::from(a.ip()));
            v4.or_else(|| address.as_sockaddr_in6().map(|a| IpAddr::from(a.ip())))
        })
        .collect();
    node.sort();
    node.dedup();
    print!("{}", live("portolan ipvsadm")?.ipvsadm(&node));
    Ok(0)
}

fn live(command: &str) -> Result<Live> {
    app::require_root(command)?;
    Live::read().context("asking the kernel")
}

fn table(rows: &[Row]) -> String {
    let mut table = Table::new();
    table.load_preset(NOTHING).set_header(["SERVICE", "FRONTEND", "SCHEDULER", "ENDPOINT", "ACTIVE", "INACTIVE"]);
    for row in rows {
        let frontend = match row.address {
            Some(ip) => std::net::SocketAddr::from((ip, row.port)).to_string(),
            None if row.family == "IPv6" => format!("[*]:{}", row.port),
            None => format!("*:{}", row.port),
        };
        let head = [
            if row.service.is_empty() { "-".to_owned() } else { row.service.clone() },
            format!("{frontend}/{}", row.protocol),
            row.persistent.map_or(row.scheduler.to_owned(), |s| format!("{}, sticky {s}s", row.scheduler)),
        ];
        let mut lines: Vec<[String; 3]> = row
            .endpoints
            .iter()
            .map(|e| {
                let note = if e.outside_only { " (from outside)" } else { "" };
                let c = e.connections;
                [format!("{}{note}", e.address), c.active.to_string(), c.inactive.to_string()]
            })
            .collect();
        if lines.is_empty() {
            lines.push(["<none>".into(), String::new(), String::new()]);
        }
        for (i, line) in lines.into_iter().enumerate() {
            let head = if i == 0 { head.clone() } else { Default::default() };
            table.add_row(head.into_iter().chain(line));
        }
    }
    table.trim_fmt()
}
