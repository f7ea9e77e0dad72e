//! AssumeRole against a scripted endpoint; `tests/aws.rs` has the pretend AWS that enforces policies.

use std::sync::Mutex;

use aws_credential_types::Credentials as Own;
use time::format_description::well_known::Rfc3339;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use super::super::aws::AwsOptions;
use super::super::turns::Rate;
use super::*;

const ROLE: &str = "arn:aws:iam::123456789012:role/projects/genomics";

/// What the endpoint does with a request.
#[derive(Clone)]
enum Reply {
    Say(u16, String),
    Dated(u16, String, String),
    Hang,
}

type Script = dyn Fn(&str, usize) -> Reply + Send + Sync;

/// Answers every request by the script, given its body and how many came before it; keeps the bodies.
async fn endpoint(script: impl Fn(&str, usize) -> Reply + Send + Sync + 'static) -> (String, Arc<Mutex<Vec<String>>>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = format!("http://{}", listener.local_addr().unwrap());
    let (bodies, script): (Arc<Mutex<Vec<String>>>, Arc<Script>) = (Arc::default(), Arc::new(script));
    let kept = Arc::clone(&bodies);
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            tokio::spawn(answer(stream, Arc::clone(&kept), Arc::clone(&script)));
        }
    });
    (address, bodies)
}

async fn answer(mut stream: TcpStream, bodies: Arc<Mutex<Vec<String>>>, script: Arc<Script>) {
    let mut read = Vec::new();
    let body = loop {
        if stream.read_buf(&mut read).await.unwrap_or(0) == 0 {
            return;
        }
        let text = String::from_utf8_lossy(&read).into_owned();
        let Some((head, body)) = text.split_once("\r\n\r\n") else { continue };
        let length = head.lines().find_map(|l| l.to_lowercase().strip_prefix("content-length: ")?.parse().ok());
        if body.len() >= length.unwrap_or(0) {
            break body.to_owned();
        }
    };
    let before = {
        let mut bodies = bodies.lock().unwrap();
        bodies.push(body.clone());
        bodies.len() - 1
    };
    let reply = script(&body, before);
    let date = if let Reply::Dated(_, date, _) = &reply { format!("Date: {date}\r\n") } else { String::new() };
    match reply {
        Reply::Hang => std::future::pending().await,
        Reply::Say(status, text) | Reply::Dated(status, _, text) => {
            let head = format!(
                "HTTP/1.1 {status} X\r\n{date}Content-Type: text/xml\r\nContent-Length: {}\r\nConnection: close\r\n\r\n",
                text.len()
            );
            let _ = stream.write_all(format!("{head}{text}").as_bytes()).await;
        }
    }
}

async fn source(endpoint: &str, change: impl FnOnce(&mut AwsOptions)) -> StsSource {
    let mut options = AwsOptions::new("us-east-1".parse().unwrap());
    options.sts_endpoint = Some(endpoint.to_owned());
    change(&mut options);
    let own = Own::new("AKIAEXAMPLE", "secret", None, None, "test");
    StsSource::new(Aws::with_credentials(options, own).await)
}

fn request() -> AssumeRequest {
    AssumeRequest {
        session: "3f2c8a54-8d5e-4b8e-9d2a-0c8b3f6d7e11".parse().unwrap(),
        project: "genomics".parse().unwrap(),
        role_arn: ROLE.parse().unwrap(),
        session_name: "lab-alice-n1".into(),
        duration_seconds: 3600,
        source_identity: None,
        tags: vec![],
    }
}

fn in_seconds(seconds: i64) -> String {
    (OffsetDateTime::now_utc() + Duration::seconds(seconds)).format(&Rfc3339).unwrap()
}

/// An answer with parts to change.
fn given(token: &str, expiration: &str, id: &str, arn: &str) -> Reply {
    Reply::Say(
        200,
        format!(
            "<AssumeRoleResponse xmlns=\"https://sts.amazonaws.com/doc/2011-06-15/\"><AssumeRoleResult><Credentials><AccessKeyId>ASIAEXAMPLE</AccessKeyId><SecretAccessKey>canary</SecretAccessKey><SessionToken>{token}</SessionToken><Expiration>{expiration}</Expiration></Credentials><AssumedRoleUser><AssumedRoleId>{id}</AssumedRoleId><Arn>{arn}</Arn></AssumedRoleUser></AssumeRoleResult></AssumeRoleResponse>"
        ),
    )
}

const ARN: &str = "arn:aws:sts::123456789012:assumed-role/genomics/lab-alice-n1";

fn good() -> Reply {
    given("token", &in_seconds(3600), "AROAEXAMPLE:lab-alice-n1", ARN)
}

fn error(status: u16, code: &str, message: &str) -> Reply {
    Reply::Say(
        status,
        format!(
            "<ErrorResponse><Error><Type>Sender</Type><Code>{code}</Code><Message>{message}</Message></Error></ErrorResponse>"
        ),
    )
}

fn identity(arn: &str) -> Reply {
    Reply::Say(
        200,
        format!(
            "<GetCallerIdentityResponse><GetCallerIdentityResult><Arn>{arn}</Arn><UserId>X</UserId><Account>{}</Account></GetCallerIdentityResult></GetCallerIdentityResponse>",
            arn.split(':').nth(4).unwrap()
        ),
    )
}

/// Every AssumeRole gets `reply`; credvend is a role's session in `account`.
async fn refused_in(account: &str, reply: Reply) -> SourceError {
    let me = format!("arn:aws:sts::{account}:assumed-role/credvend/i-0abc");
    let script = move |body: &str, _| if body.contains("GetCallerIdentity") { identity(&me) } else { reply.clone() };
    let (address, _) = endpoint(script).await;
    source(&address, |_| {}).await.assume(&request()).await.unwrap_err()
}

async fn refused(reply: Reply) -> SourceError {
    refused_in("123456789012", reply).await
}

fn fields(body: &str) -> Vec<&str> {
    let mut fields: Vec<&str> = body.split('&').map(|field| field.split('=').next().unwrap()).collect();
    fields.sort_unstable();
    fields
}

#[tokio::test]
async fn by_default_only_the_session_name_is_sent_and_the_document_is_whole() {
    let (address, bodies) = endpoint(|_, _| good()).await;
    let source = source(&address, |_| {}).await;
    let assumed = source.assume(&request()).await.unwrap();
    assert_eq!(assumed.role_id, "AROAEXAMPLE");
    assert_eq!(assumed.credentials.account_id.as_deref(), Some("123456789012"));
    assert_eq!(assumed.credentials.secret_access_key.expose(), "canary");
    assert!(assumed.credentials.expiration > assumed.issued);
    assert!(!format!("{assumed:?}").contains("canary"));
    let body = bodies.lock().unwrap()[0].clone();
    assert_eq!(fields(&body), ["Action", "DurationSeconds", "RoleArn", "RoleSessionName", "Version"]);
}

#[tokio::test]
async fn tags_and_source_identity_are_sent_when_asked_for() {
    let (address, bodies) = endpoint(|_, _| good()).await;
    let mut request = request();
    request.source_identity = Some("alice".into());
    request.tags = vec![("project".into(), "genomics".into())];
    source(&address, |_| {}).await.assume(&request).await.unwrap();
    let body = bodies.lock().unwrap()[0].clone();
    assert!(body.contains("SourceIdentity=alice") && body.contains("Tags.member.1.Key=project"), "{body}");
}

#[tokio::test]
async fn a_role_that_does_not_trust_credvend_is_named_with_whom_it_must_trust() {
    let denied = |action: &str| {
        error(403, "AccessDenied", &format!("User: X is not authorized to perform: {action} on resource: {ROLE}"))
    };
    let SourceError::Refused(why) = refused(denied("sts:AssumeRole")).await else { panic!("it is final") };
    for part in [
        "the trust policy of arn:aws:iam::123456789012:role/projects/genomics must allow sts:AssumeRole to",
        "arn:aws:iam::123456789012:role/credvend (with its path",
    ] {
        assert!(why.contains(part), "{why}");
    }
    assert!(!why.contains("another AWS account"), "{why}");
    for (action, option) in [("sts:TagSession", "session-tags"), ("sts:SetSourceIdentity", "source-identity")] {
        let SourceError::Refused(why) = refused(denied(action)).await else { panic!("it is final") };
        assert!(why.contains(&format!("must allow {action} to")) && why.contains(option), "{why}");
    }
    let SourceError::Refused(why) = refused_in("999999999999", denied("sts:AssumeRole")).await else { panic!() };
    assert!(why.contains("credvend's own policy must allow sts:AssumeRole on it too"), "{why}");
}

#[tokio::test]
async fn a_duration_that_aws_does_not_take_is_refused_with_the_remedy() {
    for (message, remedy) in [
        ("The requested DurationSeconds exceeds the MaxSessionDuration set for this role.", "maximum session duration"),
        (
            "The requested DurationSeconds exceeds the 1 hour session limit for roles assumed by role chaining.",
            "duration = \"1h\" or less",
        ),
    ] {
        let SourceError::Refused(why) = refused(error(400, "ValidationError", message)).await else {
            panic!("{message}")
        };
        assert!(why.contains(remedy) && why.contains(ROLE), "{why}");
    }
}

#[tokio::test]
async fn what_may_pass_is_no_refusal() {
    for (reply, part) in [
        (error(400, "Throttling", "Rate exceeded"), "rate"),
        (error(503, "ServiceUnavailable", "down"), "asked again"),
        (error(500, "InternalFailure", "oops"), "asked again"),
        (error(403, "ExpiredToken", "expired"), "credvend's own credentials"),
        (error(403, "InvalidClientTokenId", "no such key"), "credvend's own credentials"),
        (error(403, "SignatureDoesNotMatch", "Signature expired"), "credvend's own credentials"),
        (Reply::Say(200, "<html>a proxy's page".into()), "asked again"),
        (Reply::Say(200, String::new()), ""),
        (Reply::Say(200, "<AssumeRoleResponse><AssumeRoleResult></AssumeRoleResult></AssumeRoleResponse>".into()), ""),
    ] {
        let error = refused(reply).await;
        assert!(matches!(&error, SourceError::Unavailable(why) if why.contains(part)), "{part}: {error:?}");
    }
}

#[tokio::test]
async fn an_answer_that_cannot_be_true_is_never_served() {
    let id = "AROAEXAMPLE:lab-alice-n1";
    let hour = in_seconds(3600);
    for (reply, why) in [
        (given("", &hour, id, ARN), "SessionToken"),
        (given("a b", &hour, id, ARN), "SessionToken"),
        (given("t", &in_seconds(-5), id, ARN), "clock"),
        (given("t", &in_seconds(7200), id, ARN), "longer than asked"),
        (given("t", &hour, "AROAEXAMPLE:lab-bob-n1", ARN), "session name"),
        (given("t", &hour, "AROAEXAMPLE", ARN), "no session name"),
        (given("t", &hour, ":lab-alice-n1", ARN), "AssumedRoleId"),
        (given("t", &hour, id, "arn:aws:sts::123456789012:assumed-role/climate/lab-alice-n1"), "ARN"),
        (given("t", "soon", id, ARN), ""),
    ] {
        let error = refused(reply).await;
        assert!(matches!(&error, SourceError::Unavailable(text) if text.contains(why)), "{why}: {error:?}");
    }
}

#[tokio::test]
async fn a_passing_error_is_tried_again_a_bounded_number_of_times() {
    let (address, bodies) = endpoint(|_, n| if n == 0 { error(503, "ServiceUnavailable", "x") } else { good() }).await;
    assert!(source(&address, |_| {}).await.assume(&request()).await.is_ok());
    assert_eq!(bodies.lock().unwrap().len(), 2);
    let (address, bodies) = endpoint(|_, _| error(400, "Throttling", "x")).await;
    assert!(source(&address, |_| {}).await.assume(&request()).await.is_err());
    assert_eq!(bodies.lock().unwrap().len(), 3);
    let (address, bodies) = endpoint(|_, _| error(403, "AccessDenied", "x")).await;
    assert!(source(&address, |_| {}).await.assume(&request()).await.is_err());
    let asked = bodies.lock().unwrap().iter().filter(|b| b.contains("Action=AssumeRole")).count();
    assert_eq!(asked, 1);
}

#[tokio::test]
async fn an_endpoint_that_hangs_or_is_gone_costs_no_more_than_the_deadline() {
    let (address, _) = endpoint(|_, _| Reply::Hang).await;
    let short = |options: &mut AwsOptions| options.timeouts.total = Wait::from_millis(200);
    let begun = std::time::Instant::now();
    let error = source(&address, short).await.assume(&request()).await.unwrap_err();
    assert!(
        matches!(&error, SourceError::Unavailable(why) if why.contains("did not answer within 200ms")),
        "{error:?}"
    );
    assert!(begun.elapsed() < Wait::from_secs(5));
    // One place, taken by a call that hangs: the next one waits no longer than its deadline either.
    let one_place = |options: &mut AwsOptions| {
        options.timeouts.total = Wait::from_millis(200);
        options.concurrency = 1;
    };
    let busy = Arc::new(source(&address, one_place).await);
    let (first, second) = (busy.clone(), busy);
    let (request_1, request_2) = (request(), request());
    let (first, second) = tokio::join!(first.assume(&request_1), second.assume(&request_2));
    assert!(first.is_err() && second.is_err());
    // Nobody listens there.
    let closed = { format!("http://{}", TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap()) };
    let error = source(&closed, |_| {}).await.assume(&request()).await.unwrap_err();
    assert!(matches!(&error, SourceError::Unavailable(why) if why.contains("STS")), "{error:?}");
}

/// The connection ends without an answer, in the middle of one, or at once.
async fn broken_off(how: usize) -> (String, Arc<Mutex<usize>>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = format!("http://{}", listener.local_addr().unwrap());
    let (count, kept) = {
        let count: Arc<Mutex<usize>> = Arc::default();
        (count.clone(), count)
    };
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            *kept.lock().unwrap() += 1;
            match how {
                0 => {
                    // With unread bytes in its buffer, a socket that is closed resets the connection.
                    let _ = stream.readable().await;
                }
                1 => {
                    let mut bytes = [0; 4096];
                    let _ = stream.read(&mut bytes).await;
                    let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 5000\r\n\r\n<AssumeRole").await;
                }
                _ => {}
            }
        }
    });
    (address, count)
}

#[tokio::test]
async fn connections_that_break_off_are_tried_again_and_explained() {
    for how in 0..3 {
        let (address, count) = broken_off(how).await;
        let error = source(&address, |_| {}).await.assume(&request()).await.unwrap_err();
        assert!(matches!(&error, SourceError::Unavailable(why) if why.contains("asked again")), "{how}: {error:?}");
        let attempts = *count.lock().unwrap();
        // The HTTP client may itself repeat what was not sent.
        assert!((3..=6).contains(&attempts), "{how}: {attempts}");
    }
}

#[tokio::test]
async fn nonsense_is_asked_again_and_a_good_answer_after_it_is_served() {
    let empty = "<AssumeRoleResponse><AssumeRoleResult></AssumeRoleResult></AssumeRoleResponse>";
    for nonsense in [
        Reply::Say(200, String::new()),
        Reply::Say(200, empty.into()),
        Reply::Say(200, "{\"hello\":\"from a proxy\"}".into()),
        given("", &in_seconds(3600), "AROAEXAMPLE:lab-alice-n1", ARN),
        given("t", "1970-01-01T00:00:00Z", "AROAEXAMPLE:lab-alice-n1", ARN),
        given("t", "9999-12-31T23:59:59Z", "AROAEXAMPLE:lab-alice-n1", ARN),
        given("t", &in_seconds(30), "AROAEXAMPLE:lab-alice-n1", ARN),
    ] {
        let (address, bodies) = endpoint(move |_, n| if n == 0 { nonsense.clone() } else { good() }).await;
        let assumed = source(&address, |_| {}).await.assume(&request()).await.unwrap();
        assert_eq!((assumed.credentials.token.expose(), bodies.lock().unwrap().len()), ("token", 2));
    }
}

#[tokio::test]
async fn a_clock_that_is_wrong_is_named_and_asked_about_once() {
    for code in ["RequestExpired", "SignatureDoesNotMatch", "RequestTimeTooSkewed"] {
        let late = error(403, code, "Signature expired: 20261122T170000Z is now earlier than 20261122T175500Z");
        let Reply::Say(status, text) = late else { unreachable!() };
        let late = Reply::Dated(status, "Sun, 22 Nov 2020 18:00:00 GMT".into(), text);
        let (address, bodies) = endpoint(move |_, _| late.clone()).await;
        let error = source(&address, |_| {}).await.assume(&request()).await.unwrap_err();
        let SourceError::Unavailable(why) = &error else { panic!("{error:?}") };
        assert!(
            why.contains("credvend's own credentials") && why.contains("ahead of AWS'") && why.contains("NTP"),
            "{why}"
        );
        assert_eq!(bodies.lock().unwrap().len(), 1, "{code}");
    }
}

#[tokio::test]
async fn throttling_slows_everything_down_and_costs_turns() {
    let (address, bodies) =
        endpoint(|_, n| if n < 2 { error(400, "Throttling", "Rate exceeded") } else { good() }).await;
    let source = source(&address, |options| options.rate = Rate { per_second: 100, burst: 1 }).await;
    source.turn(&request().project).await.unwrap();
    source.assume(&request()).await.unwrap();
    assert_eq!(bodies.lock().unwrap().len(), 3);
    let rate = source.aws.turns().rate();
    assert!(rate < 95.0, "{rate}");
}

#[tokio::test]
async fn what_aws_is_asked_in_a_second_does_not_grow_when_it_fails() {
    let (address, bodies) = endpoint(|_, _| error(503, "ServiceUnavailable", "down")).await;
    let slow = |options: &mut AwsOptions| {
        options.rate = Rate { per_second: 20, burst: 1 };
        options.timeouts.total = Wait::from_secs(2);
    };
    let source = Arc::new(source(&address, slow).await);
    let begun = tokio::time::Instant::now();
    let mut calls = tokio::task::JoinSet::new();
    for _ in 0..20 {
        let source = source.clone();
        calls.spawn(async move {
            let request = request();
            source.turn(&request.project).await.unwrap();
            source.assume(&request).await
        });
    }
    assert!(calls.join_all().await.iter().all(|call| matches!(call, Err(SourceError::Unavailable(_)))));
    let (asked, seconds) = (bodies.lock().unwrap().len(), begun.elapsed().as_secs_f64());
    assert!((asked as f64) <= 20.0 * seconds + 2.0, "{asked} in {seconds} s");
}
