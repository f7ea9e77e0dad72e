//! The variables by which every AWS SDK finds its container credentials, and what must not be inherited of them.

use credd_protocol::record::{JobRecord, RUN_DIR, RunDir};
use credd_protocol::{Region, endpoint, secret::TOKEN_PREFIX};
use slurm_spank::{Environment, Error};

/// Where to ask.
pub const FULL_URI: &str = "AWS_CONTAINER_CREDENTIALS_FULL_URI";
/// An older way to say where; most SDKs prefer it.
pub const RELATIVE_URI: &str = "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI";
/// What to show there.
pub const TOKEN: &str = "AWS_CONTAINER_AUTHORIZATION_TOKEN";
/// A file with the same; most SDKs prefer it.
pub const TOKEN_FILE: &str = "AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE";

const REGIONS: [&str; 2] = ["AWS_REGION", "AWS_DEFAULT_REGION"];
const PROXIES: [&str; 6] = ["http_proxy", "HTTP_PROXY", "https_proxy", "HTTPS_PROXY", "all_proxy", "ALL_PROXY"];
const NO_PROXY: [&str; 2] = ["NO_PROXY", "no_proxy"];
const LOOPBACK: &str = "127.0.0.1";

/// Removes what the plugin set for a parent job: its URL, its token, its token file. A user's own are left alone.
///
/// # Errors
/// The first variable that could not be removed; the others are tried all the same.
pub fn clean_inherited(env: &mut dyn Environment, run_dir: &RunDir) -> Result<(), Error> {
    let uri = env.get(FULL_URI).is_some_and(|value| std::str::from_utf8(&value).is_ok_and(endpoint::is_ours));
    let token = env.get(TOKEN).is_some_and(|value| value.starts_with(TOKEN_PREFIX.as_bytes()));
    let file = env.get(TOKEN_FILE).is_some_and(|value| is_our_token_file(&value, run_dir));
    let mut result = Ok(());
    for (name, ours) in [(FULL_URI, uri), (TOKEN, token), (TOKEN_FILE, file)] {
        if ours {
            result = result.and(env.unset(name));
        }
    }
    result
}

fn is_our_token_file(value: &[u8], run_dir: &RunDir) -> bool {
    [run_dir.tokens(), RunDir::new(RUN_DIR).tokens()].iter().any(|tokens| {
        let tokens = tokens.as_os_str().as_encoded_bytes();
        value.strip_prefix(tokens).is_some_and(|rest| rest.starts_with(b"/"))
    })
}

/// Sets everything a step of the job needs. The user's own container settings give way: two half-set ones serve nobody.
///
/// # Errors
/// The first variable that Slurm did not take; a step may then have some of them.
pub fn inject(
    env: &mut dyn Environment,
    record: &JobRecord,
    port: u16,
    token_file: Option<&[u8]>,
) -> Result<(), Error> {
    let uri =
        endpoint::full_uri(port, record.job, &record.cluster, record.account.as_ref(), &record.user, &record.node);
    env.unset(RELATIVE_URI)?;
    match token_file {
        Some(path) => env.set(TOKEN_FILE, path)?,
        None => env.unset(TOKEN_FILE)?,
    }
    env.set(FULL_URI, uri.as_bytes())?;
    env.set(TOKEN, record.token.expose().as_bytes())?;
    if let Some(region) = &record.options.region {
        set_region(env, region)?;
    }
    bypass_proxy(env)
}

/// Both names, since botocore ignores the first; neither if the job has chosen with one of them.
fn set_region(env: &mut dyn Environment, region: &Region) -> Result<(), Error> {
    if REGIONS.iter().any(|name| is_set(env, name)) {
        return Ok(());
    }
    REGIONS.iter().try_for_each(|name| env.set(name, region.as_str().as_bytes()))
}

/// Where a proxy is set, some SDKs would send the job's token to it.
fn bypass_proxy(env: &mut dyn Environment) -> Result<(), Error> {
    if !PROXIES.iter().any(|name| is_set(env, name)) {
        return Ok(());
    }
    let values = NO_PROXY.map(|name| env.get(name).filter(|value| !value.is_empty()));
    for (at, name) in NO_PROXY.iter().enumerate() {
        // A client reads one of the two: each must also say what the other did.
        let old = values[at].as_ref().or(values[1 - at].as_ref());
        let new = match old {
            Some(old) if covers_loopback(old) && values[at].is_some() => continue,
            Some(old) if covers_loopback(old) => old.clone(),
            Some(old) => [old, b",".as_slice(), LOOPBACK.as_bytes()].concat(),
            None => LOOPBACK.as_bytes().to_vec(),
        };
        env.set(name, &new)?;
    }
    Ok(())
}

fn covers_loopback(no_proxy: &[u8]) -> bool {
    no_proxy.split(|b| *b == b',' || b.is_ascii_whitespace()).any(|item| item == LOOPBACK.as_bytes() || item == b"*")
}

fn is_set(env: &dyn Environment, name: &str) -> bool {
    env.get(name).is_some_and(|value| !value.is_empty())
}

/// Whether the job brings keys of its own, which every SDK prefers to the container credentials.
pub fn has_own_keys(env: &dyn Environment) -> bool {
    is_set(env, "AWS_ACCESS_KEY_ID")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scripted_job::record;
    use proptest::prelude::*;
    use std::collections::BTreeMap;

    type Map = BTreeMap<String, Vec<u8>>;

    fn env(pairs: &[(&str, &str)]) -> Map {
        pairs.iter().map(|(name, value)| ((*name).to_owned(), value.as_bytes().to_vec())).collect()
    }

    fn text(map: &Map, name: &str) -> String {
        String::from_utf8(map[name].clone()).unwrap()
    }

    #[test]
    fn a_parents_variables_go_and_a_users_own_stay() {
        let run_dir = RunDir::new("/run/other");
        let mut inherited = env(&[
            (FULL_URI, "http://127.0.0.1:9999/sessions/7/cluster/lab/project/p?roleSessionName=x"),
            (TOKEN, "credd1-0123"),
            (TOKEN_FILE, "/run/other/tokens/7"),
            ("AWS_REGION", "eu-west-1"),
        ]);
        clean_inherited(&mut inherited, &run_dir).unwrap();
        assert_eq!(inherited.keys().collect::<Vec<_>>(), ["AWS_REGION"]);

        let own = env(&[
            (FULL_URI, "http://169.254.170.23/v1/credentials"),
            (TOKEN, "my own"),
            (TOKEN_FILE, "/run/other/tokens-of-mine"),
            (RELATIVE_URI, "/v2/credentials/x"),
        ]);
        let mut cleaned = own.clone();
        clean_inherited(&mut cleaned, &run_dir).unwrap();
        assert_eq!(cleaned, own);
    }

    #[test]
    fn a_step_gets_url_token_and_nothing_half() {
        let record = record();
        let mut step =
            env(&[(RELATIVE_URI, "/x"), (TOKEN_FILE, "/home/a/token"), (FULL_URI, "http://169.254.170.23/x")]);
        inject(&mut step, &record, 9999, None).unwrap();
        let uri = "http://127.0.0.1:9999/sessions/12/cluster/lab/project/genomics?roleSessionName=lab-alice-n1";
        assert_eq!(text(&step, FULL_URI), uri);
        assert_eq!(text(&step, TOKEN), record.token.expose());
        assert_eq!(step.len(), 2);
        inject(&mut step, &record, 9999, Some(b"/run/credd/tokens/12")).unwrap();
        assert_eq!(text(&step, TOKEN_FILE), "/run/credd/tokens/12");
    }

    #[test]
    fn the_region_is_set_only_where_the_job_has_none() {
        let mut record = record();
        record.options.region = Some("eu-west-1".parse().unwrap());
        let mut step = env(&[]);
        inject(&mut step, &record, 1, None).unwrap();
        assert_eq!((text(&step, REGIONS[0]), text(&step, REGIONS[1])), ("eu-west-1".into(), "eu-west-1".into()));
        let mut step = env(&[("AWS_DEFAULT_REGION", "us-east-1")]);
        inject(&mut step, &record, 1, None).unwrap();
        assert!(!step.contains_key("AWS_REGION") && text(&step, "AWS_DEFAULT_REGION") == "us-east-1");
    }

    #[test]
    fn loopback_bypasses_a_proxy() {
        for (before, after) in [
            (vec![], None),
            (vec![("http_proxy", "p")], Some(("127.0.0.1", "127.0.0.1"))),
            (vec![("HTTP_PROXY", "p"), ("no_proxy", "a")], Some(("a,127.0.0.1", "a,127.0.0.1"))),
            (vec![("ALL_PROXY", "p"), ("NO_PROXY", "a"), ("no_proxy", "b, *")], Some(("a,127.0.0.1", "b, *"))),
            (vec![("all_proxy", "p"), ("NO_PROXY", "127.0.0.1")], Some(("127.0.0.1", "127.0.0.1"))),
        ] {
            let mut step = env(&before);
            bypass_proxy(&mut step).unwrap();
            match after {
                None => assert!(step.is_empty()),
                Some((upper, lower)) => {
                    assert_eq!((text(&step, NO_PROXY[0]), text(&step, NO_PROXY[1])), (upper.into(), lower.into()));
                }
            }
        }
    }

    proptest! {
        #[test]
        fn no_token_of_ours_survives_cleaning(values in proptest::collection::vec(any::<u8>(), 0..80), port in any::<u16>()) {
            let mut inherited = Map::new();
            inherited.insert(TOKEN.into(), [TOKEN_PREFIX.as_bytes(), &values].concat());
            inherited.insert(FULL_URI.into(), format!("http://127.0.0.1:{port}/sessions/1/cluster/c/project/p").into_bytes());
            clean_inherited(&mut inherited, &RunDir::default()).unwrap();
            prop_assert!(inherited.is_empty());
        }
    }
}
