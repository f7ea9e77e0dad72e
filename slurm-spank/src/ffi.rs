//! The raw bindings: generated from the installed header, or the committed ones (`build.rs` decides).
#![allow(missing_docs, non_camel_case_types, non_upper_case_globals, dead_code, unreachable_pub)]

#[cfg(generated_bindings)]
include!(concat!(env!("OUT_DIR"), "/bindings.rs"));

#[cfg(not(generated_bindings))]
include!("bindings.rs");

#[cfg(test)]
mod tests {
    /// The items of a Rust text without layout: comments, blanks and trailing commas do not count.
    #[cfg(generated_bindings)]
    fn items(text: &str) -> std::collections::BTreeSet<String> {
        let code: String = text.lines().filter(|line| !line.trim_start().starts_with("//")).collect();
        let dense: String = code.split_whitespace().collect::<Vec<_>>().join(" ");
        let dense = dense.replace(", )", ")").replace(", }", "}").replace(",)", ")").replace("( ", "(");
        dense.split(';').map(|item| item.replace(' ', "")).collect()
    }

    /// A newer Slurm may append items; what is committed must be in its header unchanged.
    #[test]
    #[cfg_attr(
        not(generated_bindings),
        ignore = "no bindings were generated: no slurm/spank.h, no libclang, or the feature is off"
    )]
    fn committed_bindings_agree_with_the_installed_header() {
        #[cfg(generated_bindings)]
        {
            let generated = items(include_str!(concat!(env!("OUT_DIR"), "/bindings.rs")));
            let committed = items(include_str!("bindings.rs"));
            let missing: Vec<_> = committed.difference(&generated).collect();
            assert!(missing.is_empty(), "not in the header: {missing:#?}");
        }
    }
}
