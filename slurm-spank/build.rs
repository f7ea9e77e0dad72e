//! Chooses the bindings and the Slurm release.
//!
//! * Bindings: generated from the installed `slurm/spank.h` (feature `bindgen`), else the committed
//!   `src/bindings.rs`. A machine without the header or without libclang builds all the same, with a warning.
//! * Release: `CREDD_SLURM_VERSION=24.11.5` if set, else the installed `slurm/slurm_version.h`, else the committed
//!   bindings' own, with a warning. Slurm loads a plugin only if its major.minor is Slurm's own.
//! * `CREDD_SLURM_INCLUDE` names the directory that holds `slurm/`, where it is not a usual one.
#![forbid(unsafe_code)]

use std::env;
use std::fs;
use std::path::{Path, PathBuf};

use release::{Release, parse_release, release_of_header, version_number};

#[path = "release.rs"]
mod release;

/// The release whose headers made `src/bindings.rs`.
const COMMITTED: Release = (22, 5, 8);

fn main() {
    for variable in ["CREDD_SLURM_VERSION", "CREDD_SLURM_INCLUDE"] {
        println!("cargo:rerun-if-env-changed={variable}");
    }
    println!("cargo:rerun-if-changed=build.rs");
    println!("cargo:rerun-if-changed=release.rs");
    println!("cargo:rerun-if-changed=src/bindings.rs");
    println!("cargo:rustc-check-cfg=cfg(generated_bindings)");
    let out = PathBuf::from(env::var_os("OUT_DIR").expect("cargo sets OUT_DIR"));

    let include = include_dir();
    println!("cargo:rerun-if-changed={}", include.join("slurm/spank.h").display());
    println!("cargo:rerun-if-changed={}", include.join("slurm/slurm_version.h").display());

    let release = release(&include);
    let ((major, minor, micro), number) = (release, version_number(release));
    let version = format!(
        "/// What Slurm compares `plugin_version` with: of Slurm {major}.{minor:02}.{micro}.\n\
         pub const SLURM_VERSION_NUMBER: u32 = {number:#x};\n"
    );
    fs::write(out.join("version.rs"), version).expect("OUT_DIR is writable");

    match generate(&include) {
        Ok(Some(text)) => {
            fs::write(out.join("bindings.rs"), text).expect("OUT_DIR is writable");
            println!("cargo:rustc-cfg=generated_bindings");
        }
        Ok(None) => {}
        Err(why) => println!("cargo:warning=using the committed SPANK bindings: {why}"),
    }
}

fn include_dir() -> PathBuf {
    if let Some(dir) = env::var_os("CREDD_SLURM_INCLUDE") {
        return dir.into();
    }
    let usual = ["/usr/include", "/usr/local/include", "/opt/slurm/include"];
    let found = usual.iter().find(|dir| Path::new(dir).join("slurm/spank.h").exists());
    PathBuf::from(found.unwrap_or(&usual[0]))
}

fn release(include: &Path) -> Release {
    if let Ok(text) = env::var("CREDD_SLURM_VERSION") {
        return parse_release(&text)
            .unwrap_or_else(|| panic!("CREDD_SLURM_VERSION={text:?} is not a Slurm release such as 24.11.5"));
    }
    let header = include.join("slurm/slurm_version.h");
    match fs::read_to_string(&header).ok().as_deref().and_then(release_of_header) {
        Some(release) => release,
        None => {
            let (major, minor, micro) = COMMITTED;
            println!(
                "cargo:warning={} is missing: this plugin is for Slurm {major}.{minor:02}.{micro} only; \
                 set CREDD_SLURM_VERSION for another release",
                header.display()
            );
            COMMITTED
        }
    }
}

#[cfg(not(feature = "bindgen"))]
fn generate(_: &Path) -> Result<Option<String>, String> {
    Ok(None)
}

#[cfg(feature = "bindgen")]
fn generate(include: &Path) -> Result<Option<String>, String> {
    let header = include.join("slurm/spank.h");
    if !header.exists() {
        return Err(format!("{} is missing", header.display()));
    }
    let include = include.display().to_string();
    // bindgen panics where it finds no libclang.
    std::panic::set_hook(Box::new(|_| {}));
    let generated = std::panic::catch_unwind(|| {
        bindgen::builder()
            .header(header.display().to_string())
            .clang_args(["-I", &include])
            .allowlist_function(
                "spank_(context|option_register|option_getopt|get_item|getenv|setenv|unsetenv|strerror)|\
                 slurm_(error|info|verbose|debug|spank_log)",
            )
            .allowlist_type("spank_(option|item|context|t|opt_cb_f)")
            // A hundred unrelated numbers, whose names moved between releases; only zero is relied on.
            .blocklist_type("spank_err_t|spank_err|slurm_err_t")
            .raw_line("pub type spank_err_t = ::core::ffi::c_uint;")
            .default_enum_style(bindgen::EnumVariation::Consts)
            .prepend_enum_name(false)
            .generate_comments(false)
            .disable_header_comment()
            .use_core()
            .rust_edition(bindgen::RustEdition::Edition2024)
            .formatter(bindgen::Formatter::Rustfmt)
            .generate()
            .map(|bindings| bindings.to_string())
    });
    let _ = std::panic::take_hook();
    match generated {
        Ok(Ok(text)) => Ok(Some(text)),
        Ok(Err(error)) => Err(format!("bindgen over {}: {error}", header.display())),
        Err(_) => Err("libclang is missing (Debian: libclang-dev)".into()),
    }
}
