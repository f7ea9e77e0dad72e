//! A cluster's credvend before a central vending API: another credvend over TLS with real S3 calls on the pretend AWS, and
//! the first version's own deployment with its quirks.
#![forbid(unsafe_code)]

#[path = "../pretend_aws/mod.rs"]
mod pretend_aws;

mod first_version;
mod hostile;
mod server;
mod service;
mod two_credvends;
