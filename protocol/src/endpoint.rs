//! The URL that a job finds in `AWS_CONTAINER_CREDENTIALS_FULL_URI`: the path of the IAM Credentials API (v1), with the
//! Slurm job id as the session id, and the `roleSessionName` of that API, which is for the reader of a log; nobody trusts
//! it.
//!
//! Only unreserved characters (RFC 3986) appear in the path: the C++ SDK encodes a `%` again. Others are written as
//! `~` and two hex digits, `~` itself included, so that different names stay different.

use crate::ids::{ClusterName, JobId, NodeName, ProjectId, UserName};

/// The port of the IAM Credentials API (v1).
pub const DEFAULT_PORT: u16 = 9999;

/// The project segment of a job without an account.
pub const NO_PROJECT: &str = "-";

/// The segments of what is not known.
const UNKNOWN: &str = "-";

/// The full URL for a job on this node.
pub fn full_uri(
    port: u16,
    job: JobId,
    cluster: &ClusterName,
    project: Option<&ProjectId>,
    user: &UserName,
    node: &NodeName,
) -> String {
    let project = project.map_or(NO_PROJECT.to_owned(), |p| segment(p.as_str()));
    let (cluster, user, node) = (segment(cluster.as_str()), segment(user.as_str()), segment(node.as_str()));
    format!(
        "http://127.0.0.1:{port}/sessions/{job}/cluster/{cluster}/project/{project}?roleSessionName={cluster}-{user}-{node}"
    )
}

/// The URL for a job whose project is not known on this node yet. Only the job in it counts.
pub fn late_uri(port: u16, job: JobId) -> String {
    format!("http://127.0.0.1:{port}/sessions/{job}/cluster/{UNKNOWN}/project/{UNKNOWN}")
}

/// Whether a URL found in an environment is one that [`full_uri`] makes, whatever its port.
pub fn is_ours(uri: &str) -> bool {
    let Some(rest) = uri.strip_prefix("http://127.0.0.1:").or_else(|| uri.strip_prefix("http://localhost:")) else {
        return false;
    };
    let Some((port, path)) = rest.split_once('/') else { return false };
    port.parse::<u16>().is_ok() && path.starts_with("sessions/") && path.contains("/cluster/")
}

/// The job a request path names: the session segment of the path of the IAM Credentials API (v1), with or without a stage
/// prefix before it and a query behind it. `None` if the path is not of that form.
pub fn job_of_path(path: &str) -> Option<JobId> {
    let path = path.split(['?', '#']).next().unwrap_or_default();
    let mut parts = path.strip_prefix('/')?.split('/');
    let mut first = parts.next()?;
    if first != "sessions" {
        // The URLs of the IAM Credentials API (v1) may begin with an API stage, such as /prod.
        first = parts.next()?;
    }
    if first != "sessions" {
        return None;
    }
    let job = parts.next()?.parse().ok()?;
    let named = (parts.next()?, parts.next()?, parts.next()?, parts.next()?);
    match named {
        ("cluster", cluster, "project", project)
            if !cluster.is_empty() && !project.is_empty() && parts.next().is_none() =>
        {
            Some(job)
        }
        _ => None,
    }
}

/// A name as one path segment. A name of one or two dots would not survive a client that tidies paths.
pub fn segment(name: &str) -> String {
    let dots = matches!(name, "." | "..");
    let mut text = String::with_capacity(name.len());
    for byte in name.bytes() {
        if byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_') || (byte == b'.' && !dots) {
            text.push(byte.into());
        } else {
            text.push('~');
            crate::hex::push(&mut text, &[byte]);
        }
    }
    text
}

/// The name that [`segment`] made into this; `None` if it made none so.
pub fn name_of_segment(segment: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(segment.len());
    let mut rest = segment.as_bytes();
    while let [first, tail @ ..] = rest {
        rest = tail;
        if *first != b'~' {
            bytes.push(*first);
            continue;
        }
        let digit =
            |b: u8| char::from(b).to_digit(16).filter(|_| !b.is_ascii_uppercase()).and_then(|d| u8::try_from(d).ok());
        let [high, low, tail @ ..] = tail else { return None };
        bytes.push(digit(*high)? << 4 | digit(*low)?);
        rest = tail;
    }
    String::from_utf8(bytes).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_v1_form() {
        let uri = full_uri(
            9999,
            JobId::try_from(1300).unwrap(),
            &"alpha".parse().unwrap(),
            Some(&"abc".parse().unwrap()),
            &"user1".parse().unwrap(),
            &"n1".parse().unwrap(),
        );
        assert_eq!(uri, "http://127.0.0.1:9999/sessions/1300/cluster/alpha/project/abc?roleSessionName=alpha-user1-n1");
        assert!(is_ours(&uri));
        let late = late_uri(9999, JobId::try_from(1300).unwrap());
        assert!(is_ours(&late));
        assert_eq!(job_of_path(late.strip_prefix("http://127.0.0.1:9999").unwrap()).unwrap().get(), 1300);
        assert_eq!(job_of_path(uri.strip_prefix("http://127.0.0.1:9999").unwrap()).unwrap().get(), 1300);
    }

    #[test]
    fn other_paths_name_no_job() {
        assert!(job_of_path("/prod/sessions/5/cluster/a/project/b").is_some());
        for path in [
            "",
            "/",
            "/sessions/5",
            "/sessions/x/cluster/a/project/b",
            "/sessions/5/cluster//project/b",
            "/a/b/sessions/5/cluster/a/project/b",
            "/sessions/5/cluster/a/project/b/c",
            "/sessions/0/cluster/a/project/b",
        ] {
            assert!(job_of_path(path).is_none(), "{path}");
        }
        assert!(!is_ours("http://169.254.170.2/v2/credentials") && !is_ours("http://127.0.0.1:80/creds"));
    }

    proptest! {
        #[test]
        fn segments_are_unreserved_and_injective(a in "[ -~é漢]{1,20}|\\.{1,3}", b in "[ -~é漢]{1,20}|\\.{1,3}") {
            let unreserved = segment(&a).bytes().all(|c| c.is_ascii_alphanumeric() || b"-._~".contains(&c));
            prop_assert!(unreserved);
            prop_assert!(segment(&a) != "." && segment(&a) != "..");
            prop_assert_eq!(a == b, segment(&a) == segment(&b));
            prop_assert_eq!(name_of_segment(&segment(&a)), Some(a));
        }

        #[test]
        fn no_path_panics(path in ".*") {
            let _ = job_of_path(&path);
            let _ = name_of_segment(&path);
            let _ = is_ours(&path);
        }
    }
}
