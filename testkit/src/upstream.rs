//! The name server of the world outside: the few names the articles mention, and a clear no for everything else.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context, Result};

use crate::Lab;
use crate::lab::OUTSIDE_ADDRESS;

/// Seconds its answers may be kept: more than the cluster's own, so that a cap shows.
const TTL: u32 = 300;

/// Answers on port 53 of the outside over UDP until dropped.
pub struct Upstream {
    stop: Arc<AtomicBool>,
    asked: Arc<AtomicU32>,
    thread: Option<JoinHandle<()>>,
}

impl Upstream {
    /// Starts one that knows `www.iij.ad.jp` and `database.example.com`.
    pub fn start(lab: &Lab) -> Result<Upstream> {
        let socket = lab.outside().enter(|| Ok(UdpSocket::bind((OUTSIDE_ADDRESS, 53))?))?;
        socket.set_read_timeout(Some(Duration::from_millis(100))).context("a name server's socket")?;
        let zone = BTreeMap::from([
            ("www.iij.ad.jp".to_owned(), Ipv4Addr::new(202, 232, 2, 180)),
            ("database.example.com".to_owned(), Ipv4Addr::new(192, 0, 2, 10)),
        ]);
        let (stop, asked) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU32::new(0)));
        let (until, count) = (Arc::clone(&stop), Arc::clone(&asked));
        let thread = std::thread::spawn(move || {
            let mut buffer = [0; 4096];
            while !until.load(Ordering::Relaxed) {
                if let Ok((size, client)) = socket.recv_from(&mut buffer)
                    && let Some(answer) = answer(&zone, &buffer[..size])
                {
                    count.fetch_add(1, Ordering::Relaxed);
                    // A client that is gone is no concern of a name server.
                    let _ = socket.send_to(&answer, client);
                }
            }
        });
        Ok(Upstream { stop, asked, thread: Some(thread) })
    }

    /// How many questions it has answered.
    pub fn asked(&self) -> u32 {
        self.asked.load(Ordering::Relaxed)
    }
}

impl Drop for Upstream {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// The answer to one question; nothing for what is no question.
fn answer(zone: &BTreeMap<String, Ipv4Addr>, query: &[u8]) -> Option<Vec<u8>> {
    let header = query.get(..12)?;
    if header[2] & 0x80 != 0 || header[4..6] != [0, 1] {
        return None;
    }
    let (name, end) = name(query, 12)?;
    let question = query.get(12..end + 4)?;
    let kind = u16::from_be_bytes([query[end], query[end + 1]]);
    let address = zone.get(&name);
    let found = address.filter(|_| kind == 1);
    let code = if address.is_some() { 0 } else { 3 };
    let mut answer = Vec::with_capacity(512);
    answer.extend(&header[..2]);
    answer.extend([0x80 | (header[2] & 1), 0x80 | code]);
    answer.extend([0, 1, 0, u8::from(found.is_some()), 0, u8::from(found.is_none()), 0, 0]);
    answer.extend(question);
    match found {
        Some(address) => {
            answer.extend([0xc0, 12, 0, 1, 0, 1]);
            answer.extend(TTL.to_be_bytes());
            answer.extend([0, 4]);
            answer.extend(address.octets());
        }
        None => {
            // The root's SOA, so that the no may be kept: both names are the root, then five numbers.
            answer.extend([0, 0, 6, 0, 1]);
            answer.extend(60u32.to_be_bytes());
            answer.extend([0, 22, 0, 0]);
            for number in [1u32, 1800, 900, 604_800, 60] {
                answer.extend(number.to_be_bytes());
            }
        }
    }
    Some(answer)
}

/// A name in lower case without the last dot, and where it ends.
fn name(message: &[u8], mut at: usize) -> Option<(String, usize)> {
    let mut labels = Vec::new();
    loop {
        let size = usize::from(*message.get(at)?);
        at += 1;
        if size == 0 {
            return Some((labels.join("."), at));
        }
        if size > 63 {
            return None;
        }
        labels.push(String::from_utf8_lossy(message.get(at..at + size)?).to_ascii_lowercase());
        at += size;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn query(name: &str, kind: u8) -> Vec<u8> {
        let mut query = vec![0xab, 0xcd, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
        for label in name.split('.') {
            query.push(label.len() as u8);
            query.extend(label.as_bytes());
        }
        query.extend([0, 0, kind, 0, 1]);
        query
    }

    #[test]
    fn knows_its_names_and_says_no_to_others() {
        let zone = BTreeMap::from([("www.example".to_owned(), Ipv4Addr::new(192, 0, 2, 1))]);
        let found = answer(&zone, &query("WWW.example", 1)).expect("an answer");
        assert_eq!((&found[..2], found[3] & 15, found[7]), (&[0xab, 0xcd][..], 0, 1));
        assert_eq!(found[found.len() - 4..], [192, 0, 2, 1]);
        let other_type = answer(&zone, &query("www.example", 28)).expect("an answer");
        assert_eq!((other_type[3] & 15, other_type[7]), (0, 0));
        let unknown = answer(&zone, &query("nobody", 1)).expect("an answer");
        assert_eq!((unknown[3] & 15, unknown[9]), (3, 1));
        assert_eq!(answer(&zone, b"short"), None);
        assert_eq!(answer(&zone, &found), None, "an answer is no question");
    }
}
