//! A raw `NETLINK_NETFILTER` socket and the wire form of netlink messages: headers, attributes, batches, dumps and
//! acknowledgements. It knows nothing of what the messages mean; [`crate::nft`] and [`crate::conntrack`] do.

#![expect(unsafe_code, reason = "socket calls that no safe wrapper offers")]

use std::{
    io,
    os::fd::{AsRawFd, FromRawFd, OwnedFd},
};

pub(crate) const NLM_F_REQUEST: u16 = 0x1;
pub(crate) const NLM_F_ACK: u16 = 0x4;
pub(crate) const NLM_F_DUMP: u16 = 0x300;
pub(crate) const NLM_F_CREATE: u16 = 0x400;
pub(crate) const NLM_F_APPEND: u16 = 0x800;
const NLM_F_DUMP_INTR: u16 = 0x10;
const NLM_F_ACK_TLVS: u16 = 0x200;
const NLM_F_CAPPED: u16 = 0x100;
const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
const NFNL_MSG_BATCH_BEGIN: u16 = 0x10;
const NFNL_MSG_BATCH_END: u16 = 0x11;
pub(crate) const SUBSYS_CTNETLINK: u16 = 1;
pub(crate) const SUBSYS_NFTABLES: u16 = 10;
/// One batch is one `sendmsg`, so the socket's buffer bounds a transaction. 250,000 elements take about 20 MB.
const SEND_BUFFER: usize = 256 << 20;
const RECEIVE_BUFFER: usize = 8 << 20;

/// Whose fault it was says the variant; the text says what to do.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("cannot open a netfilter netlink socket: {0}; the kernel needs nf_tables (CONFIG_NF_TABLES)")]
    Open(io::Error),
    #[error("cannot talk to the kernel's netfilter: {0}")]
    Socket(io::Error),
    #[error(
        "a batch of {bytes} bytes does not fit the netlink send buffer: run with CAP_NET_ADMIN in the initial user namespace, or raise net.core.wmem_max"
    )]
    TooLarge { bytes: usize },
    #[error(
        "not permitted to change netfilter: run as root (CAP_NET_ADMIN) or inside a user and network namespace of your own"
    )]
    NotPermitted,
    /// The kernel refused one message of a request; nothing of the batch was applied.
    #[error("the kernel refused {what}: {error}{detail}")]
    Refused { what: String, error: io::Error, detail: String },
    #[error("the kernel's answer cannot be read: {0}")]
    Malformed(&'static str),
    /// The table changed while it was read; read again.
    #[error("the ruleset changed while it was being read")]
    Interrupted,
}

impl Error {
    pub(crate) fn errno(&self) -> Option<i32> {
        match self {
            Self::Refused { error, .. } | Self::Socket(error) | Self::Open(error) => error.raw_os_error(),
            Self::NotPermitted => Some(libc::EPERM),
            _ => None,
        }
    }
}

/// Builds messages into one buffer; lengths are patched when a message or a nest ends.
#[derive(Debug, Default)]
pub(crate) struct Encoder {
    pub bytes: Vec<u8>,
    message: usize,
    seq: u32,
    /// Sequence number of the last real message, which carries the acknowledgement of a batch.
    last: (usize, u32),
}

impl Encoder {
    pub fn batch() -> Self {
        let mut e = Self { bytes: Vec::with_capacity(4096), ..Self::default() };
        e.begin(NFNL_MSG_BATCH_BEGIN, NLM_F_REQUEST, 0, SUBSYS_NFTABLES);
        e.end();
        e
    }

    /// Starts a message: netlink header and `nfgenmsg`.
    pub fn begin(&mut self, kind: u16, flags: u16, family: u8, resource: u16) {
        self.message = self.bytes.len();
        self.seq += 1;
        self.bytes.extend_from_slice(&0u32.to_ne_bytes());
        self.bytes.extend_from_slice(&kind.to_ne_bytes());
        self.bytes.extend_from_slice(&flags.to_ne_bytes());
        self.bytes.extend_from_slice(&self.seq.to_ne_bytes());
        self.bytes.extend_from_slice(&0u32.to_ne_bytes());
        self.bytes.push(family);
        self.bytes.push(0);
        self.bytes.extend_from_slice(&resource.to_be_bytes());
    }

    pub fn end(&mut self) {
        let len = (self.bytes.len() - self.message) as u32;
        self.bytes[self.message..self.message + 4].copy_from_slice(&len.to_ne_bytes());
        self.last = (self.message, self.seq);
    }

    fn pad(&mut self) {
        while self.bytes.len() & 3 != 0 {
            self.bytes.push(0);
        }
    }

    pub fn attr(&mut self, kind: u16, data: &[u8]) {
        self.bytes.extend_from_slice(&((4 + data.len()) as u16).to_ne_bytes());
        self.bytes.extend_from_slice(&kind.to_ne_bytes());
        self.bytes.extend_from_slice(data);
        self.pad();
    }

    /// A NUL-terminated string attribute.
    pub fn text(&mut self, kind: u16, text: &str) {
        self.bytes.extend_from_slice(&((5 + text.len()) as u16).to_ne_bytes());
        self.bytes.extend_from_slice(&kind.to_ne_bytes());
        self.bytes.extend_from_slice(text.as_bytes());
        self.bytes.push(0);
        self.pad();
    }

    pub fn u32(&mut self, kind: u16, value: u32) {
        self.attr(kind, &value.to_be_bytes());
    }

    pub fn u64(&mut self, kind: u16, value: u64) {
        self.attr(kind, &value.to_be_bytes());
    }

    pub fn nest(&mut self, kind: u16, inner: impl FnOnce(&mut Self)) {
        let at = self.bytes.len();
        self.bytes.extend_from_slice(&0u16.to_ne_bytes());
        self.bytes.extend_from_slice(&(kind | libc::NLA_F_NESTED as u16).to_ne_bytes());
        inner(self);
        let len = (self.bytes.len() - at) as u16;
        self.bytes[at..at + 2].copy_from_slice(&len.to_ne_bytes());
    }

    /// Ends a batch. The acknowledgement is asked for on the last real message: kernels before 6.10 ignore it on the end.
    fn finish(&mut self) -> u32 {
        let (at, seq) = self.last;
        self.request_ack(at);
        self.begin(NFNL_MSG_BATCH_END, NLM_F_REQUEST, 0, SUBSYS_NFTABLES);
        self.end();
        seq
    }

    fn request_ack(&mut self, at: usize) {
        let flags = u16::from_ne_bytes([self.bytes[at + 6], self.bytes[at + 7]]) | NLM_F_ACK;
        self.bytes[at + 6..at + 8].copy_from_slice(&flags.to_ne_bytes());
    }

    /// The message with this sequence number: its type and its attributes.
    fn message(&self, seq: u32) -> Option<(u16, &[u8])> {
        Messages(&self.bytes).find(|m| m.seq == seq).map(|m| (m.kind, m.body.get(4..).unwrap_or_default()))
    }
}

/// One message as received. `body` starts with the `nfgenmsg` (or the error number).
pub(crate) struct Message<'a> {
    pub kind: u16,
    flags: u16,
    seq: u32,
    pub body: &'a [u8],
}

struct Messages<'a>(&'a [u8]);

impl<'a> Iterator for Messages<'a> {
    type Item = Message<'a>;
    fn next(&mut self) -> Option<Message<'a>> {
        let b = self.0;
        if b.len() < 16 {
            return None;
        }
        let len = u32::from_ne_bytes([b[0], b[1], b[2], b[3]]) as usize;
        if len < 16 || len > b.len() {
            return None;
        }
        self.0 = &b[((len + 3) & !3).min(b.len())..];
        Some(Message {
            kind: u16::from_ne_bytes([b[4], b[5]]),
            flags: u16::from_ne_bytes([b[6], b[7]]),
            seq: u32::from_ne_bytes([b[8], b[9], b[10], b[11]]),
            body: &b[16..len],
        })
    }
}

/// Walks attributes: (type without flag bits, payload). Stops at the first malformed one.
#[derive(Clone)]
pub(crate) struct Attrs<'a>(pub &'a [u8]);

impl<'a> Attrs<'a> {
    pub fn get(&self, kind: u16) -> Option<&'a [u8]> {
        self.clone().find(|(k, _)| *k == kind).map(|(_, v)| v)
    }
    pub fn nested(&self, kind: u16) -> Option<Attrs<'a>> {
        self.get(kind).map(Attrs)
    }
    pub fn u32(&self, kind: u16) -> Option<u32> {
        self.get(kind)?.try_into().ok().map(u32::from_be_bytes)
    }
    pub fn u64(&self, kind: u16) -> Option<u64> {
        self.get(kind)?.try_into().ok().map(u64::from_be_bytes)
    }
    pub fn text(&self, kind: u16) -> Option<&'a str> {
        let bytes = self.get(kind)?;
        std::str::from_utf8(bytes.strip_suffix(&[0]).unwrap_or(bytes)).ok()
    }
}

impl<'a> Iterator for Attrs<'a> {
    type Item = (u16, &'a [u8]);
    fn next(&mut self) -> Option<Self::Item> {
        let b = self.0;
        if b.len() < 4 {
            return None;
        }
        let len = u16::from_ne_bytes([b[0], b[1]]) as usize;
        let kind = u16::from_ne_bytes([b[2], b[3]]) & 0x3fff;
        if len < 4 || len > b.len() {
            return None;
        }
        self.0 = &b[((len + 3) & !3).min(b.len())..];
        Some((kind, &b[4..len]))
    }
}

/// A connected netfilter netlink socket of the calling thread's network namespace. Blocking.
#[derive(Debug)]
pub struct Socket {
    fd: OwnedFd,
    buffer: Vec<u8>,
}

impl Socket {
    pub fn open() -> Result<Self, Error> {
        // SAFETY: socket(2) takes no pointers; the result is checked before it is owned.
        let fd =
            unsafe { libc::socket(libc::AF_NETLINK, libc::SOCK_RAW | libc::SOCK_CLOEXEC, libc::NETLINK_NETFILTER) };
        if fd < 0 {
            return Err(Error::Open(io::Error::last_os_error()));
        }
        // SAFETY: `fd` was just returned by socket(2) and nobody else owns it.
        let fd = unsafe { OwnedFd::from_raw_fd(fd) };
        let socket = Self { fd, buffer: vec![0; 256 << 10] };
        // FORCE needs CAP_NET_ADMIN in the initial user namespace; without it the limit is net.core.{w,r}mem_max.
        for (force, plain, size) in [
            (libc::SO_SNDBUFFORCE, libc::SO_SNDBUF, SEND_BUFFER),
            (libc::SO_RCVBUFFORCE, libc::SO_RCVBUF, RECEIVE_BUFFER),
        ] {
            if !socket.set_option(libc::SOL_SOCKET, force, size as libc::c_int) {
                socket.set_option(libc::SOL_SOCKET, plain, size as libc::c_int);
            }
        }
        // Explanations in errors, and errors without a copy of the whole refused request.
        socket.set_option(libc::SOL_NETLINK, libc::NETLINK_EXT_ACK, 1);
        socket.set_option(libc::SOL_NETLINK, libc::NETLINK_CAP_ACK, 1);
        Ok(socket)
    }

    fn set_option(&self, level: libc::c_int, option: libc::c_int, value: libc::c_int) -> bool {
        // SAFETY: the pointer is to a live c_int and the length is its size.
        let done = unsafe {
            libc::setsockopt(
                self.fd.as_raw_fd(),
                level,
                option,
                (&raw const value).cast(),
                size_of::<libc::c_int>() as libc::socklen_t,
            )
        };
        done == 0
    }

    fn send(&self, bytes: &[u8]) -> Result<(), Error> {
        loop {
            // SAFETY: pointer and length describe a live slice.
            let sent = unsafe { libc::send(self.fd.as_raw_fd(), bytes.as_ptr().cast(), bytes.len(), 0) };
            if sent == bytes.len() as isize {
                return Ok(());
            }
            let error = io::Error::last_os_error();
            return Err(match error.raw_os_error() {
                Some(libc::EINTR) => continue,
                Some(libc::EMSGSIZE) => Error::TooLarge { bytes: bytes.len() },
                Some(libc::EPERM) => Error::NotPermitted,
                _ => Error::Socket(error),
            });
        }
    }

    /// Bytes received into `self.buffer`; `None` when `wait` is false and nothing is there.
    fn receive(&mut self, wait: bool) -> Result<Option<usize>, Error> {
        loop {
            let flags = if wait { 0 } else { libc::MSG_DONTWAIT };
            let (at, room) = (self.buffer.as_mut_ptr(), self.buffer.len());
            // SAFETY: pointer and length describe the live, exclusively borrowed buffer.
            let got = unsafe { libc::recv(self.fd.as_raw_fd(), at.cast(), room, flags) };
            if got >= 0 {
                return Ok(Some(got as usize));
            }
            let error = io::Error::last_os_error();
            match error.raw_os_error() {
                Some(libc::EINTR) => {}
                Some(libc::EAGAIN) => return Ok(None),
                _ => return Err(Error::Socket(error)),
            }
        }
    }

    /// Forgets answers that nobody waits for any more.
    fn drain(&mut self) {
        while !matches!(self.receive(false), Ok(None)) {}
    }

    /// Sends a batch and waits until the kernel has committed it, or says which message it refused.
    /// `describe` names a message from its type and attributes.
    pub(crate) fn commit(
        &mut self,
        mut batch: Encoder,
        describe: impl Fn(u16, Attrs<'_>) -> String,
    ) -> Result<(), Error> {
        let last = batch.finish();
        self.drain();
        self.send(&batch.bytes)?;
        let failure = loop {
            let len = self.receive(true)?.unwrap_or(0);
            let answer = Messages(&self.buffer[..len]).find_map(|m| {
                if m.kind != NLMSG_ERROR {
                    return None;
                }
                let (errno, detail) = error_of(&m);
                (errno != 0 || m.seq == last).then_some((m.seq, errno, detail))
            });
            match answer {
                None => {}
                Some((_, 0, _)) => return Ok(()),
                Some(failure) => break failure,
            }
        };
        self.drain();
        let (seq, errno, detail) = failure;
        if errno == libc::EPERM {
            return Err(Error::NotPermitted);
        }
        let what =
            batch.message(seq).map_or_else(|| "the transaction".into(), |(kind, attrs)| describe(kind, Attrs(attrs)));
        Err(Error::Refused { what, error: io::Error::from_raw_os_error(errno), detail })
    }

    /// Sends messages that are not a batch, each acknowledged. Returns per message 0 or its error number, in order.
    pub(crate) fn acknowledged(&mut self, messages: &[Encoder]) -> Result<Vec<i32>, Error> {
        self.drain();
        let mut errors = Vec::with_capacity(messages.len());
        for message in messages {
            self.send(&message.bytes)?;
            'answer: loop {
                let len = self.receive(true)?.unwrap_or(0);
                for m in Messages(&self.buffer[..len]) {
                    if m.kind == NLMSG_ERROR {
                        errors.push(error_of(&m).0);
                        break 'answer;
                    }
                }
            }
        }
        Ok(errors)
    }

    /// Sends one request (dump or single) and hands each answering message's type and body behind `nfgenmsg` to `each`.
    pub(crate) fn request(
        &mut self,
        request: &Encoder,
        what: &str,
        mut each: impl FnMut(u16, Attrs<'_>) -> Result<(), Error>,
    ) -> Result<(), Error> {
        self.drain();
        self.send(&request.bytes)?;
        let dump = u16::from_ne_bytes([request.bytes[6], request.bytes[7]]) & NLM_F_DUMP == NLM_F_DUMP;
        let mut interrupted = false;
        loop {
            let len = self.receive(true)?.unwrap_or(0);
            for m in Messages(&self.buffer[..len]) {
                interrupted |= m.flags & NLM_F_DUMP_INTR != 0;
                match m.kind {
                    NLMSG_DONE if interrupted => return Err(Error::Interrupted),
                    NLMSG_DONE => return Ok(()),
                    NLMSG_ERROR => {
                        let (errno, detail) = error_of(&m);
                        return match errno {
                            0 => Ok(()),
                            libc::EPERM => Err(Error::NotPermitted),
                            libc::EINTR => Err(Error::Interrupted),
                            _ => Err(Error::Refused {
                                what: what.into(),
                                error: io::Error::from_raw_os_error(errno),
                                detail,
                            }),
                        };
                    }
                    kind => {
                        each(kind, Attrs(m.body.get(4..).ok_or(Error::Malformed("message without nfgenmsg"))?))?;
                        if !dump {
                            return Ok(());
                        }
                    }
                }
            }
        }
    }
}

/// The error number (0 for an acknowledgement) and the kernel's explanation, if any, ready to be appended.
fn error_of(m: &Message<'_>) -> (i32, String) {
    let errno =
        m.body.get(..4).and_then(|b| b.try_into().ok()).map_or(libc::EPROTO, |b: [u8; 4]| -i32::from_ne_bytes(b));
    let mut detail = String::new();
    if m.flags & NLM_F_ACK_TLVS != 0 {
        // Behind the error stands the refused header, with its payload unless the answer is capped.
        let echoed = if m.flags & NLM_F_CAPPED != 0 {
            16
        } else {
            m.body.get(4..8).and_then(|b| b.try_into().ok()).map_or(16, |b: [u8; 4]| u32::from_ne_bytes(b) as usize)
        };
        if let Some(text) = m.body.get(4 + ((echoed + 3) & !3)..).and_then(|b| Attrs(b).text(1)) {
            detail = format!(" ({text})");
        }
    }
    (errno, detail)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attributes_survive_the_wire() {
        let mut e = Encoder::batch();
        e.begin(7, NLM_F_REQUEST, 2, 0);
        e.text(1, "portolan");
        e.nest(2, |e| {
            e.u32(1, 0xdead_beef);
            e.attr(2, &[1, 2, 3]);
        });
        e.end();
        let seq = e.finish();
        let (kind, attrs) = e.message(seq).expect("the message is there");
        assert_eq!(kind, 7);
        assert_eq!(Attrs(attrs).text(1), Some("portolan"));
        let nested = Attrs(attrs).nested(2).expect("nested");
        assert_eq!((nested.u32(1), nested.get(2)), (Some(0xdead_beef), Some(&[1u8, 2, 3][..])));
        let acked: Vec<_> = Messages(&e.bytes).filter(|m| m.flags & NLM_F_ACK != 0).map(|m| m.seq).collect();
        assert_eq!(acked, [seq], "only the last real message asks for an acknowledgement");
    }

    #[test]
    fn malformed_bytes_end_the_walk() {
        assert_eq!(Attrs(&[3, 0, 1, 0]).count(), 0);
        assert_eq!(Attrs(&[200, 0, 1, 0, 9]).count(), 0);
        assert_eq!(Messages(&[0xff; 15]).count(), 0);
        assert_eq!(Messages(&[0xff; 64]).count(), 0);
    }
}
