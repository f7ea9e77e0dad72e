//! The node's side of `credd_protocol::node_api`: what is asked, and what the answers mean. [`https`] carries it.

use std::cell::{Cell, RefCell};
use std::pin::Pin;
use std::rc::Rc;
use std::time::Duration;

use credd_protocol::credentials_api_v1::SessionStatus;
use credd_protocol::handshake_ticket::HandshakeTicket;
use credd_protocol::node_api::{
    ATTEST, ApiError, AttestRequest, CredentialsRequest, CredentialsResponse, HEARD, HeardRequest, LeaveRequest,
    OpenRequest, OpenResponse, SlurmFacts, credentials_path, leave_path, stream_path,
};
use credd_protocol::printable::one_line;
use credd_protocol::{Secret, SessionId};
use reqwest::StatusCode;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::sync::{Notify, Semaphore};
use zeroize::Zeroizing;

use super::refusals::Refusals;
use super::trouble::Trouble;

pub mod https;
pub mod stream;
pub mod tls;

/// Requests of this node that credvend has to work on at a time; the others queue here.
const UNDER_WAY: usize = 16;

/// What a [`Wire`] gives, some time.
pub type Soon<'a, T> = Pin<Box<dyn Future<Output = Result<T, Trouble>> + 'a>>;

/// The way to credvend. Each call is one attempt, bounded in time and size.
pub trait Wire {
    /// One POST: the body of a success, or what stands in the way.
    fn post<'a>(&'a self, path: &'a str, body: Vec<u8>) -> Soon<'a, Zeroizing<Vec<u8>>>;
    /// Opens the standing stream at this path.
    fn stream(&self, path: String) -> Soon<'_, reqwest::Response>;
    /// What a broken stream means.
    fn broken(&self, error: &reqwest::Error) -> Trouble;
    /// Shows this ticket in the next handshakes.
    fn show(&self, _ticket: HandshakeTicket) {}
    /// The ticket that it shows.
    fn ticket(&self) -> Option<HandshakeTicket> {
        None
    }
}

/// A client of credvend.
pub struct Credvend {
    wire: RefCell<Rc<dyn Wire>>,
    /// There is another wire: the stream is to be opened anew.
    replaced: Notify,
    under_way: Semaphore,
    problem: RefCell<Option<String>>,
    /// What it refused.
    pub refusals: Refusals,
    came_back: Cell<bool>,
}

impl Credvend {
    /// A client on this wire. Nothing is sent yet.
    pub fn new(wire: Box<dyn Wire>) -> Self {
        Credvend {
            wire: RefCell::new(wire.into()),
            replaced: Notify::new(),
            under_way: Semaphore::new(UNDER_WAY),
            problem: RefCell::new(Some("credvend has not been asked yet".to_owned())),
            refusals: Refusals::default(),
            came_back: Cell::new(false),
        }
    }

    /// Asks on another wire from now on. What is under way ends on the one that it began on.
    pub fn replace(&self, wire: Box<dyn Wire>) {
        // Another credvend will have no use for it, and a different pin or time-out does not make it another one.
        if let Some(ticket) = self.wire().ticket() {
            wire.show(ticket);
        }
        *self.wire.borrow_mut() = wire.into();
        *self.problem.borrow_mut() = Some("credvend has not been asked yet".to_owned());
        self.replaced.notify_one();
    }

    /// An earlier credd, or server process, was given this ticket.
    pub fn show(&self, ticket: HandshakeTicket) {
        let wire = self.wire();
        if wire.ticket().is_none() {
            wire.show(ticket);
        }
    }

    fn wire(&self) -> Rc<dyn Wire> {
        self.wire.borrow().clone()
    }

    /// Opens or joins a job's session.
    ///
    /// # Errors
    /// Why not.
    pub async fn open(&self, request: &OpenRequest) -> Result<OpenResponse, Trouble> {
        let answer = self.post(&request.path(), request).await;
        self.refusals.session(request.job, &answer);
        answer
    }

    /// Asks what Slurm says of a job.
    ///
    /// # Errors
    /// Why it is not told.
    pub async fn attest(&self, request: &AttestRequest) -> Result<SlurmFacts, Trouble> {
        self.post(ATTEST, request).await.map_err(|trouble| match trouble {
            // The path is named only where there is none.
            Trouble::Never(reason) if reason.contains(ATTEST) => Trouble::No(format!(
                "slurmd ran no prolog for job {} on this node, and credvend is of an older release, which cannot say whose \
                 it is; tell the administrators",
                request.job
            )),
            trouble => trouble,
        })
    }

    /// Fetches a session's credentials.
    ///
    /// # Errors
    /// Why not.
    pub async fn credentials(
        &self,
        session: SessionId,
        request: &CredentialsRequest,
    ) -> Result<CredentialsResponse, Trouble> {
        let answer = self.post(&credentials_path(session), request).await;
        self.refusals.credentials(session, &answer);
        answer
    }

    /// Says that the session's job ended here.
    ///
    /// # Errors
    /// Why credvend does not know it now.
    pub async fn leave(&self, session: SessionId) -> Result<(), Trouble> {
        self.post::<serde_json::Value>(&leave_path(session), &LeaveRequest {}).await.map(|_| ())
    }

    /// Says which events this node has followed.
    ///
    /// # Errors
    /// Why credvend does not know it now.
    pub async fn say_heard(&self, answer: &HeardRequest) -> Result<(), Trouble> {
        self.post::<serde_json::Value>(HEARD, answer).await.map(|_| ())
    }

    /// Opens the standing stream: after what is known, if anything is.
    ///
    /// # Errors
    /// Why there is none.
    pub async fn open_stream(&self, known: Option<(String, u64)>) -> Result<reqwest::Response, Trouble> {
        let path = stream_path(known.as_ref().map(|(epoch, seq)| (epoch.as_str(), *seq)));
        let stream = self.wire().stream(path).await;
        self.refusals.stream(&stream);
        stream
    }

    /// The obstacle of the last exchange, if it failed.
    pub fn problem(&self) -> Option<String> {
        self.problem.borrow().clone()
    }

    /// credvend spoke just now.
    pub fn heard(&self) {
        if self.problem.take().is_some() {
            self.came_back.set(true);
        }
    }

    /// Whether an outage has ended since this was last asked.
    pub fn came_back(&self) -> bool {
        self.came_back.take()
    }

    async fn post<A: DeserializeOwned>(&self, path: &str, body: &impl Serialize) -> Result<A, Trouble> {
        let _permit = self.under_way.acquire().await.expect("never closed");
        // Written only now: a thousand jobs may wait for the permit.
        let answer = self.wire().post(path, serde_json::to_vec(body).expect("plain values")).await;
        match answer {
            Ok(bytes) => {
                self.heard();
                understood(path, &bytes)
            }
            Err(trouble) => {
                self.note(&trouble);
                Err(trouble)
            }
        }
    }

    /// Of an attempt that failed.
    pub fn note(&self, trouble: &Trouble) {
        match trouble {
            Trouble::Outage(reason) => *self.problem.borrow_mut() = Some(reason.clone()),
            // A refusal is an answer.
            Trouble::Busy(..)
            | Trouble::No(_)
            | Trouble::Site(_)
            | Trouble::Never(_)
            | Trouble::Over(_)
            | Trouble::Gone(_) => self.heard(),
        }
    }
}

/// What a successful answer says.
fn understood<A: DeserializeOwned>(path: &str, body: &[u8]) -> Result<A, Trouble> {
    serde_json::from_slice(body).map_err(|e| {
        // The category and the place: never the text, which may hold a secret.
        Trouble::Outage(format!(
            "credvend's answer to {path} is not understood ({:?} at column {}): is it of another version?",
            e.classify(),
            e.column()
        ))
    })
}

/// Whether a refusal says that the run is over: by Slurm's word, unlike a session that somebody INVALIDATED.
fn is_over(error: &ApiError) -> bool {
    match error.code.as_str() {
        "JobNotRunning" => true,
        "SessionEnded" => match &error.ended {
            Some(ended) => ended == SessionStatus::Completed.as_str(),
            None => is_completed_in_words(&error.message),
        },
        _ => false,
    }
}

/// What a credvend of release 0.1 says of a COMPLETED session, which has no field for it: `session ID is COMPLETED: why`. The
/// reason may hold any text, so only the beginning counts.
fn is_completed_in_words(message: &str) -> bool {
    let after_id = message.strip_prefix("session ").and_then(|rest| rest.split_once(' ')).map(|(_, after)| after);
    after_id.is_some_and(|after| after.starts_with("is COMPLETED: "))
}

/// The refusals that are about a node or its cluster, whichever job it asks for.
const OF_THE_SITE: [&str; 3] = ["UnknownCluster", "WrongAddress", "AccountsNotEnforced"];

/// What an answer other than success means.
pub fn refusal(status: StatusCode, body: &[u8]) -> Trouble {
    let Ok(error) = serde_json::from_slice::<ApiError>(body) else {
        return Trouble::Outage(format!("credvend answered {status} without saying why"));
    };
    let reason = one_line(&error.message, 1000);
    // Who is not authenticated is a matter of this node's munged and clock, not of the job.
    let about_the_job = status.is_client_error()
        && !matches!(status, StatusCode::UNAUTHORIZED | StatusCode::REQUEST_TIMEOUT | StatusCode::TOO_MANY_REQUESTS);
    match (error.retry, about_the_job) {
        (false, _) if error.code == "UnknownSession" => Trouble::Gone(reason),
        (false, _) if is_over(&error) => Trouble::Over(reason),
        (false, _) => Trouble::Never(reason),
        (true, true) if OF_THE_SITE.contains(&&*error.code) => Trouble::Site(reason),
        (true, true) => Trouble::No(reason),
        (true, false) => match error.retry_after {
            Some(seconds) => Trouble::Busy(reason, Duration::from_secs(seconds.max(1).into())),
            None => Trouble::Outage(reason),
        },
    }
}

/// The document's bytes as they are sent to jobs. Their memory is erased when the last answer with them is gone; what
/// hyper, the kernel and the TLS library copied of them is beyond this process' reach.
pub fn document_body(credentials: &credd_protocol::credentials::Credentials) -> bytes::Bytes {
    // Written into a buffer that never grows: a growing one would leave copies behind.
    let secrets: [&Secret; 2] = [&credentials.secret_access_key, &credentials.token];
    let capacity =
        1024 + 2 * secrets.iter().map(|s| s.expose().len()).sum::<usize>() + credentials.role_arn.as_str().len();
    let mut body = Zeroizing::new(Vec::with_capacity(capacity));
    serde_json::to_writer(&mut *body, credentials).expect("plain values");
    // Kept for an hour by the thousand: in exactly as many bytes as it has. The buffer is erased, too.
    bytes::Bytes::from_owner(Erased(Zeroizing::new(body.to_vec())))
}

struct Erased(Zeroizing<Vec<u8>>);

impl AsRef<[u8]> for Erased {
    fn as_ref(&self) -> &[u8] {
        &self.0
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Bytes, among them what is nearly an answer.
    fn said() -> impl Strategy<Value = Vec<u8>> {
        let credentials = r#"{"credentials":{"AccessKeyId":"A","SecretAccessKey":"SECRET","Token":"SECRET","Expiration":"2026-11-22T10:00:00Z","RoleArn":"arn:aws:iam::123456789012:role/r"},"session-name":"lab","issued":"2026-11-22T09:00:00Z"}"#;
        let error = r#"{"code":"UnknownRole","message":"no \u001b role","retry":false}"#;
        let whole = prop_oneof![Just(credentials.as_bytes().to_vec()), Just(error.as_bytes().to_vec())];
        let mutated = (whole, any::<prop::sample::Index>(), proptest::collection::vec(any::<u8>(), 0..4), 0usize..8);
        prop_oneof![
            proptest::collection::vec(any::<u8>(), 0..300),
            Just(vec![b'['; https::MAX_ANSWER_BYTES]),
            mutated.prop_map(|(mut whole, at, put, take)| {
                let start = at.index(whole.len());
                let end = (start + take).min(whole.len());
                whole.splice(start..end, put);
                whole
            }),
        ]
    }

    proptest! {
        #[test]
        fn no_answer_hurts_and_none_is_shown(body in said(), status in 100u16..600) {
            if let Err(trouble) = understood::<OpenResponse>("/p", &body) {
                prop_assert!(!trouble.reason().contains("SECRET") && trouble.reason().len() < 200);
            }
            match understood::<CredentialsResponse>("/p", &body) {
                Ok(answer) => {
                    let document: serde_json::Value = serde_json::from_slice(&document_body(&answer.credentials)).unwrap();
                    prop_assert!(document["AccessKeyId"].is_string());
                }
                Err(trouble) => prop_assert!(!trouble.reason().contains("SECRET") && trouble.reason().len() < 200),
            }
            let trouble = refusal(StatusCode::from_u16(status).unwrap(), &body);
            prop_assert!(trouble.reason().chars().count() <= 1000 && !trouble.reason().contains(char::is_control));
        }

        #[test]
        fn a_refusals_sentence_is_bounded_and_without_controls(message in any::<String>(), times in 1usize..2000) {
            let error = ApiError { code: "X".into(), message: message.repeat(times), retry: false, retry_after: None, ended: None };
            let trouble = refusal(StatusCode::FORBIDDEN, &serde_json::to_vec(&error).unwrap());
            prop_assert!(trouble.reason().chars().count() <= 1000 && !trouble.reason().contains(char::is_control));
        }
    }

    #[test]
    fn refusals_are_told_apart() {
        let body = |retry| {
            let message = "a\u{1b}b".into();
            serde_json::to_vec(&ApiError { code: "X".into(), message, retry, retry_after: None, ended: None }).unwrap()
        };
        let of = |status: u16, retry| refusal(StatusCode::from_u16(status).unwrap(), &body(retry));
        assert_eq!(of(403, false), Trouble::Never("a b".into()));
        for (code, message, ended, over) in [
            ("JobNotRunning", "job 7 of cluster lab is not running: Slurm has it waiting for nodes", None, true),
            ("SessionEnded", "session x is over", Some("COMPLETED"), true),
            ("SessionEnded", "session x is INVALIDATED: the job is COMPLETED: says bob", Some("INVALIDATED"), false),
            ("SessionEnded", "session x is COMPLETED: of a later release", Some("EXPIRED"), false),
            ("NotOnNode", "job 7 does not run on node n1", Some("COMPLETED"), false),
            // A credvend of release 0.1.
            ("SessionEnded", "session x is COMPLETED: Slurm has restart 1", None, true),
            ("SessionEnded", "session x is INVALIDATED: by root", None, false),
            ("SessionEnded", "session x is INVALIDATED: bob wrote: session y is COMPLETED: really", None, false),
            ("SessionEnded", "is COMPLETED: ", None, false),
        ] {
            let (code, message, ended) = (code.into(), message.into(), ended.map(str::to_owned));
            let error = ApiError { code, message, retry: false, retry_after: None, ended };
            let trouble = refusal(StatusCode::FORBIDDEN, &serde_json::to_vec(&error).unwrap());
            assert_eq!(matches!(trouble, Trouble::Over(_)), over, "{trouble:?}");
        }
        assert_eq!(of(403, true), Trouble::No("a b".into()));
        let site = br#"{"code":"UnknownCluster","message":"which?","retry":true}"#;
        assert_eq!(refusal(StatusCode::FORBIDDEN, site), Trouble::Site("which?".into()));
        assert_eq!(of(401, true), Trouble::Outage("a b".into()));
        assert_eq!(of(503, true), Trouble::Outage("a b".into()));
        let busy = br#"{"code":"Busy","message":"later","retry":true,"retry-after":7}"#;
        let later = Trouble::Busy("later".into(), Duration::from_secs(7));
        assert_eq!(refusal(StatusCode::SERVICE_UNAVAILABLE, busy), later);
        assert!(matches!(refusal(StatusCode::BAD_GATEWAY, b"<html>"), Trouble::Outage(_)));
        assert!(matches!(refusal(StatusCode::FORBIDDEN, b""), Trouble::Outage(_)), "a proxy's 403 is not credvend's");
    }
}
