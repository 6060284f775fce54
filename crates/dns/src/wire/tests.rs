use hickory_proto::op::Message as Oracle;
use proptest::prelude::*;

use super::*;
use crate::{
    answer::{self, Outcome, Terms},
    tests,
};

const OBJECTS: &str = "
kind: Service
metadata: { name: web }
spec: { clusterIP: 10.96.0.1, clusterIPs: [10.96.0.1], ports: [{ name: http, port: 80 }] }
---
kind: Service
metadata: { name: ext }
spec: { type: ExternalName, externalName: web.default.svc.cluster.local }
---
kind: Service
metadata: { name: headless }
spec: { clusterIP: None }
---
kind: EndpointSlice
metadata: { name: headless-1, labels: { kubernetes.io/service-name: headless } }
addressType: IPv4
ports: [{ name: http, port: 80 }]
endpoints: [{ addresses: [10.244.0.1], hostname: a }, { addresses: [10.244.0.2] }, { addresses: [10.244.0.3] }]
";

fn code(packet: &[u8]) -> Malformed {
    Query::parse(packet).unwrap_err()
}

#[test]
fn what_is_no_query_is_told_so_or_ignored() {
    let good = tests::packet("web.default.svc.cluster.local A +edns");
    assert!(Query::parse(&good).is_ok());
    let formerr = Malformed::Code(Rcode::FORMERR);
    for cut in 0..good.len() {
        assert_eq!(code(&good[..cut]), if cut < HEADER { Malformed::Silence } else { formerr }, "{cut}");
    }
    let change = |at: usize, value: u8| {
        let mut p = good.clone();
        p[at] = value;
        p
    };
    // An answer is never answered, whatever else it is.
    assert_eq!(code(&change(2, 0x81)), Malformed::Silence);
    assert_eq!(code(&change(2, 0x28)), Malformed::Code(Rcode::NOTIMP));
    for questions in [0, 2, 255] {
        assert_eq!(code(&change(5, questions)), formerr);
    }
    // A pointer in the only question, a label of a type that does not exist, records that are not there.
    assert_eq!(code(&change(12, 0xc0)), formerr);
    assert_eq!(code(&change(12, 0x40)), formerr);
    assert_eq!(code(&change(7, 9)), formerr);
    // Two OPT records.
    let mut two = change(11, 2);
    two.extend([0, 0, 41, 4, 208, 0, 0, 0, 0, 0, 0]);
    assert_eq!(code(&two), formerr);
    let mut room = [0xff; 100];
    assert_eq!(header_only(&good, Rcode::FORMERR, &mut room), HEADER);
    let answer = Oracle::from_vec(&room[..HEADER]).unwrap();
    assert_eq!((answer.metadata.id, answer.metadata.recursion_desired), (4711, true));
}

#[test]
fn edns_decides_size_and_version() {
    let d = tests::directory(OBJECTS);
    let mut packet = tests::packet("web.default.svc.cluster.local A +edns");
    let at = packet.len() - 11;
    packet[at + 3..at + 5].copy_from_slice(&[1, 0]);
    assert_eq!(Query::parse(&packet).unwrap().udp_limit(), 512);
    packet[at + 3..at + 5].copy_from_slice(&[0xff, 0xff]);
    assert_eq!(Query::parse(&packet).unwrap().udp_limit(), UDP_MAX);
    packet[at + 7] = 0x80;
    let answer = Oracle::from_vec(&tests::answer_to(&d, &packet, None, 0)).unwrap();
    let edns = answer.edns.unwrap();
    assert!(edns.flags().dnssec_ok);
    assert_eq!((edns.version(), edns.max_payload()), (0, 1232));
    packet[at + 6] = 1;
    let answer = Oracle::from_vec(&tests::answer_to(&d, &packet, None, 0)).unwrap();
    assert_eq!(u16::from(answer.metadata.response_code), Rcode::BADVERS.0);
}

#[test]
fn odd_types_and_classes_are_refused_by_the_book() {
    let d = tests::directory(OBJECTS);
    let status = |kind: u16, class: u16| {
        let mut packet = tests::packet("web.default.svc.cluster.local");
        let at = packet.len() - 4;
        packet[at..at + 2].copy_from_slice(&kind.to_be_bytes());
        packet[at + 2..].copy_from_slice(&class.to_be_bytes());
        u16::from(tests::answer_to(&d, &packet, None, 0)[3] & 15)
    };
    assert_eq!(status(1, 3), Rcode::REFUSED.0);
    assert_eq!(status(252, 1), Rcode::REFUSED.0);
    assert_eq!(status(41, 1), Rcode::FORMERR.0);
    assert_eq!(status(250, 1), Rcode::NOTIMP.0);
    assert_eq!(status(65280, 1), Rcode::NOERROR.0);
    assert_eq!(status(255, 1), Rcode::NOERROR.0);
}

fn any_name() -> impl Strategy<Value = String> {
    let label = prop::sample::select(vec![
        "web",
        "headless",
        "ext",
        "a",
        "default",
        "svc",
        "pod",
        "_http",
        "_tcp",
        "10-244-0-2",
        "dns-version",
        "x",
        "ns",
        "dns",
    ]);
    let front = prop::collection::vec(label, 0..6);
    let zone = prop::sample::select(vec!["cluster.local", "96.10.in-addr.arpa", "244.10.in-addr.arpa"]);
    (front, zone).prop_map(|(front, zone)| front.into_iter().chain([zone]).collect::<Vec<_>>().join("."))
}

fn any_query() -> impl Strategy<Value = Vec<u8>> {
    let kind = prop::sample::select(vec!["A", "AAAA", "SRV", "PTR", "CNAME", "TXT", "SOA", "NS", "ANY", "MX", "HTTPS"]);
    (any_name(), kind, any::<bool>())
        .prop_map(|(name, kind, edns)| tests::packet(&format!("{name} {kind}{}", if edns { " +edns" } else { "" })))
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    /// Every answer about the zone is one that another implementation reads to its last octet, within the limit, to
    /// the question that was asked, and with a SOA when it is a "no".
    #[test]
    fn answers_are_well_formed(query in any_query(), turn: u64, limit in 512usize..1300) {
        let d = tests::directory(OBJECTS);
        let parsed = Query::parse(&query).unwrap();
        let mut room = vec![0xaa; 4096];
        let terms = Terms { limit, turn, recursion: false, client: None };
        let Outcome::Reply(length, rcode) = answer::answer(&d, &parsed, &mut room, terms) else { panic!("forwarded") };
        prop_assert!(length <= limit);
        let answer = Oracle::from_vec(&room[..length]).unwrap();
        let asked = Oracle::from_vec(&query).unwrap();
        prop_assert_eq!(&answer.queries, &asked.queries);
        prop_assert_eq!(answer.metadata.id, asked.metadata.id);
        prop_assert_eq!(answer.edns.is_some(), asked.edns.is_some());
        prop_assert_eq!(u16::from(answer.metadata.response_code), rcode.0);
        if rcode != Rcode::REFUSED {
            prop_assert!(answer.metadata.authoritative);
            let soa = answer.authorities.iter().filter(|r| u16::from(r.record_type()) == 6).count();
            let negative = rcode == Rcode::NXDOMAIN || answer.answers.is_empty();
            prop_assert_eq!(soa == 1, negative && !answer.metadata.truncation, "{:?}", answer);
        }
        // Encoded again by the other implementation it means the same.
        prop_assert_eq!(Oracle::from_vec(&answer.to_vec().unwrap()).unwrap().answers, answer.answers);
    }

    /// Mutated packets: no panic, no answer to an answer, and never more than was allowed.
    #[test]
    fn mutated_packets_do_no_harm(
        query in any_query(),
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..6),
        cut in prop::option::of(any::<prop::sample::Index>()),
        tail in prop::collection::vec(any::<u8>(), 0..30),
    ) {
        let mut packet = query;
        for (at, value) in changes {
            let at = at.index(packet.len());
            packet[at] = value;
        }
        if let Some(cut) = cut {
            packet.truncate(cut.index(packet.len()));
        }
        packet.extend(tail);
        let d = tests::directory(OBJECTS);
        let mut room = vec![0; 4096];
        match Query::parse(&packet) {
            Ok(query) => {
                prop_assert!(packet[2] & 0x80 == 0);
                let terms = Terms { limit: query.udp_limit(), turn: 3, recursion: true, client: None };
                if let Outcome::Reply(length, _) = answer::answer(&d, &query, &mut room, terms) {
                    prop_assert!(length <= query.udp_limit());
                    prop_assert!(Message::parse(&room[..length]).is_some());
                }
            }
            Err(Malformed::Code(rcode)) => {
                prop_assert!(packet[2] & 0x80 == 0);
                prop_assert_eq!(header_only(&packet, rcode, &mut room), HEADER);
            }
            Err(Malformed::Silence) => {}
        }
    }

    #[test]
    fn any_octets_do_no_harm(octets in prop::collection::vec(any::<u8>(), 0..600)) {
        let _ = Query::parse(&octets);
        let _ = crate::forward::Response::new(&octets);
    }
}

/// What a packet brings about is in order: nothing for an answer, else an answer with its id, no longer than was allowed.
fn harmless(d: &model::names::Directory, packet: &[u8]) {
    let mut room = vec![0; 4096];
    let length = match Query::parse(packet) {
        Ok(query) => {
            let terms = Terms { limit: query.udp_limit(), turn: 7, recursion: true, client: None };
            match answer::answer(d, &query, &mut room, terms) {
                Outcome::Reply(length, _) => {
                    assert!(length <= query.udp_limit() && Message::parse(&room[..length]).is_some(), "{packet:x?}");
                    length
                }
                Outcome::Ask(_) => return,
            }
        }
        Err(Malformed::Code(rcode)) => header_only(packet, rcode, &mut room),
        Err(Malformed::Silence) => return,
    };
    assert!(
        length >= HEADER && packet[2] & 0x80 == 0 && room[2] & 0x80 != 0 && room[..2] == packet[..2],
        "{packet:x?}"
    );
}

#[test]
fn the_corpus_does_no_harm_however_it_is_damaged() {
    let d = tests::directory(OBJECTS);
    let mut count = 0;
    for line in include_str!("corpus.txt").lines().filter(|l| !l.starts_with('#')) {
        let digits: String = line.split_whitespace().collect();
        let octets = (0..digits.len()).step_by(2).map(|i| u8::from_str_radix(&digits[i..i + 2], 16).unwrap());
        let packet: Vec<u8> = octets.collect();
        harmless(&d, &packet);
        for at in 0..packet.len() {
            harmless(&d, &packet[..at]);
            for value in 0..=255 {
                let mut damaged = packet.clone();
                damaged[at] = value;
                harmless(&d, &damaged);
                count += 1;
            }
        }
    }
    assert!(count > 90_000);
}
