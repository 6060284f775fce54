//! The proxy in a real kernel with real traffic, in network namespaces of its own. Runs as root, or without privilege
//! in a user namespace; never touches the host's network. `cargo test -p portolan-proxy --test netns [FILTER]`.

extern crate portolan_proxy as proxy;

#[path = "netns/adopt.rs"]
mod adopt;
#[path = "support/cluster.rs"]
mod cluster;
#[path = "support/lab.rs"]
mod lab;
#[path = "netns/listen.rs"]
mod listen;
#[path = "netns/traffic.rs"]
mod traffic;

use std::{panic, process::ExitCode};

use nix::{
    sched::{CloneFlags, unshare},
    unistd::{Uid, getgid, getuid},
};

const TESTS: &[(&str, fn())] = &[
    ("seed_022_cluster_ip_reaches_every_pod", traffic::seed_022_cluster_ip_reaches_every_pod),
    ("seed_065_choice_is_random_and_even", traffic::seed_065_choice_is_random_and_even),
    ("seed_042_round_robin_takes_turns", traffic::seed_042_round_robin_takes_turns),
    ("seed_035_endpoint_sees_its_own_address", traffic::seed_035_endpoint_sees_its_own_address),
    ("seed_172_each_port_leads_to_its_target", traffic::seed_172_each_port_leads_to_its_target),
    ("seed_039_two_endpoints_share_the_connections", traffic::seed_039_two_endpoints_share_the_connections),
    ("node_address_as_endpoint", traffic::node_address_as_endpoint),
    ("established_tcp_goes_on", traffic::established_tcp_goes_on),
    ("udp_reaches_every_pod", traffic::udp_reaches_every_pod),
    ("ipv6_works_like_ipv4", traffic::ipv6_works_like_ipv4),
    ("pod_reaches_itself", traffic::pod_reaches_itself),
    ("refused_at_once", traffic::refused_at_once),
    ("seed_052_node_port_from_inside_and_outside", traffic::seed_052_node_port_from_inside_and_outside),
    ("seed_061_load_balancer_address", traffic::seed_061_load_balancer_address),
    ("external_local_keeps_the_client", traffic::external_local_keeps_the_client),
    ("source_ranges_admit_only_theirs", traffic::source_ranges_admit_only_theirs),
    ("seed_067_sticky_until_the_endpoint_goes", traffic::seed_067_sticky_until_the_endpoint_goes),
    ("stale_udp_flow_ends", traffic::stale_udp_flow_ends),
    ("stale_udp_flow_of_a_node_port_ends", traffic::stale_udp_flow_of_a_node_port_ends),
    ("seed_009_internal_load_balancer", traffic::seed_039_two_endpoints_share_the_connections),
    ("seed_021_cluster_ip_is_for_the_inside", traffic::seed_021_cluster_ip_is_for_the_inside),
    ("seed_064_load_balancer_address_from_inside", traffic::seed_064_load_balancer_address_from_inside),
    ("pods_leave_with_the_node_s_address", traffic::pods_leave_with_the_node_s_address),
    ("marks_of_others_survive", traffic::marks_of_others_survive),
    ("health_check_node_port_counts_endpoints_here", listen::health_check_node_port_counts_endpoints_here),
    ("health_check_follows_node_port_addresses", listen::health_check_follows_node_port_addresses),
    ("node_port_on_the_loopback", listen::node_port_on_the_loopback),
    ("restart_adopts_and_writes_nothing", adopt::restart_adopts_and_writes_nothing),
    ("incremental_equals_fresh", adopt::incremental_equals_fresh),
    ("nft_lists_and_reloads", adopt::nft_lists_and_reloads),
    ("seed_043_connections_are_counted", adopt::seed_043_connections_are_counted),
    ("forwarding_is_opened_and_closed_again", adopt::forwarding_is_opened_and_closed_again),
    ("foreign_changes_are_repaired", adopt::foreign_changes_are_repaired),
    ("running_proxy_repairs_and_cleans_up", adopt::running_proxy_repairs_and_cleans_up),
];

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let filter: Vec<&String> = args.iter().filter(|a| !a.starts_with('-')).collect();
    let chosen = TESTS.iter().filter(|(name, _)| filter.is_empty() || filter.iter().any(|f| name.contains(f.as_str())));
    if args.iter().any(|a| a == "--list") {
        chosen.for_each(|(name, _)| println!("{name}: test"));
        return ExitCode::SUCCESS;
    }
    if let Err(e) = enter_namespaces() {
        eprintln!("cannot make namespaces ({e}): run as root, or allow unprivileged user namespaces");
        return ExitCode::FAILURE;
    }
    let mut failed = Vec::new();
    for (name, test) in chosen {
        let started = std::time::Instant::now();
        let ok = panic::catch_unwind(test).is_ok();
        println!("test {name} ... {} ({:.2?})", if ok { "ok" } else { "FAILED" }, started.elapsed());
        if !ok {
            failed.push(*name);
        }
    }
    if failed.is_empty() {
        return ExitCode::SUCCESS;
    }
    println!("failed: {}", failed.join(", "));
    ExitCode::FAILURE
}

/// Before any thread exists: a user namespace when not root, so that everything after has its capabilities.
fn enter_namespaces() -> std::io::Result<()> {
    if Uid::effective().is_root() {
        unshare(CloneFlags::CLONE_NEWNET | CloneFlags::CLONE_NEWNS)?;
        return Ok(());
    }
    let (uid, gid) = (getuid(), getgid());
    unshare(CloneFlags::CLONE_NEWUSER | CloneFlags::CLONE_NEWNET | CloneFlags::CLONE_NEWNS)?;
    std::fs::write("/proc/self/setgroups", "deny")?;
    std::fs::write("/proc/self/uid_map", format!("0 {uid} 1"))?;
    std::fs::write("/proc/self/gid_map", format!("0 {gid} 1"))
}
