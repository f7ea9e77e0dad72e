//! Which Slurm release a text names. The build script includes this file; its tests run with the library's.

/// Major, minor, micro.
pub type Release = (u32, u32, u32);

/// `24.11.5`, `24.11`, also `24.11.5-1` and `24.11.0-0rc1`.
pub fn parse_release(text: &str) -> Option<Release> {
    let mut parts = text.trim().split('-').next()?.split('.').map(|part| part.parse::<u32>().ok().filter(|n| *n < 256));
    let release = (parts.next()??, parts.next()??, parts.next().unwrap_or(Some(0))?);
    parts.next().is_none().then_some(release)
}

/// What `slurm/slurm_version.h` defines as `SLURM_VERSION_NUMBER`: `0x180b05` is 24.11.5.
pub fn release_of_header(text: &str) -> Option<Release> {
    let line = text.lines().find_map(|line| line.strip_prefix("#define SLURM_VERSION_NUMBER"))?;
    let number = u32::from_str_radix(line.trim().strip_prefix("0x")?, 16).ok()?;
    Some((number >> 16, number >> 8 & 0xff, number & 0xff))
}

/// The number that Slurm compares `plugin_version` with.
pub fn version_number((major, minor, micro): Release) -> u32 {
    (major << 16) + (minor << 8) + micro
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn releases_are_read_as_people_and_packages_write_them() {
        for (text, release) in [
            ("24.11.5", (24, 11, 5)),
            ("24.11", (24, 11, 0)),
            ("22.05.8", (22, 5, 8)),
            (" 25.05.0-1\n", (25, 5, 0)),
            ("24.11.0-0rc1", (24, 11, 0)),
        ] {
            assert_eq!(parse_release(text), Some(release), "{text:?}");
        }
        for text in ["", "24", "24.", "24.11.5.1", "24.11.x", "24.256.0", "24.-1", "v24.11", "slurm 24.11"] {
            assert_eq!(parse_release(text), None, "{text:?}");
        }
    }

    #[test]
    fn the_header_says_its_release() {
        let header = "/* generated */\n#define SLURM_VERSION_NUMBER 0x180b05\n#define SLURM_VERSION_MAJOR 24\n";
        assert_eq!(release_of_header(header), Some((24, 11, 5)));
        assert_eq!(release_of_header("#define SLURM_VERSION_NUMBER    0x160508\n"), Some((22, 5, 8)));
        for text in
            ["", "#define SLURM_VERSION_NUMBER\n", "#define SLURM_VERSION_NUMBER 1443077\n", "#define X 0x160508\n"]
        {
            assert_eq!(release_of_header(text), None, "{text:?}");
        }
    }

    #[test]
    fn the_number_is_the_headers_own() {
        for number in [0x160508, 0x180b05, 0x190500] {
            let header = format!("#define SLURM_VERSION_NUMBER {number:#08x}\n");
            assert_eq!(version_number(release_of_header(&header).unwrap()), number);
        }
    }
}
