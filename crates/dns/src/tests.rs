//! The zone as scripts: objects in, `dig`-like answers out, decoded by another implementation of DNS.

mod client;
mod script;
mod socket;

use std::{fmt::Write, sync::Arc};

use hickory_proto::{
    op::{Edns, Message, OpCode, Query as Asked},
    rr::rdata::opt::{EdnsCode, EdnsOption},
};
use model::{
    Kind, Snapshot,
    names::{Directory, Zone},
    parse,
};
use serde_json::Value;

use crate::{
    answer::{self, Outcome, Terms},
    wire::Query,
};

pub fn zone() -> Zone {
    let reverse = ["10.96.0.0/12", "10.244.0.0/16", "fd00:10:96::/112"];
    Zone { reverse: reverse.map(|r| r.parse().unwrap()).to_vec(), ..Zone::new("cluster.local").unwrap() }
}

/// All documents of a manifest, in the order given.
pub fn documents(yaml: &str) -> Vec<Value> {
    use serde::Deserialize;
    serde_yaml_ng::Deserializer::from_str(yaml)
        .map(|d| Value::deserialize(d).unwrap())
        .filter(|v| !v.is_null())
        .collect()
}

pub fn put(snapshot: &mut Snapshot, object: &Value) {
    let mut object = object.clone();
    let meta = object["metadata"].as_object_mut().unwrap();
    if !meta.contains_key("namespace") {
        meta.insert("namespace".into(), "default".into());
    }
    let key = parse::key(&object).unwrap();
    snapshot.revision += 1;
    match object["kind"].as_str().unwrap() {
        "Service" => _ = snapshot.services.insert(key, parse::service(&object).0.unwrap().into()),
        "EndpointSlice" => snapshot.put_slice(parse::endpoint_slice(&object).0.unwrap().into(), None),
        "Pod" => _ = snapshot.pods.insert(key, parse::pod(&object).0.unwrap().into()),
        kind => panic!("{kind} in a script"),
    }
}

pub fn complete(snapshot: &mut Snapshot) {
    for name in ["default", "production", "kube-system"] {
        let ns = serde_json::json!({ "kind": "Namespace", "metadata": { "name": name } });
        snapshot.namespaces.insert(parse::key(&ns).unwrap(), parse::namespace(&ns).0.unwrap().into());
    }
    Kind::ALL.iter().for_each(|k| snapshot.mark_listed(*k));
}

/// The directory of the objects, after each object in turn and so in both arrival orders: they must agree.
pub fn directory(yaml: &str) -> Directory {
    let objects = documents(yaml);
    let arrive = |objects: &mut dyn Iterator<Item = &Value>| {
        let mut snapshot = Snapshot::default();
        let mut directory = Directory::new(zone());
        complete(&mut snapshot);
        for object in objects {
            put(&mut snapshot, object);
            directory = directory.advance(&snapshot);
        }
        directory
    };
    let (forth, back) = (arrive(&mut objects.iter()), arrive(&mut objects.iter().rev()));
    for service in forth.snapshot().services.keys() {
        for kind in ["A", "AAAA", "SRV", "CNAME"] {
            let question = format!("{}.{}.svc.cluster.local {kind}", service.name, service.namespace);
            assert_eq!(dig(&forth, &question), dig(&back, &question), "arrival order matters for {question}");
        }
    }
    forth
}

/// A query as a client makes it: `NAME TYPE [+edns] [+norec]`.
pub fn packet(question: &str) -> Vec<u8> {
    let words: Vec<_> = question.split(' ').collect();
    let mut message = Message::query();
    message.metadata.id = 4711;
    message.metadata.recursion_desired = !words.contains(&"+norec");
    message.metadata.op_code = OpCode::Query;
    let mut name: hickory_proto::rr::Name = words[0].parse().unwrap();
    name.set_fqdn(true);
    message.add_query(Asked::query(name, words.get(1).unwrap_or(&"A").parse().unwrap()));
    if words.contains(&"+edns") {
        message.set_edns(Edns::new());
    }
    message.to_vec().unwrap()
}

pub fn answer_to(directory: &Directory, packet: &[u8], limit: Option<usize>, turn: u64) -> Vec<u8> {
    let query = Query::parse(packet).unwrap();
    let mut room = vec![0; 65535];
    let terms = Terms { limit: limit.unwrap_or(query.udp_limit()), turn, recursion: false, client: None };
    let Outcome::Reply(length, _) = answer::answer(directory, &query, &mut room, terms) else { panic!("forwarded") };
    room.truncate(length);
    room
}

/// What `dig` would print, shortened: status and flags, then the records of each section.
pub fn dig(directory: &Directory, question: &str) -> String {
    show(&answer_to(directory, &packet(question), None, 0))
}

pub fn show(answer: &[u8]) -> String {
    let m = Message::from_vec(answer).unwrap();
    let mut out = m.metadata.response_code.to_string().split(' ').next().unwrap().to_owned();
    out = match out.as_str() {
        "No" => "NOERROR".into(),
        "Non-Existent" => "NXDOMAIN".into(),
        "Server" => "SERVFAIL".into(),
        "Query" => "REFUSED".into(),
        _ => m.metadata.response_code.to_string(),
    };
    for (on, flag) in
        [(m.metadata.authoritative, " aa"), (m.metadata.truncation, " tc"), (m.metadata.recursion_available, " ra")]
    {
        out += if on { flag } else { "" };
    }
    for (mark, records) in [("", &m.answers), ("auth ", &m.authorities), ("more ", &m.additionals)] {
        for r in records {
            write!(out, "\n{mark}{r}").unwrap();
        }
    }
    if let Some(EdnsOption::Unknown(_, ede)) = m.edns.as_ref().and_then(|e| e.option(EdnsCode::from(15))) {
        write!(out, "\nEDE {}: {}", u16::from_be_bytes([ede[0], ede[1]]), String::from_utf8_lossy(&ede[2..])).unwrap();
    }
    out
}
