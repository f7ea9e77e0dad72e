//! One node's server without sockets: a job or two, processes that ask, a credvend that answers when it is told to. It
//! remembers what was promised, and notices at the moment of serving when a promise is broken.

use std::cell::RefCell;
use std::fmt::Write as _;
use std::rc::Rc;
use std::time::Duration;

use bytes::Bytes;
use credd_protocol::credentials::Credentials;
use credd_protocol::node_api::{CredentialsResponse, Event, HEARD, OPEN, OpenRequest, OpenResponse, credentials_path};
use credd_protocol::{JobId, Secret, SessionId, Uid};
use tokio::sync::{mpsc, oneshot};
use zeroize::Zeroizing;

use super::super::answer::Denial;
use super::super::clock::Clock as _;
use super::super::clock::fake::{FakeClock, Loaded};
use super::super::credvend::{Credvend, Soon, Wire};
use super::super::jobs::{Run, State, fixture};
use super::super::keeper::Keeper;
use super::super::settings::Settings;
use super::super::trouble::Trouble;
use super::super::{Server, World, news, session, vend};
use super::house::Everybody;
use crate::control::ToKeeper;

const UID: u32 = 1001;
const LIFE: Duration = Duration::from_secs(3600);
/// As `[credvend] request-timeout`.
const WIRE_PATIENCE: Duration = Duration::from_secs(15);

/// Something that happens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Act {
    /// A process of the job asks.
    Ask,
    /// One of another job.
    AskOther,
    /// credvend answers the request that has waited longest but so many.
    Land(usize, Answer),
    /// credvend says: the session is over.
    Invalidate,
    /// credvend says: what the session was given is dead.
    Renew,
    /// credvend says something from which a gap shows.
    Gap,
    /// The job ends.
    End,
    /// So many seconds.
    Pass(u64),
}

/// credvend's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Answer {
    Good,
    Outage,
    No,
    Never,
    Gone,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Asked {
    Credentials(SessionId),
    Open(JobId),
    Leave(SessionId),
}

struct Pending {
    asked: Asked,
    /// When, in the order of events.
    at: usize,
    /// What it brings must not be used.
    taken_back: bool,
    answer: oneshot::Sender<Result<Zeroizing<Vec<u8>>, Trouble>>,
}

/// A document that credvend gave.
struct Given {
    session: SessionId,
    asked_at: usize,
    until: time::OffsetDateTime,
}

/// What happened, and what was promised.
#[derive(Default)]
struct Ledger {
    /// Events so far.
    at: usize,
    pending: Vec<Pending>,
    given: Vec<Given>,
    session: Option<SessionId>,
    invalidated: Option<SessionId>,
    invalidated_at: usize,
    renewed_at: usize,
    gap_at: usize,
    /// Since the gap credvend failed, or kept somebody waiting.
    excused: bool,
    ended: bool,
    troubles: [usize; 4],
    broken: Option<String>,
}

impl Ledger {
    /// The place of one more event in the order of all.
    fn next(&mut self) -> usize {
        self.at += 1;
        self.at
    }

    fn breaks(&mut self, what: String) {
        self.broken.get_or_insert(what);
    }

    fn take_back(&mut self, session: Option<SessionId>) {
        for pending in &mut self.pending {
            if matches!(pending.asked, Asked::Credentials(of) if Some(of) == session) {
                pending.taken_back = true;
            }
        }
    }
}

struct Scripted(Rc<RefCell<Ledger>>);

impl Wire for Scripted {
    fn post<'a>(&'a self, path: &'a str, body: Vec<u8>) -> Soon<'a, Zeroizing<Vec<u8>>> {
        if path == HEARD {
            return Box::pin(async { Ok(Zeroizing::new(b"{}".to_vec())) });
        }
        let session = || path.split('/').nth(4).unwrap().parse::<SessionId>().unwrap();
        let asked = match path {
            path if path.split('?').next() == Some(OPEN) => {
                Asked::Open(serde_json::from_slice::<OpenRequest>(&body).unwrap().job)
            }
            path if path.ends_with("/leave") => Asked::Leave(session()),
            path => {
                assert_eq!(path, credentials_path(session()));
                Asked::Credentials(session())
            }
        };
        let mut ledger = self.0.borrow_mut();
        let (answer, answered) = oneshot::channel();
        if ledger.pending.iter().any(|p| p.asked == asked && !p.taken_back && !p.answer.is_closed()) {
            ledger.breaks(format!("a second request under way: {asked:?}"));
        }
        let at = ledger.next();
        ledger.pending.push(Pending { asked, at, taken_back: false, answer });
        Box::pin(async move {
            match tokio::time::timeout(WIRE_PATIENCE, answered).await {
                Ok(Ok(answer)) => answer,
                _ => Err(Trouble::Outage("credvend did not answer".into())),
            }
        })
    }

    fn stream(&self, _: String) -> Soon<'_, reqwest::Response> {
        Box::pin(async { Err(Trouble::Outage("there is no stream here".into())) })
    }

    fn broken(&self, error: &reqwest::Error) -> Trouble {
        Trouble::Outage(error.to_string())
    }
}

/// What a process got, once it got it.
type Got = Rc<RefCell<Option<Result<Bytes, Denial>>>>;

/// See the module.
pub struct Bed {
    server: Rc<Server>,
    clock: FakeClock,
    run: Rc<Run>,
    other: Rc<Run>,
    ledger: Rc<RefCell<Ledger>>,
    keeper: mpsc::UnboundedReceiver<ToKeeper>,
    stream: mpsc::UnboundedSender<Act>,
    asked: Vec<(tokio::time::Instant, Got)>,
    delivered: usize,
    deaf: Option<Act>,
}

/// The settings of every bed: one place in the cache.
pub fn settings(store: bool) -> Settings {
    let text = format!("[credvend]\nurl = \"https://127.0.0.1:1\"\npin = \"sha256:{}\"\n", "ab".repeat(32));
    let mut settings = Settings::of(&crate::config::parse(&text).unwrap());
    settings.cache.store = store;
    settings.cache.max_entries = 1;
    settings
}

impl Bed {
    /// A job, its session open or not, and another one; credvend has said hello. `deaf` is an event that never arrives.
    pub async fn new(settings: &Settings, open: bool, deaf: Option<Act>) -> Self {
        let ledger = Rc::new(RefCell::new(Ledger::default()));
        let clock = FakeClock::new();
        let (out, keeper) = mpsc::unbounded_channel();
        let world = World {
            clock: Rc::new(clock.clone()),
            dice: Rc::new(Loaded(0.5)),
            whois: Box::new(Everybody(Ok(Uid(UID)))),
        };
        let credvend = Credvend::new(Box::new(Scripted(ledger.clone())));
        let server = Server::new(Keeper::new(out), credvend, 9999, *settings, world);
        let find = |id, session| {
            let (mut job, token) = fixture::job(id, UID);
            job.session = session;
            session::found(&server, job);
            server.jobs.borrow().by_token(&token.hash()).unwrap().clone()
        };
        let session = open.then(SessionId::random);
        let (run, other) = (find(7, session), find(8, Some(SessionId::random())));
        ledger.borrow_mut().session = session;
        tokio::task::spawn_local(vend::renew(server.clone()));
        tokio::task::spawn_local(news::answer(server.clone()));
        server.credvend_said(Some(Event::Hello { epoch: "e".into(), seq: 0 }));
        let (stream, mut said) = mpsc::unbounded_channel();
        let mut bed = Bed { server, clock, run, other, ledger, keeper, stream, asked: vec![], delivered: 0, deaf };
        let (server, run, ledger) = (bed.server.clone(), bed.run.clone(), bed.ledger.clone());
        tokio::task::spawn_local(async move {
            let mut seq = 0;
            while let Some(act) = said.recv().await {
                hear(&server, &run, &ledger, act, deaf, &mut seq);
            }
        });
        bed.settle().await;
        bed
    }

    /// How many requests wait for credvend.
    pub fn pending(&self) -> usize {
        self.ledger.borrow().pending.len()
    }

    /// Whether it can happen.
    pub fn allows(&self, act: Act) -> bool {
        let ledger = self.ledger.borrow();
        match act {
            Act::Ask | Act::AskOther => self.asked.iter().filter(|(_, got)| got.borrow().is_none()).count() < 2,
            Act::Land(place, answer) => ledger.pending.get(place).is_some_and(|pending| match answer {
                // Of these there is one each.
                Answer::Gone => !matches!(pending.asked, Asked::Open(_)),
                Answer::No => matches!(pending.asked, Asked::Credentials(_)),
                _ => true,
            }),
            Act::Invalidate => ledger.invalidated.is_none() && ledger.session.is_some(),
            Act::Renew => ledger.session.is_some(),
            Act::End => !ledger.ended,
            Act::Gap | Act::Pass(_) => true,
        }
    }

    /// They happen, one right after the other; then everything runs that can.
    pub async fn play(&mut self, acts: &[Act]) {
        for act in acts {
            match *act {
                Act::Ask => self.ask(&self.run.clone()),
                Act::AskOther => self.ask(&self.other.clone()),
                Act::Land(place, answer) => self.land(place, answer),
                Act::Invalidate | Act::Renew | Act::Gap | Act::End => drop(self.stream.send(*act)),
                Act::Pass(seconds) => {
                    self.ledger.borrow_mut().excused = true;
                    tokio::time::advance(Duration::from_secs(seconds)).await;
                }
            }
        }
        self.settle().await;
    }

    fn ask(&mut self, run: &Rc<Run>) {
        let got = Got::default();
        self.asked.push((tokio::time::Instant::now(), got.clone()));
        let (server, run, ledger, clock) = (self.server.clone(), run.clone(), self.ledger.clone(), self.clock.clone());
        tokio::task::spawn_local(async move {
            let load = server.load(UID);
            let outcome = vend::serve(&server, &run, &load).await;
            if let Ok(body) = &outcome {
                served(&mut ledger.borrow_mut(), body, clock.now().wall);
            }
            *got.borrow_mut() = Some(outcome);
        });
    }

    fn land(&mut self, place: usize, answer: Answer) {
        let mut ledger = self.ledger.borrow_mut();
        // One that was played a moment ago may have taken its place.
        if place >= ledger.pending.len() {
            return;
        }
        let pending = ledger.pending.remove(place);
        let (no, never) = (Trouble::No("no role".into()), Trouble::Never("over".into()));
        let trouble = match answer {
            Answer::Good => None,
            Answer::Outage => Some((0, Trouble::Outage("down".into()))),
            Answer::No => Some((1, no)),
            Answer::Never => Some((2, never)),
            Answer::Gone => Some((3, Trouble::Gone("unknown".into()))),
        };
        if let Some((which, trouble)) = trouble {
            ledger.troubles[which] += 1;
            ledger.excused |= which < 2;
            let _ = pending.answer.send(Err(trouble));
            return;
        }
        let now = self.clock.now().wall;
        let body = match pending.asked {
            Asked::Leave(_) => b"{}".to_vec(),
            Asked::Open(job) => {
                let (session, uid) = (SessionId::random(), Uid(UID));
                if job == self.run.job.job {
                    ledger.session = Some(session);
                }
                let (cluster, user, project) =
                    ("lab".parse().unwrap(), "alice".parse().unwrap(), "genomics".parse().unwrap());
                let answer = OpenResponse { session, cluster, job, user, uid, project, partition: None, roles: vec![] };
                serde_json::to_vec(&answer).unwrap()
            }
            // credvend does not give what it has revoked.
            Asked::Credentials(session)
                if ledger.invalidated == Some(session) && pending.at > ledger.invalidated_at =>
            {
                let _ = pending.answer.send(Err(Trouble::Never("revoked".into())));
                return;
            }
            Asked::Credentials(session) => {
                let until = now + LIFE;
                let number = ledger.given.len();
                ledger.given.push(Given { session, asked_at: pending.at, until });
                let credentials = Credentials {
                    access_key_id: number.to_string(),
                    secret_access_key: Secret::new("secret".into()),
                    token: Secret::new("token".into()),
                    expiration: until,
                    role_arn: "arn:aws:iam::123456789012:role/genomics".parse().unwrap(),
                    account_id: None,
                };
                let session_name = "lab-alice-n1".to_owned();
                serde_json::to_vec(&CredentialsResponse { credentials, session_name, issued: now }).unwrap()
            }
        };
        let _ = pending.answer.send(Ok(Zeroizing::new(body)));
    }

    /// Everything runs that can. No time passes: this task is always ready, too.
    async fn settle(&mut self) {
        for _ in 0..12 {
            tokio::task::yield_now().await;
        }
        self.server.look.notify_one();
        for _ in 0..4 {
            tokio::task::yield_now().await;
        }
        while let Ok(said) = self.keeper.try_recv() {
            self.delivered += usize::from(matches!(said, ToKeeper::EndDelivered { .. }));
        }
        let mut ledger = self.ledger.borrow_mut();
        ledger.pending.retain(|pending| !pending.answer.is_closed());
        if let State::Open(key) = self.run.state()
            && self.server.cache.borrow().until(&key).is_some()
            && ledger.invalidated == Some(key.session)
            && self.deaf.is_none()
        {
            ledger.breaks("a revoked session's document lies in the cache".into());
        }
    }

    /// Everything that tells this state from another, as far as what can happen from here on goes.
    pub fn sketch(&self) -> String {
        let now = self.clock.now();
        let ledger = self.ledger.borrow();
        let given = |body: &Bytes| {
            let given = &ledger.given[number(body)];
            let own = ledger.session == Some(given.session);
            (
                own,
                given.asked_at < ledger.renewed_at,
                given.asked_at < ledger.gap_at,
                (given.until - now.wall).whole_seconds(),
            )
        };
        let mut text = self.server.cache.borrow().sketch(now, |key| ledger.session == Some(key.session), given);
        for run in [&self.run, &self.other] {
            let state = run.with_state(|state| match state {
                State::Opening(trouble) => format!("opening {trouble:?}"),
                State::Open(key) => format!("open {}", ledger.session == Some(key.session)),
                State::Refused(_) => "refused".into(),
                State::Ended => "ended".into(),
            });
            let _ = write!(text, "|{state} {}", run.opening.get());
        }
        for pending in &ledger.pending {
            let asked = match pending.asked {
                Asked::Credentials(of) => format!("c{}", ledger.session == Some(of)),
                Asked::Open(job) => format!("o{job}"),
                Asked::Leave(of) => format!("l{}", ledger.session == Some(of)),
            };
            let before = [ledger.renewed_at, ledger.gap_at, ledger.invalidated_at].map(|at| pending.at < at);
            let _ = write!(text, "|{asked} {} {before:?}", pending.taken_back);
        }
        for (at, got) in self.asked.iter().filter(|(_, got)| got.borrow().is_none()) {
            let _ = write!(text, "|waits {:?} {:?}", at.elapsed(), got.borrow());
        }
        let over = (ledger.invalidated.is_some(), ledger.invalidated == ledger.session, ledger.ended, ledger.excused);
        let _ = write!(text, "|{over:?} {:?} {:?}", ledger.troubles, self.server.credvend.problem().is_some());
        text
    }

    /// credvend answers whatever it is asked, until nothing is asked any more.
    async fn answer_all(&mut self) {
        for _ in 0..1000 {
            if self.pending() == 0 {
                return;
            }
            self.play(&[Act::Land(0, Answer::Good)]).await;
        }
        self.ledger.borrow_mut().breaks("credvend is asked again and again".into());
    }

    /// credvend answers all it is asked, and time passes: nobody waits any longer, and who may be served is.
    pub async fn leave_alone(&mut self) {
        for _ in 0..4 {
            self.answer_all().await;
            self.play(&[Act::Pass(2)]).await;
        }
        if self.asked.iter().any(|(_, got)| got.borrow().is_none()) {
            self.ledger.borrow_mut().breaks("somebody waits for ever".into());
        }
        for _ in 0..4 {
            self.play(&[Act::Pass(15)]).await;
            self.answer_all().await;
        }
        let (ended, heard_end) = (self.ledger.borrow().ended, self.deaf != Some(Act::End));
        if ended && heard_end && self.delivered != 1 {
            self.ledger.borrow_mut().breaks(format!("the end was delivered {} times", self.delivered));
        }
        let refused = matches!(self.run.state(), State::Refused(_));
        let invalidated = self.ledger.borrow().invalidated;
        self.play(&[Act::Ask]).await;
        self.answer_all().await;
        let last = self.asked.last().and_then(|(_, got)| got.borrow().clone());
        let lives = !ended && !refused && (invalidated.is_none() || invalidated != self.ledger.borrow().session);
        if lives && !matches!(last, Some(Ok(_))) {
            self.ledger.borrow_mut().breaks(format!("a living job gets nothing although credvend answers: {last:?}"));
        }
    }

    /// The first promise that was broken.
    pub fn broken(&self) -> Option<String> {
        self.ledger.borrow().broken.clone()
    }
}

/// Something arrives from credvend's stream or from the keeper. What was promised holds from here on.
fn hear(server: &Rc<Server>, run: &Rc<Run>, ledger: &Rc<RefCell<Ledger>>, act: Act, deaf: Option<Act>, seq: &mut u64) {
    let session = {
        let mut ledger = ledger.borrow_mut();
        let (at, session) = (ledger.next(), ledger.session);
        match act {
            Act::Invalidate => (ledger.invalidated, ledger.invalidated_at) = (session, at),
            Act::Renew => ledger.renewed_at = at,
            Act::Gap => (ledger.gap_at, ledger.excused) = (at, false),
            _ => ledger.ended = true,
        }
        if act != Act::Gap {
            ledger.take_back(session);
        }
        session
    };
    if deaf == Some(act) {
        return;
    }
    let (sessions, reason) = (session.into_iter().collect(), "r".to_owned());
    *seq += 1;
    match act {
        Act::Invalidate => server.credvend_said(Some(Event::Invalidated {
            seq: *seq,
            sessions,
            reason,
            answer: true,
            completed: vec![],
        })),
        Act::Renew => server.credvend_said(Some(Event::Renew { seq: *seq, sessions, reason, answer: true })),
        Act::Gap => server.credvend_said(Some(Event::Ping { seq: *seq })),
        _ => {
            *seq -= 1;
            session::end(server, &run.job.run);
        }
    }
}

fn number(body: &Bytes) -> usize {
    let document: serde_json::Value = serde_json::from_slice(body).unwrap();
    document["AccessKeyId"].as_str().unwrap().parse().unwrap()
}

/// A process has got this document just now.
fn served(ledger: &mut Ledger, body: &Bytes, now: time::OffsetDateTime) {
    let given = &ledger.given[number(body)];
    let own = ledger.session == Some(given.session);
    let (asked_at, session) = (given.asked_at, given.session);
    if given.until <= now {
        ledger.breaks(format!("served when it had expired {} s ago", (now - given.until).whole_seconds()));
    } else if ledger.invalidated == Some(session) {
        ledger.breaks("served although the session was revoked".into());
    } else if own && ledger.ended {
        ledger.breaks("served although the job has ended".into());
    } else if own && asked_at < ledger.renewed_at {
        ledger.breaks("served although it is dead in AWS".into());
    } else if asked_at < ledger.gap_at && !ledger.excused {
        ledger.breaks("served after a gap and not verified, although credvend could be asked".into());
    }
}
