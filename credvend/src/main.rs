//! `credvend`, the central vending service. Under construction.
#![forbid(unsafe_code)]

fn main() {}
