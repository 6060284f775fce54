//! Other name servers, from Debian's packages unpacked under a root, with the same names.

use std::{fmt::Write, fs, path::Path, process::Command};

use crate::{Fallible, address_of, data, serve::UPSTREAM};

type Named = (&'static str, Command);

pub fn all(root: &Path, work: &Path) -> Fallible<Vec<Named>> {
    let work = work.join("small");
    of(root, &work, data::SMALL)
}

pub fn large(root: &Path, work: &Path) -> Fallible<Vec<Named>> {
    let work = work.join("large");
    of(root, &work, data::LARGE)
}

fn of(root: &Path, work: &Path, services: usize) -> Fallible<Vec<Named>> {
    fs::create_dir_all(work.join("knot"))?;
    let dir = work.display();
    let zone = format!("{dir}/cluster.local.zone");
    fs::write(&zone, data::zone_file(services))?;

    let [at_knot, at_nsd, at_unbound, at_dnsmasq] = ["knot", "nsd", "unbound", "dnsmasq"].map(address_of);
    let knot = format!(
        "server:\n    rundir: {dir}\n    user: root\n    listen: {at_knot}@5300\n    udp-workers: 1\n    tcp-workers: 1\n    background-workers: 1\n\
         database:\n    storage: {dir}/knot\nzone:\n  - domain: cluster.local\n    file: {zone}\n    zonefile-sync: -1\n"
    );
    let nsd = format!(
        "server:\n  ip-address: {at_nsd}@5300\n  server-count: 1\n  username: root\n  chroot: \"\"\n  pidfile: {dir}/nsd.pid\n\
         \x20 zonesdir: {dir}\n  xfrdir: {dir}\n  xfrdfile: {dir}/xfrd.state\n  zonelistfile: {dir}/zone.list\n  logfile: {dir}/nsd.log\n  rrl-ratelimit: 0\n  database: \"\"\n\
         \x20 round-robin: yes\n  tcp-timeout: 60\nremote-control:\n  control-enable: no\nzone:\n  name: cluster.local\n  zonefile: {zone}\n"
    );
    let mut unbound = format!(
        "server:\n  interface: {at_unbound}@5300\n  num-threads: 1\n  username: \"\"\n  chroot: \"\"\n  directory: {dir}\n  pidfile: {dir}/unbound.pid\n\
         \x20 use-syslog: no\n  do-not-query-localhost: no\n  module-config: iterator\n  rrset-roundrobin: yes\n  minimal-responses: yes\n\
         \x20 incoming-num-tcp: 100\n  so-rcvbuf: 0\n  local-zone: cluster.local. static\n\
         \x20 local-data: \"cluster.local. 30 IN SOA ns.dns.cluster.local. hostmaster.cluster.local. 1 7200 1800 86400 5\"\n"
    );
    let mut dnsmasq = format!(
        "port=5300\nlisten-address={at_dnsmasq}\nbind-interfaces\nno-resolv\nno-hosts\nno-daemon\nuser=root\nlocal=/cluster.local/\nlocal-ttl=30\ncache-size=10000\n",
    );
    let mut hosts = String::new();
    for (name, kind, value) in data::records(services) {
        writeln!(unbound, "  local-data: \"{name} 30 IN {kind} {value}\"")?;
        let name = name.trim_end_matches('.');
        if kind == "A" {
            writeln!(hosts, "{value} {name}")?;
        } else {
            let target = value.split(' ').nth(3).unwrap_or_default().trim_end_matches('.');
            writeln!(dnsmasq, "srv-host={name},{target},80,0,100")?;
        }
    }
    let (address, port) = UPSTREAM.split_once(':').ok_or("an address with a port")?;
    write!(
        unbound,
        "forward-zone:\n  name: \".\"\n  forward-addr: {address}@{port}\nremote-control:\n  control-enable: no\n"
    )?;
    fs::write(work.join("hosts"), hosts)?;
    writeln!(dnsmasq, "addn-hosts={dir}/hosts\nserver={address}#{port}\npid-file={dir}/dnsmasq.pid")?;

    let mut servers = Vec::new();
    for (name, program, text, arguments) in [
        ("knot", "knotd", knot, ["-c", "FILE", ""]),
        ("nsd", "nsd", nsd, ["-d", "-c", "FILE"]),
        ("unbound", "unbound", unbound, ["-d", "-c", "FILE"]),
        ("dnsmasq", "dnsmasq", dnsmasq, ["-C", "FILE", ""]),
    ] {
        let file = work.join(format!("{name}.conf"));
        fs::write(&file, text)?;
        let mut command = Command::new(root.join("usr/sbin").join(program));
        for argument in arguments.iter().filter(|a| !a.is_empty()) {
            if *argument == "FILE" {
                command.arg(&file)
            } else {
                command.arg(argument)
            };
        }
        let libraries = ["usr/lib", "usr/lib/x86_64-linux-gnu", "usr/lib/aarch64-linux-gnu"];
        let libraries: Vec<_> = libraries.iter().map(|l| root.join(l).display().to_string()).collect();
        command.env("LD_LIBRARY_PATH", libraries.join(":"));
        servers.push((name, command));
    }
    Ok(servers)
}
