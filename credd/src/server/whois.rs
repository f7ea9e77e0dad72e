//! Who is on the other end of a connection: the kernel's word, behind a trait so that tests can say it.

use std::net::SocketAddr;

use credd_protocol::Uid;

/// Says who holds the other end.
pub trait WhoIs {
    /// The uid of the process that holds the other end of the connection that is `local` here and `peer` there.
    ///
    /// # Errors
    /// A sentence: nobody answers for it, so nobody is served.
    fn caller(&self, local: SocketAddr, peer: SocketAddr) -> Result<Uid, String>;
}

/// Asks the kernel.
#[derive(Debug)]
pub struct Kernel(peer::TcpPeers);

impl Kernel {
    /// Opens the socket to ask on.
    ///
    /// # Errors
    /// The kernel or a sandbox does not let it.
    pub fn new() -> std::io::Result<Self> {
        peer::TcpPeers::new().map(Kernel)
    }
}

impl WhoIs for Kernel {
    fn caller(&self, local: SocketAddr, peer: SocketAddr) -> Result<Uid, String> {
        self.0.owner(local, peer).map(|owner| Uid(owner.uid)).map_err(|e| e.to_string())
    }
}
