//! The variables by which every AWS SDK finds its container credentials, and what must not be inherited of them.

mod additions;
pub mod other_identities;

use additions::Additions;
use credd_protocol::late::LateRecord;
use credd_protocol::record::{JobRecord, RUN_DIR, RunDir};
use credd_protocol::{JobToken, Region, endpoint, secret::TOKEN_PREFIX};
use slurm_spank::{Environment, Error};

use crate::plugstack::Metadata;

/// Where to ask.
pub const FULL_URI: &str = "AWS_CONTAINER_CREDENTIALS_FULL_URI";
/// An older way to say where; most SDKs prefer it.
pub const RELATIVE_URI: &str = "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI";
/// What to show there.
pub const TOKEN: &str = "AWS_CONTAINER_AUTHORIZATION_TOKEN";
/// A file with the same; most SDKs prefer it.
pub const TOKEN_FILE: &str = "AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE";
/// With the value `true`, every SDK leaves the metadata service alone, and with it the role of the EC2 instance.
pub const METADATA_DISABLED: &str = "AWS_EC2_METADATA_DISABLED";

const REGIONS: [&str; 2] = ["AWS_REGION", "AWS_DEFAULT_REGION"];

/// Removes what the plugin set for a parent job: its URL, its token, its token file, and what it added to variables that
/// are not its own. A user's own values are left alone.
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
    result.and(additions::undo(env))
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
    metadata: &Metadata,
) -> Result<(), Error> {
    let uri =
        endpoint::full_uri(port, record.job, &record.cluster, record.account.as_ref(), &record.user, &record.node);
    offer(env, &uri, &record.token, token_file, record.options.region.as_ref(), metadata)
}

/// As [`inject`], for a job of which the node does not know yet whose project it is in.
///
/// # Errors
/// As [`inject`].
pub fn inject_late(
    env: &mut dyn Environment,
    late: &LateRecord,
    port: u16,
    token_file: Option<&[u8]>,
    region: Option<&Region>,
    metadata: &Metadata,
) -> Result<(), Error> {
    offer(env, &endpoint::late_uri(port, late.job), &late.token, token_file, region, metadata)
}

fn offer(
    env: &mut dyn Environment,
    uri: &str,
    token: &JobToken,
    token_file: Option<&[u8]>,
    region: Option<&Region>,
    metadata: &Metadata,
) -> Result<(), Error> {
    env.unset(RELATIVE_URI)?;
    match token_file {
        Some(path) => env.set(TOKEN_FILE, path)?,
        None => env.unset(TOKEN_FILE)?,
    }
    env.set(FULL_URI, uri.as_bytes())?;
    env.set(TOKEN, token.expose().as_bytes())?;
    let mut additions = Additions::to(env);
    if metadata.disabled {
        additions.set(METADATA_DISABLED, b"true")?;
    }
    if let Some(region) = region {
        set_region(&mut additions, region)?;
    }
    additions.bypass_proxies()?;
    additions.note()
}

/// Keeps a step that has no credentials of its project from those of the EC2 instance it runs on. Since an SDK can then not
/// ask the metadata service for the region either, the partition's is set.
///
/// # Errors
/// The first variable that Slurm did not take.
pub fn disable_metadata(env: &mut dyn Environment, region: Option<&Region>) -> Result<(), Error> {
    let mut additions = Additions::to(env);
    additions.set(METADATA_DISABLED, b"true")?;
    if let Some(region) = region {
        set_region(&mut additions, region)?;
    }
    additions.note()
}

/// Both names, since botocore ignores the first; neither if the job has chosen with one of them.
fn set_region(additions: &mut Additions<'_>, region: &Region) -> Result<(), Error> {
    if REGIONS.iter().any(|name| is_set(additions.env(), name)) {
        return Ok(());
    }
    REGIONS.iter().try_for_each(|name| additions.set(name, region.as_str().as_bytes()))
}

fn is_set(env: &dyn Environment, name: &str) -> bool {
    env.get(name).is_some_and(|value| !value.is_empty())
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
        inject(&mut step, &record, 9999, None, &Metadata::default()).unwrap();
        let uri = "http://127.0.0.1:9999/sessions/12/cluster/lab/project/genomics?roleSessionName=lab-alice-n1";
        assert_eq!(text(&step, FULL_URI), uri);
        assert_eq!(text(&step, TOKEN), record.token.expose());
        assert_eq!((text(&step, "NO_PROXY"), text(&step, "no_proxy")), ("127.0.0.1".into(), "127.0.0.1".into()));
        assert_eq!(step.len(), 5);
        inject(&mut step, &record, 9999, Some(b"/run/credd/tokens/12"), &Metadata::default()).unwrap();
        assert_eq!(text(&step, TOKEN_FILE), "/run/credd/tokens/12");
    }

    #[test]
    fn the_region_is_set_only_where_the_job_has_none() {
        let mut record = record();
        record.options.region = Some("eu-west-1".parse().unwrap());
        let mut step = env(&[]);
        inject(&mut step, &record, 1, None, &Metadata::default()).unwrap();
        assert_eq!((text(&step, REGIONS[0]), text(&step, REGIONS[1])), ("eu-west-1".into(), "eu-west-1".into()));
        let mut step = env(&[("AWS_DEFAULT_REGION", "us-east-1")]);
        inject(&mut step, &record, 1, None, &Metadata::default()).unwrap();
        assert!(!step.contains_key("AWS_REGION") && text(&step, "AWS_DEFAULT_REGION") == "us-east-1");
    }

    #[test]
    fn a_nested_submission_takes_along_nothing_that_was_added() {
        let mut record = record();
        record.options.region = Some("eu-west-1".parse().unwrap());
        let metadata = Metadata { disabled: true, region: record.options.region.clone() };
        for own in [
            env(&[]),
            env(&[("http_proxy", "p:3128"), ("NO_PROXY", "*"), ("no_proxy", "*")]),
            env(&[("NO_PROXY", "a,b"), ("no_proxy", "c 127.0.0.1"), ("AWS_REGION", "us-east-1")]),
            env(&[("NO_PROXY", "127.0.0.1"), ("no_proxy", "x,127.0.0.1"), ("AWS_DEFAULT_REGION", "eu-west-1")]),
        ] {
            let mut step = own.clone();
            inject(&mut step, &record, 9999, None, &metadata).unwrap();
            assert_eq!(text(&step, METADATA_DISABLED), "true");
            clean_inherited(&mut step, &RunDir::default()).unwrap();
            assert_eq!(step, own);
            disable_metadata(&mut step, metadata.region.as_ref()).unwrap();
            assert_eq!(text(&step, METADATA_DISABLED), "true");
            clean_inherited(&mut step, &RunDir::default()).unwrap();
            assert_eq!(step, own);
        }
    }

    #[test]
    fn what_the_user_chose_in_the_parent_job_stays() {
        let mut step = env(&[]);
        disable_metadata(&mut step, Some(&"eu-west-1".parse().unwrap())).unwrap();
        step.set(METADATA_DISABLED, b"false").unwrap();
        step.set("AWS_REGION", b"us-east-1").unwrap();
        clean_inherited(&mut step, &RunDir::default()).unwrap();
        assert_eq!(step, env(&[(METADATA_DISABLED, "false"), ("AWS_REGION", "us-east-1")]));
        // A user's own is nobody's addition.
        let own = env(&[(METADATA_DISABLED, "true"), ("NO_PROXY", "127.0.0.1"), ("AWS_REGION", "eu-west-1")]);
        let mut cleaned = own.clone();
        clean_inherited(&mut cleaned, &RunDir::default()).unwrap();
        assert_eq!(cleaned, own);
    }

    #[test]
    fn metadata_is_disabled_beside_credentials_only_where_the_partition_says_so() {
        let mut step = env(&[(METADATA_DISABLED, "false")]);
        inject(&mut step, &record(), 1, None, &Metadata::default()).unwrap();
        assert_eq!(text(&step, METADATA_DISABLED), "false");
        inject(&mut step, &record(), 1, None, &Metadata { disabled: true, region: None }).unwrap();
        assert_eq!(text(&step, METADATA_DISABLED), "true");
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
