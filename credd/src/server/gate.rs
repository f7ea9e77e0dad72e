//! What can be said about a request from its head alone, cheap checks first. No I/O, no state.
//!
//! A browser on the node must not be made to ask (DNS rebinding, a page that fetches from 127.0.0.1): the `Host` must be
//! the endpoint's own, and whatever browsers and proxies add is refused.

use credd_protocol::{JobId, endpoint, own_api};
use hyper::header::{
    ACCEPT, AUTHORIZATION, CONTENT_LENGTH, HOST, HeaderName, HeaderValue, ORIGIN, REFERER, USER_AGENT,
};
use hyper::{HeaderMap, Method, Uri};

/// No token of ours is longer; a longer one is not hashed.
const MAX_TOKEN_BYTES: usize = 256;

/// The address and the name of the endpoint's host.
const HOSTS: [&[u8]; 2] = [b"127.0.0.1", b"localhost"];

/// What a `Host` header may say: the endpoint's address or name, with the port, or without one, as every client on the
/// AWS Common Runtime sends it. A browser leaves the port out only for port 80, and a name that an attacker's DNS points at
/// 127.0.0.1 is neither of the two.
#[derive(Debug, Clone)]
pub struct Hosts {
    number: u16,
    /// `:` and the port.
    port: String,
}

impl Hosts {
    /// Of an endpoint on this port.
    pub fn new(port: u16) -> Self {
        Hosts { number: port, port: format!(":{port}") }
    }

    /// The endpoint's port.
    pub fn port(&self) -> u16 {
        self.number
    }

    /// Whether a `Host` header names the endpoint.
    pub fn has(&self, host: &[u8]) -> bool {
        let ours =
            |name: &&[u8]| host.strip_prefix(*name).is_some_and(|rest| rest.is_empty() || rest == self.port.as_bytes());
        HOSTS.iter().any(ours)
    }
}

/// What a request asks for.
#[derive(Debug, PartialEq, Eq)]
pub struct Asked<'a> {
    /// The job that the path names.
    pub job: JobId,
    /// The token as it was sent.
    pub token: &'a str,
}

/// What is wrong with a request's head.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wrong {
    /// Not GET.
    Method,
    /// The `Host` is missing, doubled, or not the endpoint's.
    Host,
    /// A header that browsers or proxies set.
    Browser,
    /// Not a path of the endpoint.
    Path,
    /// No token, several, or one that no job has.
    NoToken,
    /// A request without a token, and without the header that says that it was made on purpose.
    NoClient,
    /// A header in which a job's id should stand holds something else.
    NoJob,
}

/// A request's head that no browser or proxy made: what is left to look at are its path and its token.
#[derive(Debug, Clone, Copy)]
pub struct Head<'a> {
    uri: &'a Uri,
    /// `Authorization`, of which there is at most one.
    pub token: Option<&'a HeaderValue>,
}

/// Checks everything but path and token.
///
/// # Errors
/// The first thing that is wrong.
pub fn head<'a>(method: &Method, uri: &'a Uri, headers: &'a HeaderMap, hosts: &Hosts) -> Result<Head<'a>, Wrong> {
    if *method != Method::GET {
        return Err(Wrong::Method);
    }
    any_head(uri, headers, hosts)
}

fn any_head<'a>(uri: &'a Uri, headers: &'a HeaderMap, hosts: &Hosts) -> Result<Head<'a>, Wrong> {
    let (mut host, mut token) = (None, None);
    for (name, value) in headers {
        if *name == HOST {
            // Two of them: who is meant?
            if host.replace(value).is_some() {
                return Err(Wrong::Host);
            }
        } else if *name == AUTHORIZATION {
            if token.replace(value).is_some() {
                return Err(Wrong::NoToken);
            }
        } else if from_browser(name) {
            return Err(Wrong::Browser);
        }
    }
    if !host.is_some_and(|host| hosts.has(host.as_bytes())) {
        return Err(Wrong::Host);
    }
    if uri.authority().is_some_and(|authority| !hosts.has(authority.as_str().as_bytes())) {
        return Err(Wrong::Host);
    }
    Ok(Head { uri, token })
}

impl<'a> Head<'a> {
    /// The path, without its query.
    pub fn path(&self) -> &'a str {
        self.uri.path()
    }

    /// Checks the rest.
    ///
    /// # Errors
    /// The first thing that is wrong.
    pub fn asked(&self) -> Result<Asked<'a>, Wrong> {
        let job = endpoint::job_of_path(self.path()).ok_or(Wrong::Path)?;
        let token = self.token.and_then(|value| value.to_str().ok()).ok_or(Wrong::NoToken)?;
        if token.is_empty() || token.len() > MAX_TOKEN_BYTES {
            return Err(Wrong::NoToken);
        }
        Ok(Asked { job, token })
    }
}

/// What a request without a token wants.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wanted {
    /// Credentials.
    Credentials,
    /// A token.
    Token,
}

/// A request without a token: see [`own_api`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Own {
    /// What for.
    pub wanted: Wanted,
    /// This job and no other.
    pub job: Option<JobId>,
    /// Where the user has several, this one.
    pub hint: Option<JobId>,
}

/// Whether a request is one without a token: by method and path.
pub fn is_own(method: &Method, uri: &Uri) -> bool {
    *method == Method::PUT && uri.path().starts_with(own_api::PREFIX)
}

/// Checks the head of a request for which [`is_own`] holds. It has no header but those that `credd` itself sends: a proxy
/// of the user's, which passes others' requests on, adds or passes on some of its own.
///
/// # Errors
/// The first thing that is wrong.
pub fn own(uri: &Uri, headers: &HeaderMap, hosts: &Hosts) -> Result<Own, Wrong> {
    any_head(uri, headers, hosts)?;
    let sent = [HOST, CONTENT_LENGTH, USER_AGENT, ACCEPT];
    if headers.keys().any(|name| !sent.contains(name) && !name.as_str().starts_with(own_api::HEADERS)) {
        return Err(Wrong::Browser);
    }
    if headers.get(own_api::CLIENT).is_none_or(HeaderValue::is_empty) {
        return Err(Wrong::NoClient);
    }
    let wanted = match uri.path() {
        own_api::CREDENTIALS => Wanted::Credentials,
        own_api::TOKEN => Wanted::Token,
        _ => return Err(Wrong::Path),
    };
    let job = |name: &str| {
        let mut values = headers.get_all(name).iter();
        let value = values.next().map(|value| value.to_str().ok()?.parse().ok());
        match (value, values.next()) {
            (None, _) => Ok(None),
            (Some(Some(job)), None) => Ok(Some(job)),
            _ => Err(Wrong::NoJob),
        }
    };
    Ok(Own { wanted, job: job(own_api::JOB)?, hint: job(own_api::HINT)? })
}

fn from_browser(name: &HeaderName) -> bool {
    let text = name.as_str();
    *name == ORIGIN
        || *name == REFERER
        || text == "forwarded"
        || text == "via"
        || text == "x-real-ip"
        || text.starts_with("x-forwarded-")
        || text.starts_with("sec-fetch-")
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const PATH: &str = "/sessions/7/cluster/lab/project/genomics?roleSessionName=lab-alice-n1";

    fn heads(more: &[(&'static str, &str)]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, value) in more {
            headers.append(HeaderName::from_static(name), HeaderValue::from_str(value).unwrap());
        }
        headers
    }

    fn verdict(method: Method, uri: &str, headers: &HeaderMap) -> Result<u32, Wrong> {
        let uri = uri.parse().unwrap();
        head(&method, &uri, headers, &Hosts::new(9999)).and_then(|head| head.asked()).map(|asked| asked.job.get())
    }

    #[test]
    fn an_sdks_request_passes_whatever_its_query() {
        for host in ["127.0.0.1:9999", "localhost:9999", "127.0.0.1", "localhost"] {
            let headers = heads(&[("host", host), ("authorization", "credd1-aa"), ("user-agent", "aws-cli")]);
            assert_eq!(verdict(Method::GET, PATH, &headers), Ok(7));
            assert_eq!(verdict(Method::GET, PATH.split('?').next().unwrap(), &headers), Ok(7));
            assert_eq!(verdict(Method::GET, "/prod/sessions/7/cluster/a/project/b?x=%2F&&=", &headers), Ok(7));
            assert_eq!(verdict(Method::GET, &format!("http://127.0.0.1:9999{PATH}"), &headers), Ok(7));
            assert_eq!(verdict(Method::GET, &format!("http://localhost{PATH}"), &headers), Ok(7));
            assert_eq!(verdict(Method::GET, &format!("http://evil.example{PATH}"), &headers), Err(Wrong::Host));
            assert_eq!(verdict(Method::GET, "/latest/meta-data", &headers), Err(Wrong::Path));
            assert_eq!(verdict(Method::POST, PATH, &headers), Err(Wrong::Method));
            assert_eq!(verdict(Method::HEAD, PATH, &headers), Err(Wrong::Method));
        }
    }

    #[test]
    fn other_hosts_are_refused() {
        for host in [
            "",
            "127.0.0.1:",
            "127.0.0.1:80",
            "127.0.0.1:99990",
            "127.0.0.2:9999",
            "[::1]:9999",
            "localhost:",
            "localhost.",
            "localhost.evil.example",
            "127.0.0.1.evil.example",
            "evil.example",
            "localhost.evil.example:9999",
            "evil.example:9999",
            "127.0.0.1:9999 ",
            "user@127.0.0.1:9999",
        ] {
            let headers = heads(&[("host", host), ("authorization", "t")]);
            assert_eq!(verdict(Method::GET, PATH, &headers), Err(Wrong::Host), "{host:?}");
        }
        assert_eq!(verdict(Method::GET, PATH, &heads(&[("authorization", "t")])), Err(Wrong::Host));
        let two = heads(&[("host", "127.0.0.1:9999"), ("host", "127.0.0.1:9999"), ("authorization", "t")]);
        assert_eq!(verdict(Method::GET, PATH, &two), Err(Wrong::Host));
    }

    #[test]
    fn browsers_and_proxies_are_refused() {
        for (name, value) in [
            ("origin", "null"),
            ("referer", "http://127.0.0.1:9999/"),
            ("sec-fetch-site", "none"),
            ("sec-fetch-mode", "cors"),
            ("x-forwarded-for", "127.0.0.1"),
            ("x-forwarded-proto", "http"),
            ("x-real-ip", "127.0.0.1"),
            ("via", "1.1 proxy"),
            ("forwarded", "for=127.0.0.1"),
        ] {
            let headers = heads(&[("host", "127.0.0.1:9999"), ("authorization", "t"), (name, value)]);
            assert_eq!(verdict(Method::GET, PATH, &headers), Err(Wrong::Browser), "{name}");
        }
    }

    #[test]
    fn without_a_token_a_request_must_have_been_made_on_purpose() {
        let own = |method: Method, uri: &str, more: &[(&'static str, &str)]| {
            let uri = uri.parse().unwrap();
            is_own(&method, &uri).then(|| super::own(&uri, &heads(more), &Hosts::new(9999)))
        };
        let host = ("host", "127.0.0.1:9999");
        let client = ("x-credd-client", "credd/1");
        let (job, hint) = (JobId::try_from(7).unwrap(), JobId::try_from(8).unwrap());
        let wanted = |wanted, job, hint| Some(Ok(Own { wanted, job, hint }));
        let all = [host, client, ("x-credd-job", "7"), ("x-credd-job-hint", "8")];
        assert_eq!(own(Method::PUT, own_api::CREDENTIALS, &all), wanted(Wanted::Credentials, Some(job), Some(hint)));
        assert_eq!(own(Method::PUT, own_api::TOKEN, &[host, client]), wanted(Wanted::Token, None, None));
        for method in [Method::GET, Method::POST, Method::HEAD, Method::OPTIONS] {
            assert_eq!(own(method, own_api::CREDENTIALS, &all), None);
        }
        assert_eq!(own(Method::PUT, PATH, &all), None);
        for (more, wrong) in [
            (&[host][..], Wrong::NoClient),
            (&[host, ("x-credd-client", "")], Wrong::NoClient),
            (&[client], Wrong::Host),
            (&[("host", "evil.example"), client], Wrong::Host),
            (&[host, client, ("origin", "http://127.0.0.1:9999")], Wrong::Browser),
            (&[host, client, ("x-forwarded-for", "10.0.0.1")], Wrong::Browser),
            (&[host, client, ("x-forwarded-proto", "http")], Wrong::Browser),
            (&[host, client, ("via", "1.1 proxy")], Wrong::Browser),
            (&[host, client, ("cookie", "a=b")], Wrong::Browser),
            (&[host, client, ("x-credd-job", "0")], Wrong::NoJob),
            (&[host, client, ("x-credd-job", "7"), ("x-credd-job", "8")], Wrong::NoJob),
            (&[host, client, ("x-credd-job-hint", "x")], Wrong::NoJob),
        ] {
            assert_eq!(own(Method::PUT, own_api::CREDENTIALS, more), Some(Err(wrong)), "{more:?}");
        }
        assert_eq!(own(Method::PUT, "/own/v2/credentials", &all), Some(Err(Wrong::Path)));
    }

    #[test]
    fn a_token_must_be_there_once() {
        let with = |tokens: &[&str]| {
            let mut all = vec![("host", "127.0.0.1:9999")];
            all.extend(tokens.iter().map(|t| ("authorization", *t)));
            verdict(Method::GET, PATH, &heads(&all))
        };
        assert_eq!(with(&["t"]), Ok(7));
        for bad in [&[][..], &[""], &["a", "a"], &[&"x".repeat(257)]] {
            assert_eq!(with(bad), Err(Wrong::NoToken), "{bad:?}");
        }
    }

    proptest! {
        #[test]
        fn no_host_but_the_endpoints_passes(host in "(127[.]0[.]0[.]1|localhost)?[ -~]{0,30}") {
            let ours = ["127.0.0.1", "127.0.0.1:9999", "localhost", "localhost:9999"];
            prop_assert_eq!(Hosts::new(9999).has(host.as_bytes()), ours.contains(&host.as_str()));
        }

        #[test]
        fn no_head_panics_and_none_passes_without_token(
            path in "/[!-~]{0,60}",
            values in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..40), 0..4),
        ) {
            let mut headers = HeaderMap::new();
            headers.insert(HOST, HeaderValue::from_static("127.0.0.1:9999"));
            for value in &values {
                if let Ok(value) = HeaderValue::from_bytes(value) {
                    headers.append(AUTHORIZATION, value);
                }
            }
            let tokens = headers.get_all(AUTHORIZATION).iter().count();
            if let Ok(uri) = path.parse::<Uri>() {
                let head = head(&Method::GET, &uri, &headers, &Hosts::new(9999));
                let passed = head.and_then(|head| head.asked()).is_ok();
                prop_assert!(!passed || (tokens == 1 && endpoint::job_of_path(uri.path()).is_some()));
            }
        }
    }
}
