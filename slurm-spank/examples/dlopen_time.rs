//! `dlopen_time LIBRARY… OBJECT`: loads the libraries, then the object as Slurm loads a plugin, and prints how many
//! nanoseconds that took. Every run is a fresh process.

use std::ffi::{CStr, CString, c_char, c_int, c_void};
use std::time::Instant;

#[link(name = "dl")]
unsafe extern "C" {
    fn dlopen(path: *const c_char, flags: c_int) -> *mut c_void;
    fn dlerror() -> *const c_char;
}

const RTLD_LAZY: c_int = 1;
const RTLD_GLOBAL: c_int = 0x100;

fn load(path: &str, flags: c_int) -> Result<u128, String> {
    let name = CString::new(path).map_err(|error| error.to_string())?;
    let start = Instant::now();
    // SAFETY: dlopen(3): a C string. The objects' own constructors are Rust's and Slurm's.
    let handle = unsafe { dlopen(name.as_ptr(), flags) };
    let took = start.elapsed().as_nanos();
    if handle.is_null() {
        // SAFETY: dlerror(3): a C string after a failure, valid until the next call.
        return Err(unsafe { CStr::from_ptr(dlerror()) }.to_string_lossy().into_owned());
    }
    Ok(took)
}

fn main() -> Result<(), String> {
    let paths: Vec<String> = std::env::args().skip(1).collect();
    let Some((object, libraries)) = paths.split_last() else { return Err("dlopen_time LIBRARY… OBJECT".into()) };
    for library in libraries {
        load(library, RTLD_LAZY | RTLD_GLOBAL)?;
    }
    println!("{}", load(object, RTLD_LAZY)?);
    Ok(())
}
