//! `credvend`, the central vending service. `main.rs` is three lines; everything is here so that tests reach it.
//!
//! | module | what |
//! |---|---|
//! | [`vending`] | what it does: every decision |
//! | [`store`], [`attest`], [`source`], [`deny`] | its four seams, traits with their implementations below them |
//! | [`projects`] | which project has which roles |
//! | [`session_name`] | the names under which AWS sees jobs |
//! | [`refusal`] | every way to say no |
//! | [`events`] | what nodes are told at once |
#![forbid(unsafe_code)]

pub mod attest;
pub mod clock;
pub mod deny;
pub mod events;
pub mod projects;
pub mod refusal;
pub mod session_name;
pub mod source;
pub mod store;
pub mod vending;
