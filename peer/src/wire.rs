//! The bytes of a `SOCK_DIAG_BY_FAMILY` request for one TCP socket, and of its answer.
//!
//! Layouts from linux/netlink.h, linux/sock_diag.h and linux/inet_diag.h: header 16 bytes, request
//! (`inet_diag_req_v2`) 56, answer (`inet_diag_msg`) 72, attributes after it. Ports and addresses are in network order,
//! the rest in the machine's. The attribute with the cgroup need not be asked for (`idiag_ext` has no bit for it): a kernel
//! that knows it (5.8) and counts cgroups of sockets always sends it.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use crate::CgroupId;

const NLMSG_ERROR: u16 = 2;
const NLM_F_REQUEST: u16 = 1;
const SOCK_DIAG_BY_FAMILY: u16 = 20;
const AF_INET: u8 = 2;
const AF_INET6: u8 = 10;
const IPPROTO_TCP: u8 = 6;

const HEADER_BYTES: usize = 16;
pub const REQUEST_BYTES: usize = HEADER_BYTES + 56;
const ANSWER_BYTES: usize = HEADER_BYTES + 72;

const INET_DIAG_CGROUP_ID: u16 = 21;
/// The two high bits of an attribute's type say how it is written.
const ATTRIBUTE_TYPE: u16 = 0x3fff;
const ATTRIBUTE_HEADER_BYTES: usize = 4;

/// A state of tcp(7), with the kernel's number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct State(pub u8);

impl State {
    /// Both ends may send.
    pub const ESTABLISHED: State = State(1);
    /// Closed by its process, kept by the kernel for stray segments. Reads as uid 0.
    pub const TIME_WAIT: State = State(6);
    /// Waits for connections.
    pub const LISTEN: State = State(10);
}

/// A TCP socket as the kernel describes it. **`uid` is 0 for a socket that no process holds**: [`crate::TcpPeers::owner`]
/// is the way to ask who it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Tcp {
    /// The uid that made the socket, 0 if `inode` is 0.
    pub uid: u32,
    /// Of the socket's file; 0 if no process holds it.
    pub inode: u32,
    /// The cgroup v2 in which it was made; `None` if the kernel does not say.
    pub cgroup: Option<CgroupId>,
    /// The state.
    pub state: State,
    /// The socket's own address.
    pub local: SocketAddr,
    /// The address it is connected to.
    pub remote: SocketAddr,
}

/// What came back.
#[derive(Debug, PartialEq, Eq)]
pub enum Answer {
    /// The socket.
    Found(Tcp),
    /// The kernel refused, with this errno.
    Errno(i32),
    /// An answer to an earlier question.
    Stale,
}

/// The request for the socket with this local and this remote address.
pub fn request(sequence: u32, local: SocketAddr, remote: SocketAddr) -> [u8; REQUEST_BYTES] {
    let (local, remote) = (plain(local), plain(remote));
    let mut bytes = [0u8; REQUEST_BYTES];
    let mut put = |at: usize, part: &[u8]| bytes[at..at + part.len()].copy_from_slice(part);
    put(0, &(REQUEST_BYTES as u32).to_ne_bytes());
    put(4, &SOCK_DIAG_BY_FAMILY.to_ne_bytes());
    put(6, &NLM_F_REQUEST.to_ne_bytes());
    put(8, &sequence.to_ne_bytes());
    let family = if local.is_ipv4() { AF_INET } else { AF_INET6 };
    put(16, &[family, IPPROTO_TCP]);
    put(20, &u32::MAX.to_ne_bytes());
    put(24, &local.port().to_be_bytes());
    put(26, &remote.port().to_be_bytes());
    for (at, address) in [(28, local.ip()), (44, remote.ip())] {
        match address {
            IpAddr::V4(address) => put(at, &address.octets()),
            IpAddr::V6(address) => put(at, &address.octets()),
        }
    }
    // INET_DIAG_NOCOOKIE
    put(64, &[0xff; 8]);
    bytes
}

/// Reads an answer to the request with this sequence number; `None` if it is none.
pub fn answer(bytes: &[u8], sequence: u32) -> Option<Answer> {
    let length = u32_at(bytes, 0)? as usize;
    if length < HEADER_BYTES || length > bytes.len() {
        return None;
    }
    let bytes = &bytes[..length];
    if u32_at(bytes, 8)? != sequence {
        return Some(Answer::Stale);
    }
    match u16_at(bytes, 4)? {
        NLMSG_ERROR => {
            let errno = u32_at(bytes, HEADER_BYTES)?.cast_signed();
            Some(Answer::Errno(errno.checked_neg().filter(|errno| *errno > 0)?))
        }
        SOCK_DIAG_BY_FAMILY if bytes.len() >= ANSWER_BYTES => {
            let family = bytes[16];
            let address = |at: usize, port: usize| {
                let port = u16::from_be_bytes(bytes[port..port + 2].try_into().ok()?);
                let ip = match family {
                    AF_INET => IpAddr::V4(Ipv4Addr::from(<[u8; 4]>::try_from(&bytes[at..at + 4]).ok()?)),
                    AF_INET6 => IpAddr::V6(Ipv6Addr::from(<[u8; 16]>::try_from(&bytes[at..at + 16]).ok()?)),
                    _ => return None,
                };
                Some(plain(SocketAddr::new(ip, port)))
            };
            Some(Answer::Found(Tcp {
                state: State(bytes[17]),
                local: address(24, 20)?,
                remote: address(40, 22)?,
                uid: u32_at(bytes, 80)?,
                inode: u32_at(bytes, 84)?,
                cgroup: cgroup(&bytes[ANSWER_BYTES..]),
            }))
        }
        _ => None,
    }
}

/// The cgroup's id among the attributes of an answer.
fn cgroup(mut attributes: &[u8]) -> Option<CgroupId> {
    loop {
        let length = usize::from(u16_at(attributes, 0)?);
        let value = attributes.get(ATTRIBUTE_HEADER_BYTES..length)?;
        if u16_at(attributes, 2)? & ATTRIBUTE_TYPE == INET_DIAG_CGROUP_ID {
            return Some(CgroupId(u64::from_ne_bytes(value.try_into().ok()?)));
        }
        // Each begins at a multiple of four.
        attributes = attributes.get(length.next_multiple_of(4)..)?;
    }
}

/// Without scope and flow; IPv4 in IPv6 as IPv4, which is how the kernel looks such sockets up (JVMs use them).
pub fn plain(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}

fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_ne_bytes(bytes.get(at..at + 2)?.try_into().ok()?))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn an_answer() -> Vec<u8> {
        let mut bytes = vec![0u8; ANSWER_BYTES];
        bytes[..4].copy_from_slice(&(ANSWER_BYTES as u32).to_ne_bytes());
        bytes[4..6].copy_from_slice(&SOCK_DIAG_BY_FAMILY.to_ne_bytes());
        bytes[8..12].copy_from_slice(&7u32.to_ne_bytes());
        bytes[16..18].copy_from_slice(&[AF_INET, 1]);
        bytes[20..24].copy_from_slice(&[0x27, 0x0f, 0, 80]);
        bytes[24..28].copy_from_slice(&[127, 0, 0, 1]);
        bytes[40..44].copy_from_slice(&[127, 0, 0, 2]);
        bytes[80..84].copy_from_slice(&1001u32.to_ne_bytes());
        bytes[84..88].copy_from_slice(&5u32.to_ne_bytes());
        bytes
    }

    #[test]
    fn an_answer_is_read() {
        let found = Tcp {
            uid: 1001,
            inode: 5,
            cgroup: None,
            state: State::ESTABLISHED,
            local: "127.0.0.1:9999".parse().unwrap(),
            remote: "127.0.0.2:80".parse().unwrap(),
        };
        assert_eq!(answer(&an_answer(), 7), Some(Answer::Found(found)));
        assert_eq!(answer(&an_answer(), 8), Some(Answer::Stale));
        assert_eq!(answer(&an_answer()[..80], 7), None);
    }

    fn with_attributes(attributes: &[u8]) -> Option<CgroupId> {
        let mut bytes = an_answer();
        bytes.extend(attributes);
        let length = bytes.len() as u32;
        bytes[..4].copy_from_slice(&length.to_ne_bytes());
        let Some(Answer::Found(found)) = answer(&bytes, 7) else { panic!("an answer") };
        found.cgroup
    }

    #[test]
    fn the_cgroup_is_found_among_the_attributes() {
        let attribute = |kind: u16, value: &[u8]| {
            let mut bytes = ((ATTRIBUTE_HEADER_BYTES + value.len()) as u16).to_ne_bytes().to_vec();
            bytes.extend(kind.to_ne_bytes());
            bytes.extend(value);
            bytes.resize(bytes.len().next_multiple_of(4), 0);
            bytes
        };
        let (shutdown, cgroup) = (attribute(8, &[0]), attribute(INET_DIAG_CGROUP_ID, &0x1_0000_0777u64.to_ne_bytes()));
        let id = Some(CgroupId(0x1_0000_0777));
        assert_eq!(with_attributes(&cgroup), id);
        assert_eq!(with_attributes(&[shutdown.clone(), cgroup.clone()].concat()), id);
        assert_eq!(with_attributes(&[cgroup.clone(), shutdown.clone()].concat()), id);
        for none in [
            &[][..],
            &shutdown,
            &cgroup[..8],
            &attribute(INET_DIAG_CGROUP_ID, &[1, 2, 3, 4]),
            &[0, 0, 0, 0],
            &[3, 0, 21, 0],
            &[255; 12],
        ] {
            assert_eq!(with_attributes(none), None, "{none:?}");
        }
    }

    proptest! {
        #[test]
        fn no_attributes_make_it_panic_or_loop(attributes in proptest::collection::vec(any::<u8>(), 0..100)) {
            let _ = with_attributes(&attributes);
        }

        #[test]
        fn no_bytes_make_the_parser_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200), sequence: u32) {
            let _ = answer(&bytes, sequence);
        }

        #[test]
        fn no_change_of_an_answer_makes_it_panic(at in 0usize..ANSWER_BYTES, byte: u8, cut in 0usize..=ANSWER_BYTES) {
            let mut bytes = an_answer();
            bytes[at] = byte;
            bytes.truncate(cut);
            let _ = answer(&bytes, 7);
        }
    }
}
