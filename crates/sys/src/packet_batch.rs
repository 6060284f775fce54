//! UDP datagrams in batches: one system call takes up to N questions, one more sends their answers (`recvmmsg(2)`,
//! `sendmmsg(2)`). All memory is taken once. It refuses to know what is in the datagrams.

use std::{
    io,
    net::{Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV4, SocketAddrV6},
    os::fd::{AsFd, AsRawFd},
};

/// Room for received datagrams and for one reply to each.
pub struct PacketBatch {
    /// `count` buffers of `size` octets, for what was received and for what is to be sent.
    received: Box<[u8]>,
    replies: Box<[u8]>,
    size: usize,
    /// Octets of datagram `i`, and whether it was cut because it did not fit.
    lengths: Box<[(usize, bool)]>,
    /// Octets of the reply to datagram `i`; 0 for none.
    reply_lengths: Box<[usize]>,
    peers: Box<[libc::sockaddr_storage]>,
    peer_lengths: Box<[libc::socklen_t]>,
    /// For [`Self::receive`], set up once: its pointers lead into the boxes of this value, which never move.
    incoming: Box<[libc::iovec]>,
    incoming_headers: Box<[libc::mmsghdr]>,
    /// For [`Self::send`], written anew before each call.
    outgoing: Box<[libc::iovec]>,
    outgoing_headers: Box<[libc::mmsghdr]>,
    filled: usize,
}

// SAFETY: the raw pointers in the iovecs and headers point into the boxes of the same value, which are allocated once and
// never replaced, or are stale and written anew before each system call; nothing is shared with other values.
#[expect(unsafe_code, reason = "raw pointers inside mmsghdr stop the automatic Send")]
unsafe impl Send for PacketBatch {}

const ADDRESS_ROOM: libc::socklen_t = size_of::<libc::sockaddr_storage>() as libc::socklen_t;

#[expect(unsafe_code, reason = "all-zero C structures")]
fn zeroed<T: Copy>(count: usize) -> Box<[T]>
where
    T: Zeroable,
{
    // SAFETY: `Zeroable` is private and only given to C structures of integers and pointers, for which zero is valid.
    vec![unsafe { std::mem::zeroed::<T>() }; count].into()
}

trait Zeroable {}
impl Zeroable for libc::sockaddr_storage {}
impl Zeroable for libc::iovec {}
impl Zeroable for libc::mmsghdr {}

impl PacketBatch {
    /// For up to `count` datagrams of up to `size` octets, in and out.
    pub fn new(count: usize, size: usize) -> Self {
        let mut batch = Self {
            received: vec![0; count * size].into(),
            replies: vec![0; count * size].into(),
            size,
            lengths: vec![(0, false); count].into(),
            reply_lengths: vec![0; count].into(),
            peers: zeroed(count),
            peer_lengths: vec![0; count].into(),
            incoming: zeroed(count),
            incoming_headers: zeroed(count),
            outgoing: zeroed(count),
            outgoing_headers: zeroed(count),
            filled: 0,
        };
        for i in 0..count {
            let at = i * size;
            batch.incoming[i] = libc::iovec { iov_base: batch.received[at..].as_mut_ptr().cast(), iov_len: size };
            let header = &mut batch.incoming_headers[i].msg_hdr;
            header.msg_name = (&raw mut batch.peers[i]).cast();
            header.msg_namelen = ADDRESS_ROOM;
            header.msg_iov = &raw mut batch.incoming[i];
            header.msg_iovlen = 1;
        }
        batch
    }

    /// Waits for at least one datagram (or the socket's receive timeout), and takes as many as there are.
    #[expect(unsafe_code, reason = "recvmmsg has no safe wrapper that keeps its buffers")]
    pub fn receive(&mut self, socket: impl AsFd) -> io::Result<usize> {
        // What the kernel wrote over last time.
        for header in &mut self.incoming_headers[..self.filled] {
            header.msg_hdr.msg_namelen = ADDRESS_ROOM;
        }
        self.filled = 0;
        let count = self.incoming_headers.len() as u32;
        let fd = socket.as_fd().as_raw_fd();
        let headers = self.incoming_headers.as_mut_ptr();
        // SAFETY: each header points to one iovec of `size` octets inside `received` and to one sockaddr_storage inside
        // `peers` (see `new`), all alive and not borrowed otherwise during the call; `count` is the number of headers.
        let got = unsafe { libc::recvmmsg(fd, headers, count, libc::MSG_WAITFORONE, std::ptr::null_mut()) };
        let got = usize::try_from(got).map_err(|_| io::Error::last_os_error())?;
        for i in 0..got {
            let header = &self.incoming_headers[i];
            self.lengths[i] = (header.msg_len as usize, header.msg_hdr.msg_flags & libc::MSG_TRUNC != 0);
            self.peer_lengths[i] = header.msg_hdr.msg_namelen;
            self.reply_lengths[i] = 0;
        }
        self.filled = got;
        Ok(got)
    }

    /// Datagram `i` of the last [`Self::receive`], and the room for its reply.
    pub fn packet(&mut self, i: usize) -> (&[u8], &mut [u8]) {
        let at = i * self.size;
        (&self.received[at..at + self.lengths[i].0.min(self.size)], &mut self.replies[at..at + self.size])
    }

    /// The datagram was longer than the room for it.
    pub fn truncated(&self, i: usize) -> bool {
        self.lengths[i].1
    }

    /// Who sent datagram `i`. `None` for what is no IP socket.
    pub fn peer(&self, i: usize) -> Option<SocketAddr> {
        to_address(&self.peers[i])
    }

    /// The first `length` octets of the room are the reply to datagram `i`.
    pub fn reply(&mut self, i: usize, length: usize) {
        self.reply_lengths[i] = length.min(self.size);
    }

    /// Sends the replies. A datagram that cannot be sent (a peer that is gone, say) is left out; returns those sent.
    #[expect(unsafe_code, reason = "sendmmsg has no safe wrapper that keeps its buffers")]
    pub fn send(&mut self, socket: impl AsFd) -> usize {
        let mut count = 0;
        for i in 0..self.filled {
            let length = std::mem::take(&mut self.reply_lengths[i]);
            if length == 0 {
                continue;
            }
            self.outgoing[count] =
                libc::iovec { iov_base: self.replies[i * self.size..].as_mut_ptr().cast(), iov_len: length };
            let header = &mut self.outgoing_headers[count].msg_hdr;
            header.msg_name = (&raw mut self.peers[i]).cast();
            header.msg_namelen = self.peer_lengths[i];
            header.msg_iov = &raw mut self.outgoing[count];
            header.msg_iovlen = 1;
            count += 1;
        }
        let fd = socket.as_fd().as_raw_fd();
        let (mut done, mut sent) = (0, 0);
        while done < count {
            // SAFETY: outgoing headers `done..count` were written just above: each points to one iovec inside `replies` and to
            // one address inside `peers`, alive and not borrowed otherwise during the call.
            let n = unsafe {
                libc::sendmmsg(
                    fd,
                    self.outgoing_headers[done..].as_mut_ptr(),
                    (count - done) as u32,
                    libc::MSG_NOSIGNAL,
                )
            };
            match usize::try_from(n) {
                Ok(n) if n > 0 => {
                    done += n;
                    sent += n;
                }
                // Only the first of the rest failed: go on behind it.
                _ if io::Error::last_os_error().kind() == io::ErrorKind::Interrupted => {}
                _ => done += 1,
            }
        }
        sent
    }
}

#[expect(unsafe_code, reason = "sockaddr_storage is a C union in all but name")]
fn to_address(storage: &libc::sockaddr_storage) -> Option<SocketAddr> {
    match i32::from(storage.ss_family) {
        libc::AF_INET => {
            // SAFETY: the kernel set the family AF_INET, and sockaddr_storage is larger than and aligned for sockaddr_in.
            let v4 = unsafe { &*(&raw const *storage).cast::<libc::sockaddr_in>() };
            Some(SocketAddrV4::new(Ipv4Addr::from(u32::from_be(v4.sin_addr.s_addr)), u16::from_be(v4.sin_port)).into())
        }
        libc::AF_INET6 => {
            // SAFETY: as above, with AF_INET6 and sockaddr_in6.
            let v6 = unsafe { &*(&raw const *storage).cast::<libc::sockaddr_in6>() };
            let ip = Ipv6Addr::from(v6.sin6_addr.s6_addr);
            Some(SocketAddrV6::new(ip, u16::from_be(v6.sin6_port), v6.sin6_flowinfo, v6.sin6_scope_id).into())
        }
        _ => None,
    }
}

/// Sends all new datagrams for the sockets that share this one's address (`SO_REUSEPORT`) to the one that was bound as
/// number `index` among them, from 0. While there are not so many, the kernel spreads them as before.
#[expect(unsafe_code, reason = "no safe wrapper for SO_ATTACH_REUSEPORT_CBPF")]
pub fn steer(socket: impl AsFd, index: u32) -> io::Result<()> {
    // BPF_RET | BPF_K: the program's result is the number.
    let mut filter = [libc::sock_filter { code: 0x06, jt: 0, jf: 0, k: index }];
    let program = libc::sock_fprog { len: 1, filter: filter.as_mut_ptr() };
    // SAFETY: socket(7): the option takes a sock_fprog, whose filter is one instruction that lives until the call returns.
    let done = unsafe {
        libc::setsockopt(
            socket.as_fd().as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_ATTACH_REUSEPORT_CBPF,
            (&raw const program).cast(),
            size_of::<libc::sock_fprog>() as libc::socklen_t,
        )
    };
    if done == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::{net::UdpSocket, time::Duration};

    fn echo(address: &str) {
        let server = UdpSocket::bind(address).unwrap();
        let clients: Vec<_> = (0..3).map(|_| UdpSocket::bind(address).unwrap()).collect();
        for (i, c) in clients.iter().enumerate() {
            c.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
            c.send_to(&vec![i as u8; 20 * (i + 1)], server.local_addr().unwrap()).unwrap();
        }
        let mut batch = PacketBatch::new(8, 50);
        let mut seen = 0;
        while seen < 3 {
            let n = batch.receive(&server).unwrap();
            for i in 0..n {
                assert!(clients.iter().any(|c| c.local_addr().ok() == batch.peer(i)));
                let cut = batch.truncated(i);
                let (packet, room) = batch.packet(i);
                let (packet, length) = (packet.to_vec(), packet.len());
                assert_eq!(cut, packet[0] == 2);
                room[..length].copy_from_slice(&packet);
                // The middle client gets no reply.
                if packet[0] != 1 {
                    batch.reply(i, length);
                }
            }
            assert!(batch.send(&server) <= n);
            seen += n;
        }
        let mut buffer = [9; 100];
        assert_eq!(clients[0].recv(&mut buffer).unwrap(), 20);
        assert_eq!(clients[2].recv(&mut buffer).unwrap(), 50);
        assert!(buffer[..50].iter().all(|b| *b == 2));
        clients[1].set_nonblocking(true).unwrap();
        assert!(clients[1].recv(&mut buffer).is_err());
    }

    #[test]
    fn datagrams_come_and_go_in_batches() {
        echo("127.0.0.1:0");
        echo("[::1]:0");
    }
}
