//! What Slurm last said about a job, for all of its nodes: one question for each job and run, however many nodes ask.
//!
//! What is kept can only say yes, and only for a while: whoever would be refused by it has Slurm asked anew. So a node
//! that joined, a requeue, an id that Slurm gave again, are seen at once; a node that left the job and says nothing keeps
//! its access as long as the word counts, and one that says so loses it with that. The sweep's complete listing renews
//! what is kept, so that the refreshes of a running job ask nothing.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use credd_protocol::{ClusterName, JobId, NodeName};
use time::{Duration, OffsetDateTime};

use super::Node;
use super::fresh;
use crate::attest::{Answer, AttestError, Attestor, JobFacts, JobState};
use crate::clock::Clock;
use crate::rates::AddressRates;

/// The most jobs, and names of their nodes, that are remembered. What is not costs a question each time.
const MAX_JOBS: usize = 65_536;
const MAX_NAMES: usize = 500_000;

/// So many questions to Slurm each address may cause in a second, and at once after a pause, unless told otherwise. A node
/// needs one when a job starts there, and one when it ends. By address, since root of one node can take any node's name.
const QUESTIONS: (u32, u32) = (32, 256);

/// One answer of Slurm's.
pub(super) struct Word {
    /// Questions are numbered as they begin: what was asked later has the higher number, whatever the clock does.
    number: u64,
    /// When it was asked for.
    pub(super) asked: OffsetDateTime,
    pub(super) answer: Answer,
    /// The places of the job's nodes, ordered by name.
    by_name: Box<[u32]>,
}

impl Word {
    fn new(number: u64, asked: OffsetDateTime, answer: Answer) -> Self {
        let nodes = nodes(&answer);
        let mut by_name: Box<[u32]> = (0..u32::try_from(nodes.len()).unwrap_or(u32::MAX)).collect();
        by_name.sort_unstable_by_key(|at| &nodes[*at as usize]);
        Word { number, asked, answer, by_name }
    }

    /// Whether the job is on that node.
    pub(super) fn names(&self, node: &NodeName) -> bool {
        let nodes = nodes(&self.answer);
        self.by_name.binary_search_by_key(&node, |at| &nodes[*at as usize]).is_ok()
    }

    /// Whether a node that the job is on is one of `others`, which as a rule are the same in the same order.
    pub(super) fn names_among(&self, node: &NodeName, others: &[NodeName]) -> bool {
        let nodes = nodes(&self.answer);
        let place = self.by_name.binary_search_by_key(&node, |at| &nodes[*at as usize]).ok();
        let same = place.and_then(|place| others.get(self.by_name[place] as usize)).is_some_and(|other| other == node);
        same || others.contains(node)
    }

    /// Whether Slurm was asked after the mark was made.
    pub(super) fn is_after(&self, mark: Mark) -> bool {
        self.number > mark.0
    }
}

fn nodes(answer: &Answer) -> &[NodeName] {
    match answer {
        Answer::Known(facts) => &facts.nodes,
        Answer::Absent => &[],
    }
}

/// A moment between questions.
#[derive(Debug, Clone, Copy)]
pub(super) struct Mark(u64);

/// See the module.
pub(super) struct Facts {
    clock: Arc<dyn Clock>,
    /// The number of the question that began last.
    questions: AtomicU64,
    clusters: HashMap<ClusterName, Mutex<Jobs>>,
    /// Root of one node must not keep slurmctld, and the questions that others need, busy.
    budgets: AddressRates,
}

#[derive(Default)]
struct Jobs {
    jobs: HashMap<JobId, Arc<Entry>>,
    names: usize,
}

#[derive(Default)]
struct Entry {
    said: Mutex<Said>,
    attempts: AtomicU64,
    /// Held while a session is opened.
    opening: Arc<tokio::sync::Mutex<()>>,
    /// Held while Slurm is asked; what came of the last attempt, if nothing.
    turn: tokio::sync::Mutex<Option<AttestError>>,
}

#[derive(Default)]
struct Said {
    word: Option<Arc<Word>>,
    /// Nodes that said that the job is over there, and when: what was asked before does not speak for them.
    left: HashMap<NodeName, Mark>,
}

impl Entry {
    fn said(&self) -> MutexGuard<'_, Said> {
        self.said.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Said {
    fn for_node(&self, node: &NodeName) -> Option<Arc<Word>> {
        let word = self.word.as_ref()?;
        self.left.get(node).is_none_or(|mark| word.is_after(*mark)).then(|| word.clone())
    }
}

impl Facts {
    pub(super) fn new<'a>(clusters: impl Iterator<Item = &'a ClusterName>, clock: Arc<dyn Clock>) -> Self {
        Facts {
            clock,
            questions: AtomicU64::new(0),
            clusters: clusters.map(|name| (name.clone(), Mutex::default())).collect(),
            budgets: AddressRates::new(QUESTIONS.0, QUESTIONS.1),
        }
    }

    /// With another budget for each address.
    pub(super) fn limit(&mut self, per_second: u32, burst: u32) {
        self.budgets = AddressRates::new(per_second, burst);
    }

    fn may_ask(&self, node: &Node) -> Result<(), AttestError> {
        let Some(address) = node.peer.map(|peer| peer.to_canonical()) else { return Ok(()) };
        self.budgets.take(address, std::time::Instant::now()).map_err(|again_in| {
            let cluster = node.cluster.clone();
            AttestError::TooOften { cluster, address, again_in }
        })
    }

    /// This moment: what is asked from now on [is after](Word::is_after) it.
    pub(super) fn mark(&self) -> Mark {
        Mark(self.questions.load(Ordering::SeqCst))
    }

    fn jobs(&self, cluster: &ClusterName) -> Option<MutexGuard<'_, Jobs>> {
        self.clusters.get(cluster).map(|jobs| jobs.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn entry(&self, cluster: &ClusterName, job: JobId) -> Arc<Entry> {
        let Some(mut jobs) = self.jobs(cluster) else { return Arc::default() };
        if let Some(entry) = jobs.jobs.get(&job) {
            return entry.clone();
        }
        if jobs.jobs.len() >= MAX_JOBS || jobs.names >= MAX_NAMES {
            let now = self.clock.now();
            jobs.retain(|entry| {
                let recent = |word: &Arc<Word>| fresh(word.asked, now, Duration::minutes(1));
                Arc::strong_count(entry) > 1 || entry.said().word.as_ref().is_some_and(recent)
            });
        }
        let entry = Arc::new(Entry::default());
        if jobs.jobs.len() < MAX_JOBS && jobs.names < MAX_NAMES {
            jobs.jobs.insert(job, entry.clone());
        }
        entry
    }

    /// What Slurm last said about the job, if it speaks for this node.
    pub(super) fn kept(&self, cluster: &ClusterName, job: JobId, node: &NodeName) -> Option<Arc<Word>> {
        let entry = self.jobs(cluster)?.jobs.get(&job)?.clone();
        entry.said().for_node(node)
    }

    /// Whoever holds it opens the job's session.
    pub(super) fn opening(&self, cluster: &ClusterName, job: JobId) -> Arc<tokio::sync::Mutex<()>> {
        self.entry(cluster, job).opening.clone()
    }

    /// What Slurm last said about the job, whomever it speaks for.
    pub(super) fn word(&self, cluster: &ClusterName, job: JobId) -> Option<Arc<Word>> {
        let entry = self.jobs(cluster)?.jobs.get(&job)?.clone();
        entry.said().word.clone()
    }

    /// What is kept, if it is `good`; else Slurm's answer to a question that began after `mark`. One question at a time for
    /// a job: who waits for it takes its answer, or its failure.
    ///
    /// # Errors
    /// No complete answer, or the node's address made credvend ask too often.
    pub(super) async fn ask(
        &self,
        attestor: &Arc<dyn Attestor>,
        (by, job): (&Node, JobId),
        mark: Mark,
        good: impl Fn(&Word) -> bool,
    ) -> Result<Arc<Word>, AttestError> {
        let (cluster, node) = (&by.cluster, &by.name);
        let entry = self.entry(cluster, job);
        let kept = || entry.said().for_node(node).filter(|word| word.is_after(mark) || good(word));
        if let Some(word) = kept() {
            return Ok(word);
        }
        let seen = entry.attempts.load(Ordering::Acquire);
        let mut failed = entry.turn.lock().await;
        if let Some(word) = kept() {
            return Ok(word);
        }
        if let Some(error) = &*failed
            && entry.attempts.load(Ordering::Acquire) > seen
        {
            return Err(error.clone());
        }
        // Not the failure of those who wait: they have budgets of their own.
        self.may_ask(by)?;
        let number = self.questions.fetch_add(1, Ordering::SeqCst) + 1;
        let asked = self.clock.now();
        let answer = attestor.job(job).await;
        entry.attempts.fetch_add(1, Ordering::AcqRel);
        match answer {
            Ok(answer) => {
                *failed = None;
                let word = Arc::new(Word::new(number, asked, answer));
                self.keep(cluster, &entry, word.clone());
                Ok(word)
            }
            Err(error) => {
                *failed = Some(error.clone());
                Err(error)
            }
        }
    }

    fn keep(&self, cluster: &ClusterName, entry: &Entry, word: Arc<Word>) {
        let (more, fewer) = {
            let mut said = entry.said();
            if said.word.as_ref().is_some_and(|old| old.number > word.number) {
                return;
            }
            let fewer = said.word.as_ref().map_or(0, |old| old.by_name.len());
            let more = word.by_name.len();
            said.left.retain(|_, mark| !word.is_after(*mark));
            said.word = Some(word);
            (more, fewer)
        };
        if let Some(mut jobs) = self.jobs(cluster) {
            jobs.names = (jobs.names + more).saturating_sub(fewer);
        }
    }

    /// The node says that the job is over there.
    pub(super) fn left(&self, cluster: &ClusterName, job: JobId, node: &NodeName) {
        let entry = self.jobs(cluster).and_then(|jobs| jobs.jobs.get(&job).cloned());
        let Some(entry) = entry else { return };
        let mark = self.mark();
        let mut said = entry.said();
        // Others' words do not count for it anyway, and are no reason to remember it.
        if said.word.as_ref().is_some_and(|word| word.names(node)) {
            said.left.insert(node.clone(), mark);
        }
    }

    /// Nothing is kept of the job any more.
    pub(super) fn forget(&self, cluster: &ClusterName, job: JobId) {
        if let Some(mut jobs) = self.jobs(cluster) {
            jobs.remove(job);
        }
    }

    /// A listing is about to be asked for.
    pub(super) fn listing(&self) -> Listing {
        Listing { number: self.questions.fetch_add(1, Ordering::SeqCst) + 1, asked: self.clock.now() }
    }

    /// Renews what is kept from a complete listing. What it does not confirm is asked for again when it is needed.
    pub(super) fn listed(&self, cluster: &ClusterName, listing: Listing, mut facts: HashMap<JobId, JobFacts>) {
        let Some(mut jobs) = self.jobs(cluster) else { return };
        let mut names = 0;
        jobs.jobs.retain(|job, entry| {
            let mut said = entry.said();
            if let Some(old) = said.word.clone()
                && old.number < listing.number
            {
                let renewed = facts.remove(job).and_then(|now| renewed(&old, &listing, now));
                if let Some(word) = &renewed {
                    said.left.retain(|_, mark| !word.is_after(*mark));
                }
                said.word = renewed.map(Arc::new);
            }
            names += said.word.as_ref().map_or(0, |word| word.by_name.len());
            said.word.is_some() || Arc::strong_count(entry) > 1
        });
        jobs.names = names;
    }
}

/// When a listing was asked for.
pub(super) struct Listing {
    number: u64,
    asked: OffsetDateTime,
}

/// The same run on the nodes that it has now. A long listing leaves nodes out, and names that do not read.
fn renewed(old: &Word, listing: &Listing, now: JobFacts) -> Option<Word> {
    let Answer::Known(was) = &old.answer else { return None };
    let same =
        was.run() == now.run() && (was.uid, &was.account, &was.partition) == (now.uid, &now.account, &now.partition);
    if !same || (now.nodes.is_empty() && now.state == JobState::Running) {
        return None;
    }
    let answer = Answer::Known(now);
    if nodes(&answer) == nodes(&old.answer) {
        return Some(Word { number: listing.number, asked: listing.asked, answer, by_name: old.by_name.clone() });
    }
    Some(Word::new(listing.number, listing.asked, answer))
}

impl Jobs {
    fn remove(&mut self, job: JobId) {
        if let Some(entry) = self.jobs.remove(&job) {
            let gone = entry.said().word.as_ref().map_or(0, |word| word.by_name.len());
            self.names = self.names.saturating_sub(gone);
        }
    }

    fn retain(&mut self, stays: impl Fn(&Arc<Entry>) -> bool) {
        self.jobs.retain(|_, entry| stays(entry));
        self.names = self.jobs.values().map(|e| e.said().word.as_ref().map_or(0, |w| w.by_name.len())).sum();
    }
}

#[cfg(test)]
impl Facts {
    /// How many hold a job's entry: those who ask and those who wait for them.
    pub(super) fn waiting(&self) -> usize {
        let all = self.clusters.values().map(|jobs| jobs.lock().unwrap_or_else(PoisonError::into_inner));
        all.map(|jobs| jobs.jobs.values().map(|entry| Arc::strong_count(entry) - 1).sum::<usize>()).sum()
    }
}
