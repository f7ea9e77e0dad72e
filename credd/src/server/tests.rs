//! The whole server over real sockets: jobs speak HTTP to it, it speaks TLS to a credvend made here, and a keeper made
//! here signs. Only the wall clock and, in some tests, the kernel's word on the caller are made up.

mod bed;
mod clients;
mod denials;
mod explorer;
mod fake_credvend;
mod foreign_tokens;
mod house;
mod late;
mod lives;
mod metrics;
mod outages;
mod own;
mod reload;
mod sockets;
mod taken_back;
mod tickets;
