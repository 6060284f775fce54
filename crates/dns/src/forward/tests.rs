use std::net::{Ipv4Addr, UdpSocket};

use hickory_proto::{
    op::{Message as Oracle, MessageType, OpCode, ResponseCode},
    rr::{Name as OracleName, RData, Record as OracleRecord, rdata},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpListener,
};

use super::*;
use crate::tests::packet;

/// An upstream server that counts what it is asked. `www.iij.ad.jp` is known, `big.test` does not fit in UDP,
/// everything else does not exist.
pub async fn upstream() -> (SocketAddr, Arc<AtomicUsize>) {
    let tcp = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = tcp.local_addr().unwrap();
    let udp = tokio::net::UdpSocket::bind(address).await.unwrap();
    let count = Arc::new(AtomicUsize::new(0));
    let counted = count.clone();
    tokio::spawn(async move {
        let mut buffer = [0; 2048];
        while let Ok((n, peer)) = udp.recv_from(&mut buffer).await {
            counted.fetch_add(1, Ordering::SeqCst);
            let answer = reply(&buffer[..n], 1232);
            udp.send_to(&answer, peer).await.unwrap();
        }
    });
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = tcp.accept().await {
            let length = stream.read_u16().await.unwrap();
            let mut asked = vec![0; usize::from(length)];
            stream.read_exact(&mut asked).await.unwrap();
            let answer = reply(&asked, 65535);
            stream.write_u16(answer.len() as u16).await.unwrap();
            stream.write_all(&answer).await.unwrap();
        }
    });
    (address, count)
}

fn reply(asked: &[u8], limit: usize) -> Vec<u8> {
    let asked = Oracle::from_vec(asked).unwrap();
    assert!(asked.metadata.recursion_desired);
    let question = asked.queries[0].clone();
    let mut answer = Oracle::new(asked.metadata.id, MessageType::Response, OpCode::Query);
    answer.metadata.recursion_available = true;
    let name = question.name().clone();
    let a = |ip: Ipv4Addr| OracleRecord::from_rdata(name.clone(), 300, RData::A(rdata::A(ip)));
    match name.to_string().as_str() {
        "www.iij.ad.jp." if u16::from(question.query_type()) == 1 => {
            _ = answer.add_answer(a(Ipv4Addr::new(202, 232, 2, 180)))
        }
        "big.test." => _ = answer.add_answers((0..200).map(|i| a(Ipv4Addr::from(i)))),
        _ => {
            answer.metadata.response_code = ResponseCode::NXDomain;
            let (m, r): (OracleName, OracleName) = ("ns.test.".parse().unwrap(), "root.test.".parse().unwrap());
            let soa = rdata::SOA::new(m, r, 1, 2, 3, 4, 60);
            answer.add_authority(OracleRecord::from_rdata("test.".parse().unwrap(), 600, RData::SOA(soa)));
        }
    }
    answer.add_query(question);
    answer.set_edns(hickory_proto::op::Edns::new());
    let octets = answer.to_vec().unwrap();
    if octets.len() <= limit {
        return octets;
    }
    let mut cut = answer.truncate();
    cut.metadata.truncation = true;
    cut.to_vec().unwrap()
}

fn outside(servers: &[SocketAddr]) -> Outside {
    Outside { upstreams: Upstreams::Servers(servers.to_vec()), ..Outside::default() }
}

fn forwarder(servers: &[SocketAddr]) -> Arc<Forwarder> {
    Arc::new(Forwarder::new(outside(servers), Vec::new(), Arc::new(Metrics::new("dns://:53", "."))))
}

/// Asks as a client does, and prints what it gets.
async fn dig(forwarder: &Arc<Forwarder>, question: &str, limit: usize) -> String {
    let packet = packet(question);
    let query = Query::parse(&packet).unwrap();
    let ask = Ask { name: query.name, kind: query.kind, partial: None, otherwise: None };
    let answer = match forwarder.cached(&ask.name, ask.kind, &query) {
        Some(known) => Ok(known),
        None => forwarder.ask(&ask.name, ask.kind, &query).await,
    };
    let mut room = vec![0; 65535];
    let (length, _) = finish(&query, &ask, &answer, 30, &mut room, limit);
    assert!(length <= limit);
    crate::tests::show(&room[..length])
}

#[tokio::test]
async fn answers_are_relayed_and_remembered() {
    let (server, count) = upstream().await;
    let f = forwarder(&[server]);
    for _ in 0..3 {
        let answer = dig(&f, "www.iij.ad.jp A +edns", 1232).await;
        assert_eq!(answer, "NOERROR ra\nwww.iij.ad.jp. 300 IN A 202.232.2.180");
        let answer = dig(&f, "nope.test", 512).await;
        assert_eq!(answer, "NXDOMAIN ra\nauth test. 600 IN SOA ns.test. root.test. 1 2 3 4 60");
    }
    assert_eq!(count.load(Ordering::SeqCst), 2);
    let dnssec_and_type_are_apart = dig(&f, "www.iij.ad.jp AAAA", 512).await;
    assert!(dnssec_and_type_are_apart.starts_with("NXDOMAIN"));
    assert_eq!(count.load(Ordering::SeqCst), 3);
}

#[tokio::test]
async fn equal_questions_are_asked_once() {
    let (server, count) = upstream().await;
    let f = forwarder(&[server]);
    let all = futures::future::join_all((0..50).map(|_| dig(&f, "www.iij.ad.jp", 512))).await;
    assert!(all.iter().all(|a| a.contains("202.232.2.180")));
    assert_eq!(count.load(Ordering::SeqCst), 1);
    assert!(f.under_way.lock().unwrap().is_empty());
}

#[tokio::test]
async fn large_answers_come_over_tcp_and_are_cut_for_udp_clients() {
    let (server, _) = upstream().await;
    let f = forwarder(&[server]);
    let whole = dig(&f, "big.test", 65535).await;
    assert_eq!(whole.lines().count(), 201);
    assert!(whole.starts_with("NOERROR ra\n"));
    let cut = dig(&f, "big.test A +edns", 1232).await;
    assert!(cut.starts_with("NOERROR tc ra\n"));
    assert!(cut.lines().count() > 60, "{cut}");
}

#[tokio::test]
async fn a_dead_server_is_passed_over() {
    let (server, _) = upstream().await;
    // Bound, so that nobody else is there, and silent.
    let silent = UdpSocket::bind("127.0.0.1:0").unwrap();
    let f = forwarder(&[silent.local_addr().unwrap(), server]);
    assert!(dig(&f, "www.iij.ad.jp", 512).await.contains("202.232.2.180"));
    // From now on the living one is asked first.
    assert_eq!(f.routes[0].preferred.load(Ordering::SeqCst), 1);
}

#[tokio::test]
async fn nobody_there_is_servfail_with_the_cause() {
    let closed = UdpSocket::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let answer = dig(&forwarder(&[closed]), "www.iij.ad.jp A +edns", 1232).await;
    assert_eq!(
        answer,
        format!("SERVFAIL ra\nEDE 22: no upstream server answers: {closed}: Connection refused (os error 111)")
    );
    let ours = Forwarder::new(outside(&[closed]), vec![closed], Arc::new(Metrics::new("", "")));
    let answer = dig(&Arc::new(ours), "www.iij.ad.jp A +edns", 1232).await;
    assert!(answer.starts_with("SERVFAIL ra\nEDE 0: there is no upstream server to ask"), "{answer}");
}

mod damage {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2000))]

        /// Whatever an upstream server sends behind the question we asked, the answer made from it is well-formed and
        /// within its limit.
        #[test]
        fn malformed_answers_do_no_harm(
            name in prop::sample::select(vec!["www.iij.ad.jp", "nope.test", "big.test"]),
            changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..8),
            limit in 512usize..4000,
        ) {
            let asked = packet(&format!("{name} A +edns"));
            let query = Query::parse(&asked).unwrap();
            let mut octets = reply(&asked, 65535);
            for (at, value) in changes {
                let at = at.index(octets.len());
                // What the exchange checks before: the question, and that there is one.
                if !(4..6).contains(&at) && !(12..12 + query.question().len()).contains(&at) {
                    octets[at] = value;
                }
            }
            let Some(response) = Response::new(&octets) else { return Ok(()) };
            let mut room = vec![0; 4096];
            let partial = Writer::new(&query, &mut room, 512).suspend();
            let answer = Ok(Arc::new(response));
            for partial in [None, Some(partial)] {
                let mut room = vec![0; 4096];
                let ask = Ask { name: query.name, kind: query.kind, partial, otherwise: None };
                let (length, _) = finish(&query, &ask, &answer, 30, &mut room, limit);
                prop_assert!(length <= limit);
                prop_assert!(Message::parse(&room[..length]).is_some());
            }
        }
    }
}
