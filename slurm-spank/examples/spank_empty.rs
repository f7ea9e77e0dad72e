//! The smallest SPANK plugin: what any plugin costs, for comparison.
#![allow(non_upper_case_globals, missing_docs)]

use std::ffi::{c_char, c_int, c_uint};

use slurm_spank::ffi::spank_t;

#[unsafe(no_mangle)]
pub static plugin_name: [u8; 6] = *b"empty\0";
#[unsafe(no_mangle)]
pub static plugin_type: [u8; 6] = *b"spank\0";
#[unsafe(no_mangle)]
pub static plugin_version: c_uint = slurm_spank::SLURM_VERSION_NUMBER;

/// Lets everything go on.
#[unsafe(no_mangle)]
pub extern "C" fn slurm_spank_init(_: spank_t, _: c_int, _: *mut *mut c_char) -> c_int {
    0
}
