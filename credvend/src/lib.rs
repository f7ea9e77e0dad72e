//! `credvend`, the central vending service. `main.rs` is three lines; everything is here so that tests reach it.
//!
//! | module | what |
//! |---|---|
//! | [`cli`] | the command line; `serve` puts the parts together |
//! | [`config`] | `credvend.toml` |
//! | [`server`] | the faces: who may ask for what, over which socket |
//! | [`vending`] | what it does: every decision |
//! | [`store`], [`attest`], [`source`], [`deny`] | its four seams, traits with their implementations below them |
//! | [`projects`] | which project has which roles |
//! | [`session_name`] | the names under which AWS sees jobs |
//! | [`audit`], [`metrics`] | what is put on record, and what is counted |
//! | [`refusal`] | every way to say no |
//! | [`events`] | what nodes are told at once |
//! | [`rates`] | how often each address or node may do something |
//! | [`checks`], [`disk`] | what would refuse every job although the configuration is valid |
#![forbid(unsafe_code)]

pub mod attest;
pub mod audit;
pub mod checks;
pub mod cli;
pub mod clock;
pub mod config;
pub mod deny;
pub mod disk;
pub mod events;
pub mod metrics;
pub mod projects;
pub mod rates;
pub mod refusal;
pub mod server;
pub mod session_name;
pub mod source;
pub mod store;
pub mod vending;
