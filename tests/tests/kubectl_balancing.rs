//! How connections are balanced and what shows it: rows 41-43 and 47, nodePorts on the loopback, and the pods' way out.

use std::io::Read;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::time::Duration;

use portolan_tests::{ECHO, SOON, answers, cluster_ip, deployment, world};
use testkit::lab::{NODE_ADDRESS, OUTSIDE_ADDRESS};
use testkit::program::portolan;
use testkit::until;

/// The lines of one virtual server in what `portolan ipvsadm -L -n` prints, without the spaces at their ends.
fn virtual_server(head: &str) -> Result<Vec<String>, String> {
    let printed = portolan(&world().lab, "ipvsadm -L -n").map_err(|e| format!("{e:#}"))?.result()?;
    let mut lines = printed.lines().map(|l| l.trim_end().to_owned());
    let headers = [
        "IP Virtual Server version 1.2.1 (size=4096)",
        "Prot LocalAddress:Port Scheduler Flags",
        "  -> RemoteAddress:Port           Forward Weight ActiveConn InActConn",
    ];
    assert!(headers.iter().all(|h| lines.next().as_deref() == Some(h)), "seed_041: {printed}");
    let found = lines.find(|l| l == head).ok_or_else(|| format!("no {head:?} in\n{printed}"))?;
    Ok(std::iter::once(found).chain(lines.take_while(|l| l.starts_with("  -> "))).collect())
}

#[test]
fn seed_041_042_043_ipvsadm_shows_turns_and_connections() {
    let world = world();
    let kubectl = world.namespace("row-41");
    kubectl.apply(&deployment("turns", ECHO, 2, 80)).ok();
    kubectl.run("expose deploy turns --port=80").ok();
    kubectl.run("annotate svc turns portolan.dev/balancing=round-robin").ok();
    let endpoints = world.endpoints(&kubectl, "turns", 2);
    let address = cluster_ip(&kubectl, "turns");
    let lines = |counts: &dyn Fn(usize) -> (u32, u32)| {
        let mut out = vec![format!("TCP  {address}:80 rr")];
        out.extend(endpoints.iter().enumerate().map(|(i, ip)| {
            let (active, inactive) = counts(i);
            format!("  -> {:<28} Masq    1      {active:<10} {inactive}", format!("{ip}:80"))
        }));
        out
    };
    let head = format!("TCP  {address}:80 rr");
    let idle = lines(&|_| (0, 0));
    until(SOON, "seed_041: the virtual server", || match virtual_server(&head)? {
        now if now == idle => Ok(()),
        now => Err(now.join("\n")),
    });

    let socket: SocketAddr = format!("{address}:80").parse().expect("an address");
    let held: Vec<TcpStream> = world
        .node()
        .enter(|| Ok((0..4).map(|_| TcpStream::connect(socket)).collect::<Result<_, _>>()?))
        .expect("connections");
    assert_eq!(virtual_server(&head).expect("printed"), lines(&|_| (2, 0)), "seed_042, seed_043: held open");
    drop(held);
    let closed = lines(&|_| (0, 2));
    until(SOON, "seed_043: the connections to be inactive", || match virtual_server(&head)? {
        now if now == closed => Ok(()),
        now => Err(now.join("\n")),
    });
    let names: Vec<String> = world
        .node()
        .get_many(socket, "/hostname", 4)
        .expect("requests")
        .into_iter()
        .collect::<Result<_, _>>()
        .expect("answers");
    assert!(names[0] != names[1] && names[0] == names[2] && names[1] == names[3], "seed_042: {names:?}");

    let table = portolan(&world.lab, "proxy table").expect("run").ok();
    let row = table.lines().find(|l| l.contains("row-41/turns")).unwrap_or_else(|| panic!("{table}"));
    assert!(row.contains(&format!("{address}:80/TCP")) && row.contains(" rr "), "{table}");
}

#[test]
fn seed_047_a_node_port_answers_on_the_loopback_too() {
    let world = world();
    let kubectl = world.namespace("row-47");
    kubectl.apply(&deployment("web", ECHO, 1, 80)).ok();
    kubectl.run("expose deploy web --port=80 --type=NodePort").ok();
    let name = world.ready_pods(&kubectl, "app=web", 1).remove(0);
    let port = kubectl.jsonpath("svc web", "{.spec.ports[0].nodePort}").ok();
    for ip in ["127.0.0.1", NODE_ADDRESS] {
        assert_eq!(answers(&world.node(), &format!("{ip}:{port}"), "/hostname"), name);
    }
    assert_eq!(answers(&world.outside(), &format!("{NODE_ADDRESS}:{port}"), "/hostname"), name);
    kubectl.run("delete svc web").ok();
    let loopback: SocketAddr = format!("127.0.0.1:{port}").parse().expect("an address");
    until(SOON, "the loopback to be free again", || match world.node().get(loopback, "/") {
        Err(_) => Ok(()),
        Ok(answer) => Err(answer.text()),
    });
}

#[test]
fn pods_reach_the_world_with_the_node_s_address() {
    let world = world();
    let kubectl = world.namespace("outbound");
    let pod = world.toolbox(&kubectl, "outbound-client");
    let listener = world.outside().enter(|| Ok(TcpListener::bind((OUTSIDE_ADDRESS, 0))?)).expect("a listener");
    let address = listener.local_addr().expect("its address");
    let mut stream =
        pod.enter(|| Ok(TcpStream::connect_timeout(&address, Duration::from_secs(5))?)).expect("a way out");
    let (accepted, client) = listener.accept().expect("the pod's connection");
    assert_eq!(client.ip().to_string(), NODE_ADDRESS);
    drop(accepted);
    stream.set_read_timeout(Some(Duration::from_secs(5))).expect("a timeout");
    assert_eq!(stream.read(&mut [0]).expect("the end"), 0, "the way back works too");
}
