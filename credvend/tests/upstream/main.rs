//! A cluster's credvend before a central vending API: another credvend over TLS with real S3 calls on the pretend AWS, and
//! the original deployment of the IAM Credentials API (v1) with its quirks.
#![forbid(unsafe_code)]

#[path = "../pretend_aws/mod.rs"]
mod pretend_aws;

mod hostile;
mod original_deployment;
mod server;
mod service;
mod two_credvends;
