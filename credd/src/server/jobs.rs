//! The runs of jobs on this node, and by which token each is known.

use std::cell::{Cell, RefCell, RefMut};
use std::collections::{HashMap, HashSet, VecDeque};
use std::rc::Rc;

use credd_protocol::{JobId, SessionId, TokenHash, Uid};
use peer::{CgroupId, Seen};
use tokio::sync::Notify;

use super::cache::Key;
use super::trouble::Trouble;
use crate::control::{Job, RunId};

/// No node has so many jobs; a keeper that says otherwise is not believed.
const MAX_RUNS: usize = 100_000;
/// So many ended jobs' tokens are told "your job has ended" instead of "unknown".
const REMEMBERED_ENDS: usize = 1024;

/// Tokens of other nodes that one run remembers. A launcher forwards the first node's; beyond, the oldest is forgotten.
const MAX_FOREIGN: usize = 8;
/// Tokens that one run may have besides its own, so that each process of a large node may ask for one. Beyond, the oldest
/// is forgotten.
const MAX_MINTED: usize = 1024;
/// The same of all runs of one user, for the sake of memory: some hundred bytes each.
const MAX_MINTED_OF_USER: usize = 4096;

/// A credvend that opens sessions and then does not know them is broken.
const MAX_REOPENS: u32 = 3;

/// What credvend has said about a run.
#[derive(Debug, Clone)]
pub enum State {
    /// Nothing yet; the last obstacle, if it was asked.
    Opening(Option<Trouble>),
    /// The session is open.
    Open(Key),
    /// No, and why.
    Refused(String),
    /// The job is over on this node.
    Ended,
}

/// One run of a job.
pub struct Run {
    /// As the keeper told it.
    pub job: Job,
    state: RefCell<State>,
    /// Credentials of a session are served from here only.
    session: Cell<Option<SessionId>>,
    reopened: Cell<u32>,
    /// Somebody opens it right now.
    pub opening: Cell<bool>,
    /// The state has changed.
    pub changed: Notify,
    /// A process of the job waits for credentials: do not sleep for long.
    pub wanted: Notify,
    /// What is known of its job's cgroups. Boxed, as is `other_tokens`: few jobs have a process that asks without its token.
    cgroups: RefCell<Option<Box<Seen>>>,
    other_tokens: RefCell<Option<Box<OtherTokens>>>,
}

/// Tokens with which processes of a run came besides its own.
#[derive(Default)]
struct OtherTokens {
    /// No job's here. A process came with it that is this job's by the kernel's word.
    foreign: VecDeque<TokenHash>,
    /// Minted for it here, the oldest first.
    minted: VecDeque<TokenHash>,
}

impl Run {
    /// A run as the keeper tells it.
    pub fn new(job: Job) -> Rc<Self> {
        let state = match (&job.refused, job.session) {
            _ if job.ended => State::Ended,
            (Some(reason), _) => State::Refused(reason.clone()),
            (None, Some(session)) => State::Open(Key { session, role: job.options.role.clone() }),
            (None, None) => State::Opening(None),
        };
        Rc::new(Run {
            session: Cell::new(job.session),
            state: RefCell::new(state),
            job,
            reopened: Cell::new(0),
            opening: Cell::new(false),
            changed: Notify::new(),
            wanted: Notify::new(),
            cgroups: RefCell::default(),
            other_tokens: RefCell::default(),
        })
    }

    /// Whether a process of this job came with this token, which is no job's here. It proves nothing about any other
    /// process: it says that no record need be looked for.
    pub fn is_foreign(&self, token: &TokenHash) -> bool {
        self.other_tokens.borrow().as_ref().is_some_and(|tokens| tokens.foreign.contains(token))
    }

    /// A process of this job came with this token, which is no job's here.
    pub fn note_foreign(&self, token: &TokenHash) {
        let mut tokens = self.other_tokens();
        let foreign = &mut tokens.foreign;
        if foreign.contains(token) {
            return;
        }
        if foreign.len() >= MAX_FOREIGN {
            foreign.pop_front();
        }
        foreign.push_back(*token);
    }

    fn other_tokens(&self) -> RefMut<'_, OtherTokens> {
        RefMut::map(self.other_tokens.borrow_mut(), |tokens| &mut **tokens.get_or_insert_default())
    }

    fn minted(&self) -> usize {
        self.other_tokens.borrow().as_ref().map_or(0, |tokens| tokens.minted.len())
    }

    /// What is known of its job's cgroups.
    pub fn cgroups(&self) -> RefMut<'_, Seen> {
        RefMut::map(self.cgroups.borrow_mut(), |seen| &mut **seen.get_or_insert_default())
    }

    /// Whether this cgroup is known to be its job's.
    pub fn has_cgroup(&self, cgroup: CgroupId) -> bool {
        self.cgroups.borrow().as_ref().is_some_and(|seen| seen.has(cgroup))
    }

    /// Looks at the state without copying it.
    pub fn with_state<R>(&self, look: impl FnOnce(&State) -> R) -> R {
        look(&self.state.borrow())
    }

    /// A copy of the state.
    pub fn state(&self) -> State {
        self.state.borrow().clone()
    }

    /// Whether the job is over here.
    pub fn ended(&self) -> bool {
        matches!(*self.state.borrow(), State::Ended)
    }

    /// credvend's session, as long as it is to be left at the end.
    pub fn session(&self) -> Option<SessionId> {
        self.session.get()
    }

    /// The session is open.
    pub fn opened(&self, session: SessionId) {
        self.session.set(Some(session));
        self.set(State::Open(Key { session, role: self.job.options.role.clone() }));
    }

    /// credvend does not know the session any more: back to opening. `false` if that has happened too often, or if the
    /// run was refused meanwhile: a revocation is not undone by an answer that was on its way.
    pub fn reopen(&self) -> bool {
        self.reopened.set(self.reopened.get().saturating_add(1));
        if self.reopened.get() > MAX_REOPENS || !self.with_state(|state| matches!(state, State::Open(_))) {
            return false;
        }
        self.session.set(None);
        self.set(State::Opening(None));
        true
    }

    /// A new state; an ended run stays ended.
    pub fn set(&self, state: State) {
        if !self.ended() {
            *self.state.borrow_mut() = state;
        }
        self.changed.notify_waiters();
    }
}

/// What the keeper's news about a job means.
pub enum News {
    /// A new run.
    New(Rc<Run>),
    /// A known run whose end was not known yet.
    Over(RunId),
    /// Nothing new, or more than can be kept.
    None,
}

/// All runs.
#[derive(Default)]
pub struct Jobs {
    runs: HashMap<RunId, Rc<Run>>,
    by_token: HashMap<TokenHash, Rc<Run>>,
    /// How many runs that have not ended each user has.
    live: HashMap<Uid, usize>,
    over: VecDeque<(TokenHash, JobId, Uid)>,
    /// The records that were there at start are all known.
    pub scanned: bool,
    /// A run came, or the scan is complete.
    pub changed: Rc<Notify>,
}

impl Jobs {
    /// The keeper has found a record.
    pub fn found(&mut self, job: Job) -> News {
        if let Some(known) = self.runs.get(&job.run) {
            return if job.ended && !known.ended() { News::Over(job.run) } else { News::None };
        }
        if self.runs.len() >= MAX_RUNS {
            tracing::error!(job = %job.job, "too many jobs on this node: this one gets no credentials");
            return News::None;
        }
        let run = Run::new(job);
        if !run.ended() {
            self.by_token.insert(run.job.token, run.clone());
            *self.live.entry(run.job.uid).or_default() += 1;
        }
        self.runs.insert(run.job.run, run.clone());
        self.changed.notify_waiters();
        News::New(run)
    }

    /// The run is over: its token is forgotten. `None` if it was unknown or over already.
    pub fn end(&mut self, run: &RunId) -> Option<Rc<Run>> {
        let run = self.runs.get(run)?.clone();
        if run.ended() {
            return None;
        }
        self.by_token.remove(&run.job.token);
        run.cgroups.take();
        for token in run.other_tokens.take().unwrap_or_default().minted {
            self.by_token.remove(&token);
        }
        if let Some(live) = self.live.get_mut(&run.job.uid) {
            *live -= 1;
            if *live == 0 {
                self.live.remove(&run.job.uid);
            }
        }
        if self.over.len() >= REMEMBERED_ENDS {
            self.over.pop_front();
        }
        self.over.push_back((run.job.token, run.job.job, run.job.uid));
        run.set(State::Ended);
        Some(run)
    }

    /// One more token for a running run, which dies with it. The oldest one makes room where the run or its user has too
    /// many. `false` if the run is over.
    pub fn add_token(&mut self, run: &RunId, token: TokenHash) -> bool {
        let Some(run) = self.runs.get(run).filter(|run| !run.ended()).cloned() else { return false };
        self.make_room(&run);
        run.other_tokens().minted.push_back(token);
        self.by_token.insert(token, run);
        true
    }

    /// Forgets a minted token if there is no room for one more: of this run, or of that one of the user's runs which has
    /// the most.
    fn make_room(&mut self, run: &Rc<Run>) {
        let minted = |run: &Rc<Run>| run.minted();
        let from = if run.minted() >= MAX_MINTED {
            Some(run)
        } else if self.of_user(run.job.uid).map(minted).sum::<usize>() >= MAX_MINTED_OF_USER {
            self.of_user(run.job.uid).max_by_key(|run| minted(run))
        } else {
            None
        };
        if let Some(oldest) = from.and_then(|from| from.other_tokens().minted.pop_front()) {
            self.by_token.remove(&oldest);
        }
    }

    /// Whether a job of this user runs here.
    pub fn has_job_of(&self, uid: Uid) -> bool {
        self.live.contains_key(&uid)
    }

    /// credvend knows the end: nothing is left to do.
    pub fn remove(&mut self, run: &RunId) {
        self.runs.remove(run);
    }

    /// The run whose job has this token.
    pub fn by_token(&self, token: &TokenHash) -> Option<&Rc<Run>> {
        self.by_token.get(token)
    }

    /// The job whose token this was, if it ended lately.
    pub fn ended_lately(&self, token: &TokenHash) -> Option<JobId> {
        self.over.iter().rev().find(|(known, ..)| known == token).map(|(_, job, _)| *job)
    }

    /// Whether a job of this user and id ended lately.
    pub fn has_ended(&self, job: JobId, uid: Uid) -> bool {
        self.over.iter().any(|(_, ended, of)| (*ended, *of) == (job, uid))
    }

    /// The living runs of this user.
    pub fn of_user(&self, uid: Uid) -> impl Iterator<Item = &Rc<Run>> {
        self.runs.values().filter(move |run| run.job.uid == uid && !run.ended())
    }

    /// The living runs of this user that a process on this node may mean by a job's id: the job's own, and after it those
    /// of other components of the heterogeneous job that it leads.
    pub fn meant_by(&self, job: JobId, uid: Uid) -> Vec<Rc<Run>> {
        let meant = |run: &&Rc<Run>| run.job.job == job || run.job.het_leader == Some(job);
        let mut runs: Vec<_> = self.of_user(uid).filter(meant).cloned().collect();
        runs.sort_by_key(|run| run.job.job != job);
        runs
    }

    /// The living runs of these sessions.
    pub fn of_sessions(&self, sessions: &HashSet<SessionId>) -> Vec<Rc<Run>> {
        let of_these = |run: &Rc<Run>| !run.ended() && run.session().is_some_and(|own| sessions.contains(&own));
        self.runs.values().filter(|run| of_these(run)).cloned().collect()
    }

    /// All runs, those whose end is not delivered too.
    pub fn all(&self) -> impl Iterator<Item = &Rc<Run>> {
        self.runs.values()
    }

    /// Says that all records of the start are known.
    pub fn scan_complete(&mut self) {
        self.scanned = true;
        self.changed.notify_waiters();
    }
}

#[cfg(test)]
pub mod fixture {
    use super::*;
    use credd_protocol::record::JobOptions;
    use credd_protocol::{JobToken, Uid};

    /// A job of `uid`, and its token.
    pub fn job(id: u32, uid: u32) -> (Job, JobToken) {
        let token = JobToken::mint().unwrap();
        let job = Job {
            run: RunId::of(token.hash()),
            job: JobId::try_from(id).unwrap(),
            restart: 0,
            cluster: "lab".parse().unwrap(),
            node: "n1".parse().unwrap(),
            user: "alice".parse().unwrap(),
            uid: Uid(uid),
            account: Some("genomics".parse().unwrap()),
            partition: "batch".parse().unwrap(),
            first_node: false,
            sluid: None,
            het_leader: None,
            token: token.hash(),
            options: JobOptions::default(),
            session: None,
            refused: None,
            ended: false,
        };
        (job, token)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use credd_protocol::JobToken;

    #[test]
    fn an_ended_run_stays_ended_and_its_token_is_gone() {
        let mut jobs = Jobs::default();
        let (job, token) = fixture::job(7, 1001);
        let News::New(run) = jobs.found(job.clone()) else { panic!("new") };
        assert!(jobs.by_token(&token.hash()).is_some());
        assert!(matches!(jobs.found(job.clone()), News::None));
        drop(run.cgroups());
        assert!(jobs.end(&job.run).is_some() && jobs.end(&job.run).is_none());
        assert!(run.cgroups.borrow().is_none());
        run.opened(SessionId::random());
        assert!(run.ended() && run.session().is_some(), "a late answer is there to be left, not to be served");
        assert!(jobs.by_token(&token.hash()).is_none());
        assert_eq!(jobs.ended_lately(&token.hash()), Some(job.job));
        assert_eq!(jobs.ended_lately(&credd_protocol::JobToken::mint().unwrap().hash()), None);
    }

    fn mint(jobs: &mut Jobs, run: &RunId, many: usize) -> Vec<TokenHash> {
        let tokens: Vec<_> = (0..many).map(|_| JobToken::mint().unwrap().hash()).collect();
        assert!(tokens.iter().all(|token| jobs.add_token(run, *token)));
        tokens
    }

    #[test]
    fn the_oldest_minted_token_makes_room_and_all_die_with_the_run() {
        let mut jobs = Jobs::default();
        let (job, own) = fixture::job(7, 1001);
        jobs.found(job.clone());
        let tokens = mint(&mut jobs, &job.run, MAX_MINTED + 2);
        let known = |jobs: &Jobs, token| jobs.by_token(token).is_some_and(|run| run.job.job == job.job);
        assert!(!known(&jobs, &tokens[0]) && !known(&jobs, &tokens[1]), "the oldest two are forgotten");
        assert!(tokens[2..].iter().all(|token| known(&jobs, token)) && known(&jobs, &own.hash()));
        assert_eq!(jobs.by_token.len(), MAX_MINTED + 1);
        jobs.end(&job.run);
        assert!(tokens.iter().all(|token| jobs.by_token(token).is_none()));
        assert!(!jobs.add_token(&job.run, tokens[0]), "the run is over");
        assert!(jobs.by_token.is_empty());
    }

    #[test]
    fn one_users_minted_tokens_are_bounded_and_cost_no_other_user_any() {
        let mut jobs = Jobs::default();
        let (other, _) = fixture::job(99, 1002);
        jobs.found(other.clone());
        let others = mint(&mut jobs, &other.run, 3);
        let runs = (MAX_MINTED_OF_USER / MAX_MINTED + 2) as u32;
        let mut last = Vec::new();
        for id in 1..=runs {
            let (job, _) = fixture::job(id, 1001);
            jobs.found(job.clone());
            last = mint(&mut jobs, &job.run, MAX_MINTED / 2);
            last.extend(mint(&mut jobs, &job.run, MAX_MINTED / 2));
        }
        assert_eq!(jobs.by_token.len(), MAX_MINTED_OF_USER + runs as usize + 1 + others.len());
        assert!(others.iter().all(|token| jobs.by_token(token).is_some()));
        let newest = last.last().unwrap();
        assert!(jobs.by_token(newest).is_some(), "the newest one is there");
    }

    #[test]
    fn a_refused_run_is_not_opened_anew() {
        let mut jobs = Jobs::default();
        let (job, _) = fixture::job(7, 1001);
        let News::New(run) = jobs.found(job) else { panic!("new") };
        run.opened(SessionId::random());
        assert!(run.reopen());
        run.opened(SessionId::random());
        run.set(State::Refused("revoked".into()));
        assert!(!run.reopen());
        assert!(matches!(run.state(), State::Refused(_)) && run.session().is_some());
    }

    #[test]
    fn a_user_has_jobs_here_until_the_last_one_ends() {
        let mut jobs = Jobs::default();
        let (one, _) = fixture::job(7, 1001);
        let (two, _) = fixture::job(8, 1001);
        let (mut over, _) = fixture::job(9, 1002);
        over.ended = true;
        for job in [&one, &one, &two, &over] {
            jobs.found(job.clone());
        }
        assert!(jobs.has_job_of(Uid(1001)) && !jobs.has_job_of(Uid(1002)) && !jobs.has_job_of(Uid(0)));
        jobs.end(&one.run);
        jobs.end(&one.run);
        assert!(jobs.has_job_of(Uid(1001)));
        jobs.end(&two.run);
        jobs.remove(&two.run);
        assert!(!jobs.has_job_of(Uid(1001)));
    }

    #[test]
    fn a_job_is_meant_by_its_id_or_by_its_leaders_and_only_its_own_user_means_it() {
        let mut jobs = Jobs::default();
        let with = |id, uid, leader: Option<u32>| {
            let (mut job, _) = fixture::job(id, uid);
            job.het_leader = leader.map(|leader| JobId::try_from(leader).unwrap());
            job
        };
        let own = with(7, 1001, None);
        for job in [with(9, 1001, Some(7)), own.clone(), with(8, 1001, Some(7)), with(10, 1001, Some(70))] {
            jobs.found(job);
        }
        jobs.found(with(11, 1002, Some(7)));
        let meant = |jobs: &Jobs, job, uid| -> Vec<u32> {
            jobs.meant_by(JobId::try_from(job).unwrap(), Uid(uid)).iter().map(|run| run.job.job.get()).collect()
        };
        let mut all = meant(&jobs, 7, 1001);
        assert_eq!(all[0], 7, "the job itself comes first");
        all.sort_unstable();
        assert_eq!(all, [7, 8, 9]);
        assert_eq!(meant(&jobs, 8, 1001), [8]);
        assert_eq!(meant(&jobs, 7, 1002), [11]);
        assert!(meant(&jobs, 7, 0).is_empty() && meant(&jobs, 12, 1001).is_empty());
        jobs.end(&own.run);
        assert!(!meant(&jobs, 7, 1001).contains(&7));
        assert!(jobs.has_ended(own.job, Uid(1001)) && !jobs.has_ended(own.job, Uid(1002)));
    }

    #[test]
    fn few_tokens_of_other_nodes_are_remembered() {
        let (job, _) = fixture::job(7, 1001);
        let run = Run::new(job);
        let tokens: Vec<_> = (0..=MAX_FOREIGN).map(|_| credd_protocol::JobToken::mint().unwrap().hash()).collect();
        for token in &tokens {
            run.note_foreign(token);
            run.note_foreign(token);
        }
        assert!(!run.is_foreign(&tokens[0]) && tokens[1..].iter().all(|token| run.is_foreign(token)));
    }

    #[test]
    fn a_record_that_says_more_than_is_known_is_news() {
        let mut jobs = Jobs::default();
        let (mut job, _) = fixture::job(7, 1001);
        assert!(matches!(jobs.found(job.clone()), News::New(_)));
        job.ended = true;
        assert!(matches!(jobs.found(job.clone()), News::Over(_)));
    }

    #[test]
    fn what_an_earlier_credd_learned_is_the_state() {
        let (mut job, _) = fixture::job(7, 1001);
        job.session = Some(SessionId::random());
        assert!(matches!(Run::new(job.clone()).state(), State::Open(_)));
        job.refused = Some("no".into());
        assert!(matches!(Run::new(job.clone()).state(), State::Refused(_)));
        job.ended = true;
        assert!(matches!(Run::new(job).state(), State::Ended));
    }
}
