//! The kernel's word on real connections, in every state that matters.
#![forbid(unsafe_code)]

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use peer::{PeerError, State, TcpPeers};

const NOBODY: u32 = 65534;

fn listener() -> (TcpListener, SocketAddr) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    (listener, address)
}

fn ends(stream: &TcpStream) -> (SocketAddr, SocketAddr) {
    (stream.local_addr().unwrap(), stream.peer_addr().unwrap())
}

fn me() -> u32 {
    nix::unistd::geteuid().as_raw()
}

/// Waits for the kernel, at most five seconds, without guessing how long it takes.
fn eventually<T>(mut probe: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + Duration::from_secs(5);
    loop {
        if let Some(value) = probe() {
            return value;
        }
        assert!(Instant::now() < deadline, "it did not happen within five seconds");
        std::thread::yield_now();
    }
}

/// A connection of another uid, open until its standard input ends. `None` if this test is not root's.
fn as_nobody(address: SocketAddr) -> Option<Child> {
    if me() != 0 {
        return None;
    }
    let script = format!("exec 3<>/dev/tcp/{}/{}; read -r _", address.ip(), address.port());
    let child = Command::new("bash").args(["-c", &script]).uid(NOBODY).gid(NOBODY).stdin(Stdio::piped()).spawn();
    Some(child.unwrap())
}

#[test]
fn an_established_connection_has_its_makers_uid() {
    let (listener, address) = listener();
    let client = TcpStream::connect(address).unwrap();
    let (server, _) = listener.accept().unwrap();
    let peers = TcpPeers::new().unwrap();
    let (local, peer) = ends(&server);
    let owner = peers.owner(local, peer).unwrap();
    assert_eq!(owner.uid, me());
    // The other end of the client's socket is ours: another inode.
    let (local, peer) = ends(&client);
    assert_ne!(peers.owner(local, peer).unwrap().inode, owner.inode);
}

#[test]
#[cfg_attr(not(is_root), ignore = "connects as another uid: run this test as root")]
fn another_users_connection_has_that_users_uid() {
    let (listener, address) = listener();
    let mut child = as_nobody(address).expect("this test is not root's");
    let (server, _) = listener.accept().unwrap();
    let (local, peer) = ends(&server);
    assert_eq!(TcpPeers::new().unwrap().owner(local, peer).unwrap().uid, NOBODY);
    drop(child.stdin.take());
    child.wait().unwrap();
}

#[test]
fn a_connection_that_its_process_left_is_nobodys() {
    let (listener, address) = listener();
    let peers = TcpPeers::new().unwrap();
    let client = TcpStream::connect(address).unwrap();
    let (mut server, _) = listener.accept().unwrap();
    let (local, peer) = ends(&server);
    drop(client);
    assert_eq!(server.read(&mut [0]).unwrap(), 0);
    let raw = eventually(|| peers.lookup(peer, local).unwrap().filter(|found| found.inode == 0));
    assert_eq!(raw.uid, 0, "the trap that this crate guards against is gone");
    assert!(matches!(peers.owner(local, peer), Err(PeerError::NotHeld { .. })));
}

#[test]
fn time_wait_is_never_taken_for_root() {
    let (listener, address) = listener();
    let peers = TcpPeers::new().unwrap();
    let child = as_nobody(address);
    let client = child.is_none().then(|| TcpStream::connect(address).unwrap());
    let (mut server, _) = listener.accept().unwrap();
    let (local, peer) = ends(&server);
    drop(client);
    if let Some(mut child) = child {
        assert_eq!(peers.owner(local, peer).unwrap().uid, NOBODY);
        drop(child.stdin.take());
        child.wait().unwrap();
    }
    // The client closed first: once the server has closed too, its socket waits in TIME_WAIT.
    assert_eq!(server.read(&mut [0]).unwrap(), 0);
    drop(server);
    let raw = eventually(|| peers.lookup(peer, local).unwrap().filter(|found| found.state == State::TIME_WAIT));
    assert_eq!((raw.uid, raw.inode), (0, 0));
    assert!(matches!(peers.owner(local, peer), Err(PeerError::NotHeld { state: State::TIME_WAIT, .. })));
}

#[test]
fn an_end_that_nobody_accepted_is_nobodys() {
    let (_listener, address) = listener();
    let client = TcpStream::connect(address).unwrap();
    let (local, peer) = ends(&client);
    let peers = TcpPeers::new().unwrap();
    // The other end is established, and waits in the listener's queue: no process has a file for it.
    let raw = peers.lookup(peer, local).unwrap().unwrap();
    assert_eq!((raw.state, raw.inode, raw.uid), (State::ESTABLISHED, 0, 0));
    assert!(matches!(peers.owner(local, peer), Err(PeerError::NotHeld { .. })));
}

#[test]
fn a_half_closed_connection_is_refused() {
    let (listener, address) = listener();
    let client = TcpStream::connect(address).unwrap();
    let (mut server, _) = listener.accept().unwrap();
    let (local, peer) = ends(&server);
    client.shutdown(Shutdown::Write).unwrap();
    assert_eq!(server.read(&mut [0]).unwrap(), 0);
    assert!(matches!(TcpPeers::new().unwrap().owner(local, peer), Err(PeerError::NotHeld { .. })));
}

#[test]
fn a_listener_on_the_ports_is_not_the_connection() {
    let (_listener, address) = listener();
    let (_other, elsewhere) = self::listener();
    let error = TcpPeers::new().unwrap().owner(elsewhere, address).unwrap_err();
    assert!(matches!(error, PeerError::NotHere { .. }), "{error}");
}

#[test]
fn a_mapped_ipv4_client_is_found() {
    let (listener, address) = listener();
    let mapped = SocketAddr::new("::ffff:127.0.0.1".parse().unwrap(), address.port());
    let mut client = TcpStream::connect(mapped).unwrap();
    assert!(client.local_addr().unwrap().is_ipv6());
    let (server, _) = listener.accept().unwrap();
    let (local, peer) = ends(&server);
    assert_eq!(TcpPeers::new().unwrap().owner(local, peer).unwrap().uid, me());
    client.write_all(b"x").unwrap();
}

#[test]
fn ipv6_connections_are_found() {
    let Ok(listener) = TcpListener::bind("[::1]:0") else {
        eprintln!("no IPv6 here: not tested");
        return;
    };
    let _client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    let (server, _) = listener.accept().unwrap();
    let (local, peer) = ends(&server);
    assert_eq!(TcpPeers::new().unwrap().owner(local, peer).unwrap().uid, me());
}

#[test]
fn a_listener_has_an_owner_and_a_free_port_has_none() {
    let peers = TcpPeers::new().unwrap();
    let (listener, address) = listener();
    assert_eq!(peers.listener_owner(address).unwrap(), Some(me()));
    drop(listener);
    assert_eq!(peers.listener_owner(address).unwrap(), None);
    // A wildcard takes connections to every address.
    let wildcard = TcpListener::bind("0.0.0.0:0").unwrap();
    let address = SocketAddr::new("127.0.0.1".parse().unwrap(), wildcard.local_addr().unwrap().port());
    assert_eq!(peers.listener_owner(address).unwrap(), Some(me()));
}

#[test]
fn threads_share_one_netlink_socket() {
    let peers = TcpPeers::new().unwrap();
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                let (listener, address) = listener();
                for _ in 0..200 {
                    let _client = TcpStream::connect(address).unwrap();
                    let (server, _) = listener.accept().unwrap();
                    let (local, peer) = ends(&server);
                    assert_eq!(peers.owner(local, peer).unwrap().uid, me());
                }
            });
        }
    });
}
